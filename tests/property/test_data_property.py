"""Datasets: what holds for every size, count and position."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rpiae.data.image_dataset import held_out_indices
from rpiae.data.images import crop, resize_short_side


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
    resized = resize_short_side(np.zeros((height, width, 3), dtype=np.uint8), side)
    assert min(resized.shape[:2]) == side
