"""Streams of encoded images, and the readers that shuffle them: which image fills which sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from attrs import define, field, frozen
from torch.utils.data import IterableDataset, get_worker_info

from rpiae.core.errors import DataError
from rpiae.core.model.contracts import Batch
from rpiae.core.runtime.draws import uniform
from rpiae.data.crops import Crop, Fitting, collated, cut, none_usable
from rpiae.data.images import Picture
from rpiae.data.orders import permutation

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
class Reading:
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
class Reader:
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

    reading: Reading
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


class Portion(NamedTuple):
    """What one loading process has of a step.

    Attributes:
        batch: its samples; why there are none, where one failed.
        places: where its readers went on, after a start on the way.
    """

    batch: Batch | str
    places: tuple[str, ...]


@frozen(kw_only=True)
class Lane:
    """A reader, and the positions in every batch that it fills; some of them for this process."""

    reader: Reader
    positions: range
    local: range


class Portions(IterableDataset[Portion]):
    """The steps of a stage, split over the loading processes by reader."""

    def __init__(
        self,
        lanes: Sequence[Lane],
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

    def __iter__(self) -> Iterator[Portion]:
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
            batch = collated(crops)
            if isinstance(batch, Batch):
                batch = batch._replace(notices=tuple(reading.problems))
            yield Portion(batch, tuple(reading.places))
            reading.problems.clear()
            reading.places.clear()

    def _crop(self, lane: Lane, slot: _Slot | None, sample: int) -> Crop:
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


def joined(portions: Sequence[Batch]) -> Batch:
    """The portions of a step as one batch, in the order of its samples."""
    samples = [sample for portion in portions for sample in portion.samples]
    order = sorted(range(len(samples)), key=samples.__getitem__)
    return Batch(
        torch.cat([portion.inputs for portion in portions])[order],
        tuple(sorted(samples)),
        tuple(text for portion in portions for text in portion.skipped),
        tuple(text for portion in portions for text in portion.notices),
    )
