"""Aspect-ratio buckets: shapes of about one area, and the one that suits an image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset

from rpiae.core.errors import DataError, UsageError
from rpiae.data.crops import ImageReader
from rpiae.data.images import Shape, shape_of

#: Widest aspect ratio of buckets that are made by number; the tallest is its inverse.
WIDEST = 2.0

#: Images whose headers are read as one piece of work.
CHUNK = 64


def bucket_shapes(
    image_size: int, *, number: int | None, sizes: Sequence[Sequence[int]], step: int
) -> tuple[Shape, ...]:
    """The shapes that are asked for; none where nothing is.

    By number, aspect ratios lie evenly (by their logarithm) between 1:2 and 2:1, and areas are close
    to that of the square; shapes that coincide after rounding are one.

    Args:
        image_size: side of the square of the wanted area, in pixels.
        number: how many.
        sizes: the shapes themselves (h, w), instead of a number.
        step: every side is a multiple of it, in pixels.

    Raises:
        UsageError: if both are given, or a side is no multiple of ``step``.
    """
    if number is not None and sizes:
        raise UsageError("give one of data.buckets (a number) and data.bucket_sizes (h, w)")
    for size in sizes:
        if any(side < step or side % step for side in size):
            raise UsageError(
                f"data.bucket_sizes has {size[0]}×{size[1]} (h×w): sides must be multiples of "
                f"data.bucket_step = {step}"
            )
    if number is None:
        return tuple(dict.fromkeys((h, w) for h, w in sizes))
    exponents = [2 * i / (number - 1) - 1 for i in range(number)] if number > 1 else [0.0]

    def rounded(side: float) -> int:
        return max(step, round(side / step) * step)

    ratios = [WIDEST**exponent for exponent in exponents]
    return tuple(
        dict.fromkeys(
            (rounded(image_size / math.sqrt(ratio)), rounded(image_size * math.sqrt(ratio)))
            for ratio in ratios
        )
    )


def nearest_bucket(shape: Shape, buckets: Sequence[Shape]) -> int:
    """The bucket whose aspect ratio is nearest to that of an image, by its logarithm."""
    ratio = math.log(shape[1] / shape[0])
    return min(
        range(len(buckets)), key=lambda i: abs(math.log(buckets[i][1] / buckets[i][0]) - ratio)
    )


class Headers(TorchDataset[list[Shape | str]]):
    """Shapes of images by chunks, from their headers; what is wrong where there is none."""

    def __init__(self, reader: ImageReader, images: NDArray[np.int64]) -> None:
        self._reader = reader
        self._images = images

    def __len__(self) -> int:
        return -(-len(self._images) // CHUNK)

    def __getitem__(self, number: int) -> list[Shape | str]:
        chunk = self._images[number * CHUNK : (number + 1) * CHUNK]
        return [self._shape(int(index)) for index in chunk]

    def _shape(self, index: int) -> Shape | str:
        source = self._reader.source
        try:
            return shape_of(source.read(index), name=source.path(index))
        except DataError as error:
            return str(error)
