"""Which image each sample shows, as a function of seed, stage and sample alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rpiae.core.model.contracts import StageSteps
from rpiae.core.runtime.draws import key

R = TypeVar("R")

#: Samples of a mixture whose sources are drawn at once.
DRAWN = 4096


def permutation(number: int, seed: int, *labels: int | str) -> NDArray[np.int64]:
    """The numbers 0 to ``number`` − 1 in an order that belongs to these labels."""
    return np.random.default_rng(key(seed, *labels)).permutation(number)


def sampled(number: int, count: int, *labels: int | str) -> list[int]:
    """``count`` of the numbers 0 to ``number`` − 1, drawn at random but always the same, ascending.

    Where data lie in a periodic order, as when their classes take turns, evenly spread numbers would
    meet some of the classes only.

    Args:
        number: how many there are.
        count: how many are drawn.
        labels: tell one draw from another.
    """
    if count >= number:
        return list(range(number))
    return sorted(permutation(number, 0, *(labels or ("sampled",)))[:count].tolist())


class Requests(Generic[R]):
    """What is asked of a source step by step, all draws included; a loader's ``batch_sampler``.

    Args:
        request: sample → what is asked for it.
        steps: the samples of each step.
    """

    def __init__(
        self, request: Callable[[int], R], steps: StageSteps | Sequence[Iterable[int]]
    ) -> None:
        self._request = request
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[R]]:
        for samples in self._steps:
            yield [self._request(sample) for sample in samples]


class EpochOrder:
    """An endless sequence of images: every epoch shows all of them, in an order of its own.

    Args:
        seed: the run's seed.
        stage: name of the stage.
        num_images: images per epoch; at least one.
        label: tells sequences of one stage apart.
    """

    def __init__(self, seed: int, stage: str, num_images: int, label: str = "order") -> None:
        self._seed = seed
        self._stage = stage
        self._num_images = num_images
        self._label = label
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def image(self, number: int) -> int:
        """The image at a place of the sequence."""
        epoch, position = divmod(number, self._num_images)
        if epoch != self._epoch:
            self._order = permutation(self._num_images, self._seed, self._stage, self._label, epoch)
            self._epoch = epoch
        return int(self._order[position])


class BucketOrder:
    """Batches of one bucket each.

    Every bucket is an endless sequence of its own images, cut into batches. Epoch e has the batches
    that each bucket completes in it, in an order of their own; images that do not fill a batch are
    carried over to the next epoch, so none is left out and none is shown more often than others.

    Args:
        seed: the run's seed.
        stage: name of the stage.
        counts: images per bucket; each at least one.
        batch_size: images per batch.
    """

    def __init__(self, seed: int, stage: str, counts: Sequence[int], batch_size: int) -> None:
        self._seed = seed
        self._stage = stage
        self._counts = counts
        self._batch_size = batch_size
        self._images = [
            EpochOrder(seed, stage, count, f"order-{bucket}") for bucket, count in enumerate(counts)
        ]
        self._epoch = -1
        self._sequence = np.empty(0, dtype=np.int64)
        self._numbers = np.empty(0, dtype=np.int64)

    def place(self, sample: int) -> tuple[int, int]:
        """The bucket of a sample, and the image's position in the bucket."""
        step, position = divmod(sample, self._batch_size)
        bucket, batch = self._batch(step)
        return bucket, self._images[bucket].image(batch * self._batch_size + position)

    def _batch(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and the number of the batch among those of the bucket."""
        if not self._epoch >= 0 <= step - self._before(self._epoch) < len(self._sequence):
            self._enter(self._epoch_of(step))
        position = step - self._before(self._epoch)
        return int(self._sequence[position]), int(self._numbers[position])

    def _before(self, epoch: int) -> int:
        return sum(self._completed(epoch))

    def _completed(self, epoch: int) -> list[int]:
        """Batches of each bucket that are complete before an epoch."""
        return [epoch * count // self._batch_size for count in self._counts]

    def _epoch_of(self, step: int) -> int:
        # No epoch has more batches than its images allow, so the search begins at or before it.
        first = step * self._batch_size // sum(self._counts)
        return next(e for e in itertools.count(first) if step < self._before(e + 1))

    def _enter(self, epoch: int) -> None:
        done, now = self._completed(epoch), self._completed(epoch + 1)
        buckets = np.repeat(np.arange(len(done)), np.subtract(now, done))
        numbers = np.concatenate([np.arange(a, b) for a, b in zip(done, now, strict=True)])
        order = permutation(len(buckets), self._seed, self._stage, "buckets", epoch)
        self._sequence, self._numbers, self._epoch = buckets[order], numbers[order], epoch


class MixtureOrder:
    """The source of each sample, drawn with given weights, and its number among that source's.

    Args:
        seed: the run's seed.
        stage: name of the stage.
        weights: one per source; positive.
    """

    def __init__(self, seed: int, stage: str, weights: Sequence[float]) -> None:
        self._seed = seed
        self._stage = stage
        self._bounds = np.cumsum(weights)[:-1] / sum(weights)
        self._before = np.zeros(len(weights), dtype=np.int64)
        self._block = -1
        self._sources = np.empty(0, dtype=np.int64)
        self._numbers = np.empty(0, dtype=np.int64)

    def place(self, sample: int) -> tuple[int, int]:
        """The source of a sample, and how many earlier samples are of that source."""
        block, position = divmod(sample, DRAWN)
        if block < self._block:
            self._before[:] = 0
            self._block = -1
            self._sources = np.empty(0, dtype=np.int64)
        if block > self._block:
            self._before += self._counted()
            for passed in range(self._block + 1, block):
                self._sources = self._drawn(passed)
                self._before += self._counted()
            self._sources, self._block = self._drawn(block), block
            self._numbers = np.empty(DRAWN, dtype=np.int64)
            for source, before in enumerate(self._before):
                mine = self._sources == source
                self._numbers[mine] = before + np.arange(mine.sum())
        return int(self._sources[position]), int(self._numbers[position])

    def _drawn(self, block: int) -> NDArray[np.int64]:
        draws = np.random.default_rng(key(self._seed, self._stage, "source", block)).random(DRAWN)
        return np.searchsorted(self._bounds, draws, side="right")

    def _counted(self) -> NDArray[np.int64]:
        return np.bincount(self._sources, minlength=len(self._before))
