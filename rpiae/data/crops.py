"""Crops by request: from an encoded image to the pixels of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import Batch
from rpiae.core.runtime.names import printable
from rpiae.data.images import (
    Picture,
    Piecewise,
    Shape,
    TooSmallError,
    bicubic,
    cover_size,
    crop,
    open_rgb,
    resize_as_adm,
    short_side_size,
)
from rpiae.data.loading import handed_over
from rpiae.data.sources import ImageSource, WithLabels

#: Short side that larger images are shrunk to by default, over the side of the crop (384 / 256).
SHRUNK = 1.5


class CropRequest(NamedTuple):
    """A crop with all its random draws.

    Attributes:
        sample: global sample index within the stage.
        image: position in the pool.
        top, left: position of the crop in [0, 1].
        pool: which pool the image is taken from.
    """

    sample: int
    image: int
    top: float
    left: float
    pool: int = 0


class Crop(NamedTuple):
    """A crop (3, h, w) of bytes, or why there is none.

    Attributes:
        skipped: images that came first and could not be used, in words.
        failure: what is wrong where no image could be used.
        label: of the image; −1 where it has none, None where nobody asked.
    """

    sample: int
    pixels: Tensor | None
    skipped: tuple[str, ...]
    failure: str
    label: int | None = None


def collated(crops: Sequence[Crop]) -> Batch | str:
    """Crops of one shape as a batch of bytes; what is wrong with one that has no pixels."""
    failure = next((c.failure for c in crops if c.failure), "")
    if failure:
        return failure
    labels = [c.label for c in crops if c.label is not None]
    return Batch(
        handed_over(torch.stack([c.pixels for c in crops if c.pixels is not None])),
        tuple(c.sample for c in crops),
        tuple(dict.fromkeys(text for c in crops for text in c.skipped)),
        labels=handed_over(torch.tensor(labels)) if labels else None,
    )


class Fitting:
    """Decodes images and resizes them by the rule of ``ImageDatasetConfig.resize``.

    Args:
        image_size: side of the square crops, in pixels; smaller images are refused.
        resize: short side of every image, in pixels.
        shrink: whether large images are shrunk where ``resize`` is not given.

    Raises:
        UsageError: if ``resize`` is smaller than the crop.
    """

    def __init__(self, *, image_size: int, resize: int | None, shrink: bool = True) -> None:
        if image_size < 1:
            raise UsageError(f"data.image_size must be at least 1, got {image_size}")
        if resize is not None and resize < image_size:
            raise UsageError(
                f"data.resize = {resize} is smaller than the crop, data.image_size = {image_size}: "
                f"set data.resize to {image_size} or more"
            )
        self.image_size = image_size
        self.resize = resize
        self._largest = round(SHRUNK * image_size) if shrink else None

    @property
    def rule(self) -> str:
        """How images are resized for square crops, in words."""
        if self.resize is not None:
            return f"short side resized to {self.resize}"
        if self._largest is not None:
            return f"short side above {self._largest} shrunk to it"
        return "natural size"

    def fitted(
        self,
        content: bytes | Path,
        name: str,
        cover: Shape | None = None,
        *,
        enlarge: bool = False,
    ) -> Picture:
        """An image (h, w, 3) of at least the crop's size.

        Args:
            content: the content of an image file, or its path.
            name: what messages call it.
            cover: shape of the crop, which the image is resized to cover; the square one, and no
                such resizing, where not given.
            enlarge: whether an image smaller than ``cover`` is enlarged.

        Raises:
            TooSmallError: if it is smaller than the crop.
            DataError: if it cannot be read or decoded.
        """
        least = self.image_size if self.resize is None and cover is None else 1
        with open_rgb(content, name=name, min_side=least) as image:
            if cover is None:
                return self.resized(image)
            shape = (image.height, image.width)
            if not enlarge and (shape[0] < cover[0] or shape[1] < cover[1]):
                raise TooSmallError(printable(name), image.width, image.height, crop=cover)
            return bicubic(image, cover_size(shape, cover))

    def check(self, shape: Shape, name: str) -> None:
        """Refuse an image of a height and width that is smaller than the square crop.

        Raises:
            TooSmallError: if it is, and is not enlarged.
        """
        if self.resize is None and min(shape) < self.image_size:
            crop = (self.image_size, self.image_size)
            raise TooSmallError(printable(name), shape[1], shape[0], crop=crop)

    def pixels(self, shape: Shape) -> int:
        """How many pixels an image of a height and width has once it is resized for square crops."""
        return math.prod(self._size(shape))

    def resized(self, image: Image.Image, *, whole: bool = True) -> Picture:
        """An RGB image (h, w, 3) as it is resized for square crops.

        Args:
            image: at least as large as ``check`` asks for.
            whole: whether all of it is wanted; otherwise what its crops do not show may be left out.
        """
        size = self._size((image.height, image.width))
        if whole or size == (image.height, image.width):
            return bicubic(image, size)
        return Piecewise(image, size)

    def _size(self, shape: Shape) -> Shape:
        """What an image is resized to for square crops."""
        if self.resize is not None:
            return short_side_size(shape, self.resize)
        if self._largest is not None and min(shape) > self._largest:
            return short_side_size(shape, self._largest)
        return shape


class AdmFitting(Fitting):
    """Resizes every image by the rule of ADM; see ``resize_as_adm``.

    Args:
        image_size: side of the square crops, in pixels; smaller images are enlarged.
        resize: short side of every image, in pixels; ``image_size`` where not given.

    Raises:
        UsageError: if ``resize`` is smaller than the crop.
    """

    def __init__(self, *, image_size: int, resize: int | None = None) -> None:
        super().__init__(image_size=image_size, resize=resize, shrink=False)
        self._side = resize or image_size

    @property
    def rule(self) -> str:
        """How images are resized for square crops, in words."""
        return f"ADM: halved by a box filter, then bicubic to a short side of {self._side}"

    def fitted(
        self,
        content: bytes | Path,
        name: str,
        cover: Shape | None = None,
        *,
        enlarge: bool = False,
    ) -> Picture:
        """An image (h, w, 3) whose short side is ``resize``; there are no other shapes to cover.

        Raises:
            DataError: if it cannot be read or decoded.
        """
        assert cover is None
        with open_rgb(content, name=name) as image:
            return self.resized(image)

    def check(self, shape: Shape, name: str) -> None:
        """No image is too small: smaller ones are enlarged."""

    def resized(self, image: Image.Image, *, whole: bool = True) -> Picture:
        """An RGB image (h, w, 3) whose short side is ``resize``, always the whole of it."""
        return resize_as_adm(image, self._side)


class ImageReader:
    """Decoded images of a source, fitted to the crops.

    Args:
        source: the encoded images.
        fitting: how they are decoded and resized.
        cached: whether images are kept in memory.
    """

    def __init__(self, source: ImageSource, fitting: Fitting, *, cached: bool = False) -> None:
        self.source = source
        self.fitting = fitting
        self._cache: dict[tuple[int, Shape | None], Picture] | None = {} if cached else None

    def read(self, index: int, cover: Shape | None = None, *, enlarge: bool = False) -> Picture:
        """An image; see ``Fitting.fitted``."""
        if self._cache is not None and (index, cover) in self._cache:
            return self._cache[index, cover]
        content, name = self.source.read(index), self.source.path(index)
        pixels = self.fitting.fitted(content, name, cover, enlarge=enlarge)
        if self._cache is not None:
            self._cache[index, cover] = pixels
        return pixels

    def none_usable(self, errors: Iterable[DataError], cover: Shape | None = None) -> str:
        """Message for a source of which every image that was asked for raised an error."""
        return none_usable(errors, self.source.location, self.fitting.image_size, cover)


def none_usable(
    errors: Iterable[DataError], where: str, image_size: int, cover: Shape | None = None
) -> str:
    """Message for images that all raised an error.

    Args:
        errors: theirs.
        where: what messages call the source.
        image_size: side of the square crops, in pixels.
        cover: shape of the bucket, where the crops were not square.
    """
    small: TooSmallError | None = None
    unreadable, example, count = 0, "", 0
    for error in errors:
        count += 1
        if isinstance(error, TooSmallError):
            if small is None or min(error.size) > min(small.size):
                small = error
        else:
            unreadable += 1
            example = example or str(error)
    damage = f"{unreadable} cannot be read, such as {example}"
    if small is None:
        return f"none of {count} images in {where} can be used: {damage}"
    (width, height), s = small.size, image_size
    rest = f" ({damage})" if unreadable else ""
    if cover is not None:
        return (
            f"none of {count} images in {where} is as large as the bucket of {cover[1]}×{cover[0]} "
            f"pixels; the largest has {width}×{height}{rest}. Lower data.image_size, or leave out "
            "the buckets and set data.resize, which enlarges them"
        )
    return (
        f"none of {count} images in {where} is as large as the crop of {s}×{s} pixels; the "
        f"largest has {width}×{height}{rest}. Set data.image_size to {min(width, height)} or "
        f"less, or data.resize to {s} or more, which enlarges them"
    )


@frozen(kw_only=True)
class Pool:
    """Images of one source that are cropped to one shape and stand in for each other.

    Attributes:
        reader: the images.
        images: their indices in the source; not empty.
        cover: shape that they are resized to cover; None for square crops.
        spare: indices of images that are taken, and enlarged if need be, where none of ``images``
            can be used.
    """

    reader: ImageReader
    images: NDArray[np.int64]
    cover: Shape | None = None
    spare: NDArray[np.int64] = field(factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def shape(self) -> Shape:
        """Height and width of the crops, in pixels."""
        size = self.reader.fitting.image_size
        return self.cover or (size, size)

    def candidates(self, image: int) -> Iterator[tuple[int, bool]]:
        """Source indices of an image and of those that take its place; whether they are spare."""
        number = len(self.images)
        for offset in range(number):
            yield int(self.images[(image + offset) % number]), False
        for index in self.spare:
            yield int(index), True


class Crops(TorchDataset[Crop]):
    """Crops by request; an image that cannot be used is replaced by the next one that can.

    Args:
        pools: the images.
        labelled: whether crops have the labels of their images.
    """

    def __init__(self, pools: Sequence[Pool], *, labelled: bool = False) -> None:
        self._pools = pools
        self._labelled = labelled

    def __getitem__(self, request: CropRequest) -> Crop:
        pool = self._pools[request.pool]
        errors: list[DataError] = []
        for index, spare in pool.candidates(request.image):
            try:
                picture = pool.reader.read(index, pool.cover, enlarge=spare)
            except DataError as error:
                errors.append(error)
                continue
            found = cut(
                request.sample, picture, pool.shape, request.top, request.left,
                skipped=tuple(map(str, errors)),
            )  # fmt: skip
            return found._replace(label=_label(pool, index)) if self._labelled else found
        # An exception would leave a worker with the worker's traceback as its message.
        return Crop(request.sample, None, (), pool.reader.none_usable(errors, pool.cover))


def _label(pool: Pool, index: int) -> int:
    source = pool.reader.source
    label = source.label(index) if isinstance(source, WithLabels) else None
    return -1 if label is None else label


def cut(
    sample: int,
    picture: Picture,
    shape: Shape,
    top: float,
    left: float,
    *,
    skipped: tuple[str, ...] = (),
) -> Crop:
    """A crop out of a fitted image."""
    part = crop(picture, shape, top, left)
    return Crop(sample, torch.from_numpy(part.transpose(2, 0, 1).copy()), skipped, "")
