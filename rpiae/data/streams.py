"""Datasets that are read in order: shards of images, through a shuffle buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Required

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import Batch, HeldOut, StageSteps
from rpiae.core.training.feed import as_floats
from rpiae.data.crops import Fitting
from rpiae.data.held_out import centre_crops, check_held_out, most_held_out, trained_on_itself
from rpiae.data.image_dataset import BucketOptions
from rpiae.data.images import Picture
from rpiae.data.loading import Reports, as_it_is, chosen_workers, loaded, loader, received
from rpiae.data.orders import sampled
from rpiae.data.readers import (
    Encoded,
    Lane,
    Portions,
    Reader,
    Reading,
    Stream,
    joined,
    opened,
)

#: Crops per step where training crops are loaded for fitting.
FITTED = 16

#: Images that are read for each one that is held out, at most, as a shard is read from its beginning.
READ_PER_HELD = 64


class StreamOptions(BucketOptions, total=False):
    """Keywords of streamed datasets; see ``StreamableDatasetConfig``."""

    image_size: Required[int]
    resize: int | None
    workers: int | None
    held_out: int
    num_images: int | None
    buffer: int
    readers: int


class StreamDataset:
    """Random square crops of the images of a stream, of which some are held out.

    The samples of a batch are split over a number of readers, each with shards of its own and a
    share of the shuffle buffer; the processes and their loading processes share the readers. So
    which images a step shows depends on (seed, stage, batch size, step), not on the number of
    processes. Each reader's epoch shows all images of its shards.

    Held out are images near the beginning of some shards, both drawn once and for all. A single image
    is both trained on and held out, and a notice says so.

    Args:
        stream: the shards.
        options: see ``StreamableDatasetConfig``.

    Attributes:
        num_images: images to train on (an epoch).
        image_size: side of the square crops, in pixels.
        notices: what is known to be left out before the stream is read, in words.

    Raises:
        DataError: if the stream has no images.
        UsageError: if the number of images is neither known nor given, or an option does not go
            with a stream.
    """

    def __init__(self, stream: Stream, options: StreamOptions) -> None:
        if options.get("buckets") is not None or options.get("bucket_sizes"):
            raise UsageError(
                "a stream has no aspect-ratio buckets, which need the sizes of all images: leave "
                "out data.buckets, or set data.streaming = false"
            )
        held_out = options.get("held_out", 32)
        check_held_out(held_out)
        self._stream = stream
        self._fitting = Fitting(image_size=options["image_size"], resize=options.get("resize"))
        self.image_size = self._fitting.image_size
        total = _total(stream, options.get("num_images"))
        if total < 1:
            raise DataError(f"{stream.location} has no images")
        self._held = held_positions(stream, most_held_out(total, held_out), total)
        self.num_images = total - sum(map(len, self._held))
        self._withheld = self._held
        self.notices = tuple(stream.problems)
        if not self.num_images:
            self.num_images = total
            self._withheld = [frozenset()] * len(stream)
            self.notices += (trained_on_itself(stream.location),)
        self._buffer = options.get("buffer", 1024)
        self._readers = options.get("readers", 8)
        self._workers = chosen_workers(options.get("workers"))
        self._reports = Reports()

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """Batches of the steps of a stage.

        An image that cannot be used is replaced by the next usable one of its shuffle buffer, and
        reported the first time. After a start on the way, the first batch says that the shuffle
        buffer was filled again, and where.

        Raises:
            DataError: if no training image can be used.
        """
        for batch, places in self._read(steps, self._buffer):
            notices = self._reports.fresh((*self.notices, *batch.notices))
            if places:
                notices += (self._went_on(places, steps.start),)
            yield batch._replace(skipped=self._reports.fresh(batch.skipped), notices=notices)

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """Random training crops (count, 3, s, s) in [0, 1], of different images where there are so many.

        Raises:
            DataError: if no training image can be used.
        """
        size = max(1, min(count, FITTED))
        steps = StageSteps(
            seed=seed, stage="crops", batch_size=size, start=0, steps=-(-count // size)
        )
        # A buffer of the crops that are asked for: a full one would be read for a few crops.
        found = [as_floats(batch.inputs) for batch, _ in self._read(steps, max(1, count))]
        empty = torch.empty(0, 3, self.image_size, self.image_size)
        return torch.cat(found)[:count] if found else empty

    def held_out(self) -> HeldOut:
        """Centre crops of the held-out images; those that cannot be used are logged and left out.

        Raises:
            DataError: if none of them can be used.
        """
        return centre_crops(
            self._held_images(), image_size=self.image_size, where=self._stream.location
        )

    def _held_images(self) -> Iterator[tuple[str, Callable[[], Picture]]]:
        for shard, held in enumerate(self._held):
            if not held:
                continue
            try:
                images = (i for i in self._stream.images(shard) if isinstance(i, Encoded))
                for position, image in enumerate(islice(images, max(held) + 1)):
                    if position not in held:
                        continue
                    # A shard may be a long command, and pictures are named after their groups.
                    inside = image.name.removeprefix(self._stream.shard(shard)).lstrip("/, ")
                    yield f"shard {shard}/{inside}", partial(opened, image, self._fitting)
            except DataError as error:
                yield self._stream.shard(shard), partial(_fail, error)

    def _read(self, steps: StageSteps, buffer: int) -> Iterator[tuple[Batch, list[str]]]:
        """This process's batches, and where its readers went on."""
        lanes = self._lanes(steps, buffer)
        if not steps:
            return
        workers = min(self._workers, len(lanes))
        portions = Portions(
            lanes, fitting=self._fitting, batch_size=steps.batch_size,
            steps=range(steps.start, steps.steps), longest=self.num_images,
        )  # fmt: skip
        source = loaded(loader(portions, workers=workers, batch_size=None, collate_fn=as_it_is))
        for _ in steps:
            # One portion of each loading process, in turn: each of them has all steps.
            found = list(islice(source, max(1, workers)))
            places = [text for portion in found for text in portion.places]
            yield joined([received(portion.batch) for portion in found]), places

    def _lanes(self, steps: StageSteps, buffer: int) -> list[Lane]:
        batch_size, local = steps.batch_size, steps.samples(0)
        reading = Reading(stream=self._stream, held=self._withheld)
        shards = [i for i in range(len(self._stream)) if reading.counts.get(i) != 0]
        number = min(self._readers, len(shards), batch_size)
        own = [shards[i::number] for i in range(number)]
        lanes = []
        for i in range(number):
            positions = range(-(-i * batch_size // number), -(-(i + 1) * batch_size // number))
            mine = range(max(positions.start, local.start), min(positions.stop, local.stop))
            if mine:
                reader = Reader(
                    reading=reading, number=i, shards=own[i],
                    substitutes=own[i + 1 :] + own[:i],
                    buffer=max(1, buffer // number), seed=steps.seed, stage=steps.stage,
                )  # fmt: skip
                lanes.append(Lane(reader=reader, positions=positions, local=mine))
        return lanes

    def _went_on(self, places: Sequence[str], start: int) -> str:
        others = f" and {len(places) - 1} more places" if len(places) > 1 else ""
        return (
            f"the stream goes on at step {start} with {places[0]}{others}; its shuffle buffer was "
            "filled again, in the order it had"
        )


def held_positions(stream: Stream, held_out: int, total: int) -> list[frozenset[int]]:
    """Positions in each shard that are held out; a pure rule on the shards.

    Shards are drawn, and positions in them, so that no class is passed over because classes or shards
    take turns. The positions lie in the first half of what a shard has on average, whether or not its
    images are counted, so that a shard gives the same images however it is read.

    Args:
        stream: the shards.
        held_out: how many images; at least one.
        total: images of all shards.
    """
    candidates = [i for i in range(len(stream)) if stream.count(i) != 0]
    drawn = sampled(len(candidates), held_out, "held-out-shards")
    held: list[frozenset[int]] = [frozenset()] * len(stream)
    for place, position in enumerate(drawn):
        shard = candidates[position]
        wanted = held_out // len(drawn) + (place < held_out % len(drawn))
        count = stream.count(shard)
        first = min(max(wanted, total // len(candidates) // 2), READ_PER_HELD * wanted)
        first = first if count is None else min(first, count)
        held[shard] = frozenset(sampled(first, min(wanted, first), "held-out", shard))
    return held


def check_not_streaming(num_images: int | None) -> None:
    """Refuse a number of images where they are counted.

    Raises:
        UsageError: if one is given.
    """
    if num_images is not None:
        raise UsageError(
            "data.num_images is for streams; here the images are counted: leave it out, or set "
            "data.streaming = true"
        )


def _total(stream: Stream, given: int | None) -> int:
    if given is None and stream.total is None:
        raise UsageError(
            f"{stream.location} does not say how many images it has, and an epoch needs a length: "
            "set data.num_images to their number (held-out ones included)"
        )
    if None not in (given, stream.total) and given != stream.total:
        raise UsageError(
            f"data.num_images = {given}, but {stream.location} has {stream.total} images: leave it "
            "out"
        )
    total = stream.total if given is None else given
    assert total is not None
    return total


def _fail(error: DataError) -> Picture:
    raise error
