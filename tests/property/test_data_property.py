"""Datasets: what holds for every size, count, position and number of processes."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rpiae.core.model.contracts import StageSteps
from rpiae.data.buckets import bucket_shapes, nearest_bucket
from rpiae.data.held_out import held_out_indices
from rpiae.data.images import cover_size, crop, short_side_size
from rpiae.data.orders import DRAWN, BucketOrder, MixtureOrder
from rpiae.data.readers import Encoded
from rpiae.data.streams import StreamDataset, held_positions


@given(num_images=st.integers(2, 5000), held_out=st.integers(1, 6000))
def test_held_out_images_are_distinct_and_at_most_half(num_images: int, held_out: int) -> None:
    indices = held_out_indices(num_images, held_out)
    assert len(indices) == len(set(indices)) == min(held_out, num_images // 2)
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < num_images


@given(
    size=st.integers(1, 12),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    top=st.floats(0, 1),
    left=st.floats(0, 1),
)
def test_crops_lie_inside_the_image(
    size: int, extra: tuple[int, int], top: float, left: float
) -> None:
    pixels = np.zeros((size + extra[0], size + extra[1], 3), dtype=np.uint8)
    assert crop(pixels, (size, size), top, left).shape == (size, size, 3)


@given(height=st.integers(1, 60), width=st.integers(1, 60), side=st.integers(1, 40))
def test_resizing_hits_the_short_side_exactly(height: int, width: int, side: int) -> None:
    assert min(short_side_size((height, width), side)) == side


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    bucket=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_covering_holds_the_bucket_and_is_no_larger_than_needed(
    shape: tuple[int, int], bucket: tuple[int, int]
) -> None:
    resized = cover_size(shape, bucket)
    assert resized[0] >= bucket[0]
    assert resized[1] >= bucket[1]
    assert resized[0] == bucket[0] or resized[1] == bucket[1]


@given(size=st.integers(16, 512), number=st.integers(1, 12), step=st.sampled_from([1, 4, 8, 16]))
def test_bucket_shapes_are_multiples_of_the_step_and_of_like_area(
    size: int, number: int, step: int
) -> None:
    shapes = bucket_shapes(size, number=number, sizes=(), step=step)
    assert 1 <= len(shapes) <= number
    for height, width in shapes:
        assert height % step == width % step == 0
        # Both sides are rounded by at most half a step.
        least, most = (
            (size / 2**0.5 + sign * step / 2) * (size * 2**0.5 + sign * step / 2)
            for sign in (-1, 1)
        )
        assert min(least, size**2 - size * step * 1.5) <= height * width
        assert height * width <= max(most, size**2 + size * step * 1.5)
    assert {nearest_bucket(shape, shapes) for shape in shapes} == set(range(len(shapes)))


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    batch_size=st.integers(1, 16),
    start=st.integers(0, 300),
)
def test_bucket_batches_are_of_one_bucket_and_show_every_image_equally_often(
    counts: list[int], batch_size: int, start: int
) -> None:
    order = BucketOrder(0, "tune", counts, batch_size)
    epochs = batch_size  # after as many epochs, every bucket has filled its last batch
    steps = epochs * sum(counts) // batch_size
    shown: Counter[tuple[int, int]] = Counter()
    for step in range(steps):
        places = [order.place(step * batch_size + i) for i in range(batch_size)]
        assert len({bucket for bucket, _ in places}) == 1
        shown.update(places)
    assert shown == {(b, i): epochs for b, count in enumerate(counts) for i in range(count)}
    sample = start * batch_size
    assert BucketOrder(0, "tune", counts, batch_size).place(sample) == order.place(sample)


@given(
    weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=4),
    start=st.integers(0, 3 * DRAWN),
    seed=st.integers(0, 9),
)
def test_a_mixture_numbers_the_samples_of_each_source_without_gaps(
    weights: list[float], start: int, seed: int
) -> None:
    whole = MixtureOrder(seed, "tune", weights)
    following = [0] * len(weights)
    for sample in range(start + 3):
        source, number = whole.place(sample)
        assert number == following[source]
        following[source] += 1
    assert MixtureOrder(seed, "tune", weights).place(start + 2) == whole.place(start + 2)
    assert whole.place(start) == MixtureOrder(seed, "tune", weights).place(start)  # and back


class Shards:
    """A stream of images of one pixel, the grey of which is their number."""

    location = "shards"
    problems: tuple[str, ...] = ()

    def __init__(self, counts: list[int], known: bool) -> None:
        self._counts = counts
        self._known = known
        self.total = sum(counts) if known else None

    def __len__(self) -> int:
        return len(self._counts)

    def shard(self, index: int) -> str:
        return f"shard {index}"

    def count(self, index: int) -> int | None:
        return self._counts[index] if self._known else None

    def images(self, index: int) -> Iterator[Encoded | str]:
        first = sum(self._counts[:index])
        for i in range(first, first + self._counts[index]):
            buffer = io.BytesIO()
            Image.new("L", (1, 1), i).save(buffer, "PNG")
            yield Encoded(str(i), buffer.getvalue())


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda c: sum(c) >= 2),
    known=st.booleans(),
    held_out=st.integers(1, 5),
    buffer=st.integers(1, 12),
    readers=st.integers(1, 4),
    batch_size=st.integers(4, 9),
    num_processes=st.integers(1, 4),
    start=st.integers(0, 11),
)
def test_a_stream_is_the_same_split_over_processes_and_begun_anywhere(
    counts: list[int],
    known: bool,
    held_out: int,
    buffer: int,
    readers: int,
    batch_size: int,
    num_processes: int,
    start: int,
) -> None:
    def shown(first: int, rank: int = 0, processes: int = 1) -> dict[int, int]:
        dataset = StreamDataset(
            Shards(counts, known),
            {"image_size": 1, "workers": 0, "held_out": held_out, "buffer": buffer,
             "readers": readers, "num_images": None if known else sum(counts)},
        )  # fmt: skip
        settings: dict[str, Any] = {"seed": 1, "stage": "tune", "batch_size": batch_size}
        return {
            sample: int(image[0, 0, 0])
            for batch in dataset.batches(
                StageSteps(start=first, steps=12, rank=rank, num_processes=processes, **settings)
            )
            for sample, image in zip(batch.samples, batch.inputs, strict=True)
        }

    total = sum(counts)
    held = held_positions(Shards(counts, known), max(1, min(held_out, total // 2)), total)
    trained = {
        sum(counts[:shard]) + i
        for shard, count in enumerate(counts)
        for i in range(count)
        if i not in held[shard]
    }
    if not trained:
        return
    whole = shown(0)
    assert sorted(whole) == list(range(12 * batch_size))
    assert set(whole.values()) <= trained
    parts = [shown(0, rank, num_processes) for rank in range(num_processes)]
    assert {k: v for part in parts for k, v in part.items()} == whole
    assert sum(map(len, parts)) == len(whole)
    for rank, part in enumerate(parts):
        own = StageSteps(
            seed=1, stage="tune", batch_size=batch_size, start=0, steps=12, rank=rank,
            num_processes=num_processes,
        )  # fmt: skip
        assert {sample for samples in own for sample in samples} == set(part)
    tail = shown(start)
    assert tail == {k: v for k, v in whole.items() if k >= start * batch_size}
