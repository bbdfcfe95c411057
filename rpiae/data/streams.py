"""Datasets that are read in order: shards of images, through a shuffle buffer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, Required

import torch
from attrs import define, field, frozen
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import Batch, HeldOut, local_samples
from rpiae.core.runtime.draws import uniform
from rpiae.data.crops import Crop, CropBatch, Fitting, collated, cut, none_usable
from rpiae.data.image_dataset import (
    BucketOptions,
    centre_crops,
    check_held_out,
    most_held_out,
    trained_on_itself,
)
from rpiae.data.images import Picture
from rpiae.data.loading import Handed, chosen_workers, handed_over, loaded, loader, unit
from rpiae.data.orders import permutation, sampled

#: Crops per step where training crops are loaded for fitting.
FITTED = 16

#: Images that are read for each one that is held out, at most, as a shard is read from its beginning.
READ_PER_HELD = 64

#: Shards that a message tells the problems of.
TOLD = 3


class Encoded(NamedTuple):
    """An encoded image of a stream.

    Attributes:
        name: what it is called; unique within the stream.
        content: the content of an image file, or its path; None where the image is missing.
    """

    name: str
    content: bytes | Path | None


class Stream(Protocol):
    """Encoded images in shards, each of which is read from its beginning.

    Attributes:
        location: what messages call the stream.
        total: images of all shards, where that is known without reading them.
        problems: what is known to be left out, in words.
    """

    location: str
    total: int | None
    problems: tuple[str, ...]

    def __len__(self) -> int:
        """Number of shards."""

    def shard(self, index: int) -> str:
        """What messages call a shard."""

    def count(self, index: int) -> int | None:
        """Images of a shard, where that is known without reading it."""

    def images(self, index: int) -> Iterator[Encoded | str]:
        """The images of a shard in their order; a text in between says what was left out and why.

        Raises:
            DataError: if the shard cannot be read, or not any further.
        """


class StreamOptions(BucketOptions, total=False):
    """Keywords of streamed datasets; see ``StreamableDatasetConfig``."""

    image_size: Required[int]
    resize: int | None
    workers: int | None
    held_out: int
    num_images: int | None
    buffer: int
    readers: int


@frozen(kw_only=True)
class _Slot:
    """A place in a shuffled block of images, and what follows the block where none can be used."""

    block: Sequence[Encoded]
    order: Sequence[int]
    position: int
    following: Callable[[], Iterator[Encoded]]

    def candidates(self, longest: int) -> Iterator[Encoded]:
        number = len(self.order)
        for offset in range(number):
            yield self.block[self.order[(self.position + offset) % number]]
        yield from islice(self.following(), longest)


@define(kw_only=True)
class _Reading:
    """What a process knows and has met while it reads a stream.

    Attributes:
        stream: the shards.
        held: positions in each shard that are held out.
        counts: training images of the shards that were read to their end, or are known.
        problems: what was left out, in words.
        places: where each reader went on, after a start on the way.
    """

    stream: Stream
    held: Sequence[frozenset[int]]
    counts: dict[int, int] = field(init=False)
    problems: list[str] = field(factory=list)
    places: list[str] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        counted = ((i, self.stream.count(i)) for i in range(len(self.stream)))
        self.counts = {i: n - sum(p < n for p in self.held[i]) for i, n in counted if n is not None}

    def training(self, shard: int) -> Iterator[Encoded]:
        """The training images of a shard; one that cannot be read on ends, and is reported."""
        number, passed, held = 0, 0, self.held[shard]
        try:
            for item in self.stream.images(shard):
                if isinstance(item, str):
                    self.problems.append(item)
                elif number + passed in held:
                    passed += 1
                else:
                    number += 1
                    yield item
        except DataError as error:
            used = f"its first {number + passed} images are used" if number + passed else "left out"
            self.problems.append(f"{error}; {used}")
        self.counts.setdefault(shard, number)

    def length(self, shards: Sequence[int]) -> int | None:
        """Training images of some shards, where all are known."""
        if any(shard not in self.counts for shard in shards):
            return None
        return sum(self.counts[shard] for shard in shards)


@frozen(kw_only=True)
class _Reader:
    """One of the parallel sequences that a stage's samples are taken from.

    It reads its shards epoch by epoch, each time in another order, and shuffles blocks of images:
    while one block is handed out, the next one is read. All of it is a function of seed, stage and
    number, so that it can begin anywhere; to do so it reads one block.

    Attributes:
        number: which of the stage's readers it is.
        shards: its own.
        substitutes: shards of the other readers, for one whose own shards have no images.
        buffer: images per block.
        seed, stage: of the run.
    """

    reading: _Reading
    number: int
    shards: Sequence[int]
    substitutes: Sequence[Sequence[int]]
    buffer: int
    seed: int
    stage: str

    def slots(self, start: int) -> Iterator[_Slot]:
        """Slots from number ``start`` on; it ends only if no shard has an image."""
        for shards in (self.shards, *self.substitutes):
            yield from self._endless(shards, start)

    def _endless(self, shards: Sequence[int], start: int) -> Iterator[_Slot]:
        epoch, left, told = 0, start, start == 0
        while True:
            length = self.reading.length(shards)
            if length == 0:
                return
            if length is not None:
                epoch, left = epoch + left // length, left % length
            any_came = False
            for slot in self._epoch(shards, epoch, left):
                if not told:
                    self.reading.places.append(slot.block[slot.order[slot.position]].name)
                    told = True
                any_came = True
                yield slot
            if any_came:
                epoch, left = epoch + 1, 0
            elif length is not None:
                return  # the shards can no longer be read

    def _epoch(self, shards: Sequence[int], epoch: int, start: int) -> Iterator[_Slot]:
        number, within = divmod(start, self.buffer)
        images = self._images(shards, epoch, skip=number * self.buffer)
        block = list(islice(images, self.buffer))
        while block:
            order = permutation(
                len(block), self.seed, self.stage, "buffer", self.number, epoch, number
            ).tolist()
            following: list[Encoded] = []
            for position in range(within, len(block)):
                yield _Slot(
                    block=block, order=order, position=position,
                    following=partial(
                        self._images, shards, epoch, skip=(number + 1) * self.buffer, wrapped=True
                    ),
                )  # fmt: skip
                following.extend(islice(images, 1))
            following.extend(islice(images, len(block) - len(following)))
            block, number, within = following, number + 1, 0

    def _images(
        self, shards: Sequence[int], epoch: int, *, skip: int, wrapped: bool = False
    ) -> Iterator[Encoded]:
        """The images of an epoch after the first ``skip`` ones, and of the next one if ``wrapped``."""
        labels = (self.seed, self.stage, "shards", self.number, epoch)
        for position in permutation(len(shards), *labels):
            shard = shards[position]
            if skip >= (count := self.reading.counts.get(shard, skip + 1)):
                skip -= count
                continue
            for image in self.reading.training(shard):
                if skip:
                    skip -= 1
                else:
                    yield image
        if wrapped:
            yield from self._images(shards, epoch + 1, skip=0)


class _Part(NamedTuple):
    """What one loading process has of a step.

    Attributes:
        crops: its crops; without their pixels on the way between processes.
        pixels: of those that have any, in their order; only on the way.
    """

    crops: list[Crop]
    pixels: Handed
    problems: tuple[str, ...]
    places: tuple[str, ...]


@frozen(kw_only=True)
class _Lane:
    """A reader, and the positions in every batch that it fills; some of them for this process."""

    reader: _Reader
    positions: range
    local: range


class _Parts(IterableDataset[_Part]):
    """The steps of a stage, split over the loading processes by reader."""

    def __init__(
        self,
        lanes: Sequence[_Lane],
        *,
        fitting: Fitting,
        batch_size: int,
        steps: range,
        longest: int,
    ) -> None:
        self._lanes = lanes
        self._fitting = fitting
        self._batch_size = batch_size
        self._steps = steps
        self._longest = longest

    def __iter__(self) -> Iterator[_Part]:
        info = get_worker_info()
        lanes = self._lanes[info.id :: info.num_workers] if info else self._lanes
        reading = lanes[0].reader.reading
        slots = [lane.reader.slots(self._steps.start * len(lane.positions)) for lane in lanes]
        for step in self._steps:
            crops = []
            for lane, places in zip(lanes, slots, strict=True):
                for position in lane.positions:
                    slot = next(places, None)
                    if position in lane.local:
                        crops.append(self._crop(lane, slot, step * self._batch_size + position))
            yield _Part(crops, torch.empty(0), tuple(reading.problems), tuple(reading.places))
            reading.problems.clear()
            reading.places.clear()

    def _crop(self, lane: _Lane, slot: _Slot | None, sample: int) -> Crop:
        reader, size = lane.reader, self._fitting.image_size
        where = reader.reading.stream.location
        if slot is None:
            problems = list(dict.fromkeys(reader.reading.problems)) or ["all are held out"]
            more = f"; and {len(problems) - TOLD} more" if len(problems) > TOLD else ""
            why = "; ".join(problems[:TOLD]) + more
            return Crop(sample, None, (), f"no image in {where} can be trained on: {why}")
        errors: dict[str, DataError] = {}
        for image in slot.candidates(self._longest):
            if image.name in errors:
                continue
            try:
                pixels = opened(image, self._fitting)
            except DataError as error:
                errors[image.name] = error
                continue
            return cut(
                sample, pixels, (size, size),
                uniform(reader.seed, reader.stage, sample, "crop-y"),
                uniform(reader.seed, reader.stage, sample, "crop-x"),
                skipped=tuple(map(str, errors.values())),
            )  # fmt: skip
        return Crop(sample, None, (), none_usable(errors.values(), where, size))


def opened(image: Encoded, fitting: Fitting) -> Picture:
    """The pixels of a streamed image.

    Raises:
        DataError: if it is missing, or cannot be decoded.
    """
    if image.content is None:
        raise DataError(f"{image.name}: there are no image bytes")
    return fitting.fitted(image.content, image.name)


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
        self.notices = tuple(stream.problems)
        self._fitting = Fitting(image_size=options["image_size"], resize=options.get("resize"))
        self.image_size = self._fitting.image_size
        total = _total(stream, options.get("num_images"))
        if total < 1:
            raise DataError(f"{stream.location} has no images")
        self._held = held_positions(stream, most_held_out(total, held_out), total)
        self.num_images = total - sum(map(len, self._held))
        self._withheld = self._held
        self._notices = stream.problems
        if not self.num_images:
            self.num_images = total
            self._withheld = [frozenset()] * len(stream)
            self._notices = (*stream.problems, trained_on_itself(stream.location))
        self._buffer = options.get("buffer", 1024)
        self._readers = options.get("readers", 8)
        self._workers = chosen_workers(options.get("workers"))
        self._reported: set[str] = set()

    def batches(
        self,
        *,
        seed: int,
        stage: str,
        batch_size: int,
        start: int,
        steps: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> Iterator[Batch]:
        """Batches of the steps ``start`` to ``steps`` − 1 of a stage; step s has the samples s·b ….

        An image that cannot be used is replaced by the next usable one of its shuffle buffer, and
        reported the first time. After a start on the way, the first batch says that the shuffle
        buffer was filled again, and where.

        Raises:
            DataError: if no training image can be used.
        """
        local = local_samples(0, batch_size, rank=rank, num_processes=num_processes)
        for step, (crops, problems, places) in self._steps(
            seed, stage, batch_size, range(start, steps), local, buffer=self._buffer
        ):
            if crops.failure:
                raise DataError(crops.failure)
            notices = self._fresh((*self.notices, *problems))
            if step == start > 0:
                notices += (self._went_on(places, start),)
            yield Batch(unit(crops.pixels), crops.samples, self._fresh(crops.skipped), notices)

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """Random training crops (count, 3, s, s) in [0, 1], of different images where there are so many.

        Raises:
            DataError: if no training image can be used.
        """
        size, parts = min(count, FITTED), []
        steps = range(-(-count // size)) if count else range(0)
        # A buffer of the crops that are asked for: a full one would be read for a few crops.
        for _, (crops, _, _) in self._steps(
            seed, "crops", size, steps, range(size), buffer=max(1, count)
        ):
            if crops.failure:
                raise DataError(crops.failure)
            parts.append(unit(crops.pixels))
        empty = torch.empty(0, 3, self.image_size, self.image_size)
        return torch.cat(parts)[:count] if parts else empty

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

    def _steps(
        self,
        seed: int,
        stage: str,
        batch_size: int,
        steps: range,
        local: range,
        *,
        buffer: int,
    ) -> Iterator[tuple[int, tuple[CropBatch, list[str], list[str]]]]:
        """The crops of this process step by step, and what its loading processes have to say."""
        lanes = self._lanes(seed, stage, batch_size, local, buffer)
        if not steps:
            return
        workers = min(self._workers, len(lanes))
        parts = _Parts(
            lanes, fitting=self._fitting, batch_size=batch_size, steps=steps,
            longest=self.num_images,
        )  # fmt: skip
        source = loaded(loader(parts, workers=workers, batch_size=None, collate_fn=_packed))
        for step in steps:
            # One part of each loading process, in turn: each of them has all steps.
            found = [_unpacked(part) for part in islice(source, max(1, workers))]
            crops = sorted((c for part in found for c in part.crops), key=lambda c: c.sample)
            problems = [text for part in found for text in part.problems]
            places = [text for part in found for text in part.places]
            yield step, (collated(crops), problems, places)

    def _lanes(
        self, seed: int, stage: str, batch_size: int, local: range, buffer: int
    ) -> list[_Lane]:
        reading = _Reading(stream=self._stream, held=self._withheld)
        shards = [i for i in range(len(self._stream)) if reading.counts.get(i) != 0]
        number = min(self._readers, len(shards), batch_size)
        own = [shards[i::number] for i in range(number)]
        lanes = []
        for i in range(number):
            positions = range(-(-i * batch_size // number), -(-(i + 1) * batch_size // number))
            mine = range(max(positions.start, local.start), min(positions.stop, local.stop))
            if mine:
                reader = _Reader(
                    reading=reading, number=i, shards=own[i],
                    substitutes=own[i + 1 :] + own[:i],
                    buffer=max(1, buffer // number), seed=seed, stage=stage,
                )  # fmt: skip
                lanes.append(_Lane(reader=reader, positions=positions, local=mine))
        return lanes

    def _went_on(self, places: Sequence[str], start: int) -> str:
        others = f" and {len(places) - 1} more places" if len(places) > 1 else ""
        where = places[0] if places else self._stream.location
        return (
            f"the stream goes on at step {start} with {where}{others}; its shuffle buffer was "
            "filled again, in the order it had"
        )

    def _fresh(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Those that were not reported before."""
        fresh = tuple(dict.fromkeys(text for text in texts if text not in self._reported))
        self._reported.update(fresh)
        return fresh


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


def _packed(part: _Part) -> _Part:
    """A part as a loading process hands it over: all pixels at once."""
    usable = [crop.pixels for crop in part.crops if crop.pixels is not None]
    pixels = handed_over(torch.stack(usable)) if usable else part.pixels
    return part._replace(crops=[crop._replace(pixels=None) for crop in part.crops], pixels=pixels)


def _unpacked(part: _Part) -> _Part:
    """Inverse of ``_packed``."""
    rows = iter(torch.as_tensor(part.pixels))
    crops = [crop if crop.failure else crop._replace(pixels=next(rows)) for crop in part.crops]
    return part._replace(crops=crops)


def _fail(error: DataError) -> Picture:
    raise error
