"""Decoding, resizing and cropping of single images."""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rpiae.core.errors import DataError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable

#: Pixels of one image: (h, w, 3), RGB.
Pixels = NDArray[np.uint8]

#: Height and width, in pixels.
Shape = tuple[int, int]

#: Orientations in EXIF data that swap height and width.
LYING = (5, 6, 7, 8)
_ORIENTATION = 0x0112

#: Formats that are decoded. Pillow's others are no photographs, and some of them run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000")

#: Pixels that are converted to RGB at a time, so that a large image is not in memory several times.
STRIP = 1 << 22

#: Pixels up to which a resized image is made as a whole; of a larger one, its crops alone.
WHOLE = 1 << 25

#: Pixels that a bicubic filter looks at on each side.
SUPPORT = 2

_PHOTOMETRIC, _BITS_PER_SAMPLE = 262, 258
_WHITE_IS_ZERO = 0
#: PNG chunks that may say how an image is turned.
_TELLING = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


class TooSmallError(DataError):
    """An image that is smaller than the crop.

    Attributes:
        size: width and height of the image, in pixels.
    """

    def __init__(self, name: str, width: int, height: int, crop: Shape) -> None:
        super().__init__(
            f"{name}: {width}×{height} pixels are less than the crop of {crop[1]}×{crop[0]}"
        )
        self.size = (width, height)
        self._made_of = (name, width, height, crop)

    def __reduce__(self) -> tuple[type[TooSmallError], tuple[str, int, int, Shape]]:
        return TooSmallError, self._made_of


class Piecewise:
    """An image that is too long to be resized as a whole: its crops are resized one by one.

    They are what crops of the whole would be, up to rounding and clipping between the passes over
    rows and columns, whose order Pillow chooses by the sizes.

    Args:
        image: RGB.
        size: height and width that it is resized to, in pixels.

    Attributes:
        shape: (h, w, 3) of the resized image.
    """

    def __init__(self, image: Image.Image, size: Shape) -> None:
        self._image = image
        self.shape = (*size, 3)

    def region(self, y: int, x: int, height: int, width: int) -> Pixels:
        """The pixels (height, width, 3) from row y and column x on."""
        image, (whole_height, whole_width, _) = self._image, self.shape
        left, right, first, beyond = _around(x, width, whole_width, image.width)
        top, bottom, upper, under = _around(y, height, whole_height, image.height)
        # Pillow's box has single precision, so it is put on what is cut out with whole numbers.
        cut = image.crop((first, upper, beyond, under))
        box = (left - first, top - upper, right - first, bottom - upper)
        return np.asarray(cut.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _around(start: int, length: int, whole: int, source: int) -> tuple[float, float, int, int]:
    """An interval of a resized side on the source's, and that with what the filter looks at."""
    scale = source / whole
    left, right = start * scale, min((start + length) * scale, source)
    margin = math.ceil(SUPPORT * max(scale, 1.0))
    return left, right, max(0, int(left) - margin), min(source, math.ceil(right) + margin)


#: An image that crops are taken from.
Picture = Pixels | Piecewise


def decode(source: bytes | str | Path, *, name: str | None = None, min_side: int = 1) -> Pixels:
    """Decode one image of any size to 8-bit RGB.

    It is turned as its EXIF data or XMP say, transparent parts become white, 16-bit grey is scaled
    to 8 bits (of 16-bit colours the upper 8 are taken), and colour profiles are ignored. Grey of 32
    bits is taken for 16-bit grey, as which Pillow and others store it; values beyond that are
    refused. Of several frames the first is taken.

    Args:
        source: the content of an image file, or its path.
        name: what messages call it; the path where not given.
        min_side: least length of the short side, in pixels; checked before the pixels are decoded.

    Returns:
        (h, w, 3), uint8.

    Raises:
        TooSmallError: if the short side is below ``min_side``.
        DataError: if it cannot be read, is damaged, or has pixels without a defined white.
    """
    with open_rgb(source, name=name, min_side=min_side) as image:
        return np.asarray(image)


@contextlib.contextmanager
def open_rgb(
    source: bytes | str | Path, *, name: str | None = None, min_side: int = 1
) -> Iterator[Image.Image]:
    """The image that ``decode`` gives, for what makes less of it.

    Whatever goes wrong with it inside, a lack of memory too, becomes a DataError that names it.

    Raises:
        TooSmallError: if the short side is below ``min_side``.
        DataError: if it cannot be read, is damaged, or has pixels without a defined white.
    """
    with _opened(source, name) as (image, known_as):
        if min(image.size) < min_side:
            raise TooSmallError(known_as, *image.size, crop=(min_side, min_side))
        yield _upright_rgb(image, known_as)


def shape_of(source: bytes | str | Path, *, name: str | None = None) -> Shape:
    """Height and width of an image as ``decode`` gives it, from its header alone.

    Raises:
        DataError: if it cannot be read, or is no image.
    """
    with _opened(source, name) as (image, _):
        if image.format == "PNG" and _tells_after_pixels(image):
            image.load()
        # What comes before the pixels; the method of PNG's own class decodes them for the rest.
        lying = Image.Image.getexif(image).get(_ORIENTATION) in LYING
        width, height = image.size
        if image.format == "TIFF" and _ORIENTATION in image.tag_v2:  # type: ignore[attr-defined]
            lying = False  # Pillow has swapped them already
    return (width, height) if lying else (height, width)


def _tells_after_pixels(image: Image.Image) -> bool:
    """Whether a PNG has chunks after its pixels that may say how it is turned."""
    file: Any = image.fp  # type: ignore[attr-defined]  # of an image from a file
    here = file.tell()
    file.seek(8)
    passed = False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4]), head[4:]
        if kind == b"IEND" or (passed and kind in _TELLING):
            break
        passed = passed or kind == b"IDAT"
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(here)
    return passed and head[4:] in _TELLING


@contextlib.contextmanager
def _opened(source: bytes | str | Path, name: str | None) -> Iterator[tuple[Image.Image, str]]:
    """An image whose pixels are not decoded yet, and its name; everything raised is a DataError."""
    if name is None:
        name = "image" if isinstance(source, bytes) else os.fspath(source)
    name = printable(name)
    try:
        # Pillow warns of oddities in the metadata of images that it decodes well.
        with (
            warnings.catch_warnings(action="ignore"),
            io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file,
            Image.open(file, formats=FORMATS) as image,
        ):
            yield image, name
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image of a known format ({', '.join(FORMATS)})") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    except MemoryError:
        raise DataError(f"{name}: there is not enough memory to decode it") from None
    except Exception as error:  # Pillow's parsers let out whatever they stumble over
        raise DataError(f"{name}: {error or type(error).__name__}") from error


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    # Only the decoder's own name for the pixels tells these from others of their mode, and only
    # before they are decoded.
    stored = image.tile[0].args if image.format == "PNG" and image.tile else ""  # type: ignore[attr-defined]
    bits = _tag(image, _BITS_PER_SAMPLE) if image.format == "TIFF" else 16
    inverted = image.format == "TIFF" and _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    transparent = image.info.get("transparency")
    if image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no defined white; save it with 8 bits")
    if image.mode == "I" and image.format == "TIFF":
        extrema: Any = image.getextrema()  # of one band
        low, high = extrema
        if bits == 16 or low < 0 or high > 65535:  # 16 bits are signed ones here
            kind = "signed 16-bit" if bits == 16 else "32-bit"
            raise DataError(f"{name}: {kind} pixels have no defined white; save it with 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        white = 2 ** min(bits, 16) - 1
        return _in_strips(image, partial(_grey, white=white, inverted=inverted, hole=transparent))
    if stored == "RGB;16B" and transparent is not None:
        raise DataError(
            f"{name}: a transparent colour of 16 bits cannot be told from its neighbours in the 8 "
            "bits that are decoded; save it with an alpha channel"
        )
    if isinstance(transparent, int) and stored in ("L;2", "L;4"):
        # Pillow scales the pixels to 8 bits and leaves the transparent one as it is.
        image.info["transparency"] = transparent * (255 // (2 ** int(stored[2:]) - 1))
    if image.mode == "RGB" and transparent is None:
        return image
    return _in_strips(image, _flattened if image.has_transparency_data else _as_rgb)


def _tag(image: Image.Image, number: int) -> int:
    """A whole number, or the first of several, among a TIFF's tags."""
    found = image.tag_v2.get(number, 1)  # type: ignore[attr-defined]
    return int(found[0] if isinstance(found, tuple) else found)


def _in_strips(image: Image.Image, converted: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An image in RGB that is converted some rows at a time."""
    made = Image.new("RGB", image.size)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        made.paste(converted(image.crop(box)), box)
    return made


def _as_rgb(strip: Image.Image) -> Image.Image:
    return strip.convert("RGB")


def _flattened(strip: Image.Image) -> Image.Image:
    """What is seen on white."""
    rgba = strip.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _grey(strip: Image.Image, *, white: int, inverted: bool, hole: int | None) -> Image.Image:
    """Grey of up to 16 bits, of which one value may be transparent."""
    stored = np.asarray(strip).astype(np.int64)
    levels = (white - stored if inverted else stored) * 255
    scaled = ((levels + white // 2) // white).astype(np.uint8)
    if hole is not None:
        scaled[stored == hole] = 255
    return Image.fromarray(scaled).convert("RGB")


def short_side_size(shape: Shape, side: int) -> Shape:
    """Height and width of an image that is resized so that its short side is ``side``."""
    short = min(shape)
    return round(shape[0] * side / short), round(shape[1] * side / short)


def cover_size(shape: Shape, cover: Shape) -> Shape:
    """Height and width of an image that is resized to the smallest one that holds ``cover``."""
    scale = max(cover[0] / shape[0], cover[1] / shape[1])
    # The side that decides is met exactly, whatever the product rounds to.
    return max(cover[0], round(shape[0] * scale)), max(cover[1], round(shape[1] * scale))


def bicubic(image: Image.Image, size: Shape) -> Picture:
    """An RGB image resized with Pillow's bicubic filter; one above ``WHOLE`` pixels in pieces."""
    height, width = size
    if height * width > WHOLE and (width, height) != image.size:
        return Piecewise(image, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def resize_as_adm(image: Image.Image, side: int) -> Picture:
    """Resize an RGB image so that its short side is ``side``, as ADM does.

    It is halved with a box filter, odd sides rounded down, as long as its short side is at least
    twice ``side``; Pillow's bicubic filter does the rest, and enlarges smaller images.

    Source: Dhariwal and Nichol, arXiv 2105.05233, whose code most published numbers on ImageNet
    are measured with.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    return bicubic(image, (round(image.height * scale), round(image.width * scale)))


def crop(picture: Picture, shape: Shape, top: float, left: float) -> Pixels:
    """A crop (*shape, 3).

    Args:
        picture: (h, w, 3), at least as large as the crop.
        shape: height and width of the crop, in pixels.
        top, left: position in [0, 1]; 0 is the first possible offset and 1 the last, and equal parts
            of the interval lead to every offset.
    """
    (height, width), (h, w) = picture.shape[:2], shape
    y = min(int(top * (height - h + 1)), height - h)
    x = min(int(left * (width - w + 1)), width - w)
    return _region(picture, y, x, h, w)


def centre_crop(picture: Picture, height: int, width: int) -> Pixels:
    """The middle (height, width, 3) of an image that is at least as large."""
    y, x = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return _region(picture, y, x, height, width)


def _region(picture: Picture, y: int, x: int, height: int, width: int) -> Pixels:
    if isinstance(picture, Piecewise):
        return picture.region(y, x, height, width)
    return picture[y : y + height, x : x + width]


def to_tensor(pixels: Pixels) -> Float[Tensor, "3 h w"]:
    """An image (h, w, 3) as floats in [0, 1], channels first."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)


def to_image(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """An image in [0, 1] as an 8-bit picture (rounded)."""
    values = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(values))
