"""Decoding, resizing and cropping of single images."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from rpiae.core.errors import DataError

#: Pixels of one image: (h, w, 3), RGB.
Pixels = NDArray[np.uint8]

#: Height and width, in pixels.
Shape = tuple[int, int]

#: Orientations in EXIF data that swap height and width.
LYING = (5, 6, 7, 8)
_ORIENTATION = 0x0112

#: Formats that are decoded. Pillow's others are no photographs, and some of them run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")


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


def decode(source: bytes | str | Path, *, name: str | None = None, min_side: int = 1) -> Pixels:
    """Decode one image of any size to 8-bit RGB.

    The rotation in its EXIF data is applied, transparent parts become white, 16-bit grey is scaled
    to 8 bits, and colour profiles are ignored. Of several frames the first is taken.

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
    with _opened(source, name) as (image, known_as):
        if min(image.size) < min_side:
            raise TooSmallError(known_as, *image.size, crop=(min_side, min_side))
        image.load()
        upright = ImageOps.exif_transpose(image)
        return np.asarray(_rgb(upright, known_as))


def shape_of(source: bytes | str | Path, *, name: str | None = None) -> Shape:
    """Height and width of an image as ``decode`` gives it, from its header alone.

    Raises:
        DataError: if it cannot be read, or is no image.
    """
    with _opened(source, name) as (image, _):
        width, height = image.size
        exif = image.getexif() if image.format != "PNG" else Image.Exif()
        # Pillow decodes a whole PNG for its EXIF data; what comes before the pixels is read already.
        if image.format == "PNG" and "exif" in image.info:
            exif.load(image.info["exif"])
        lying = exif.get(_ORIENTATION) in LYING
    return (width, height) if lying else (height, width)


@contextlib.contextmanager
def _opened(source: bytes | str | Path, name: str | None) -> Iterator[tuple[Image.Image, str]]:
    """An image whose pixels are not decoded yet, and its name; everything raised is a DataError."""
    if name is None:
        name = "image" if isinstance(source, bytes) else os.fspath(source)
    try:
        # Pillow warns of oddities in the metadata of images that it decodes well.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
            ) as image,
        ):
            yield image, name
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{name}: not an image of a known format ({', '.join(FORMATS)})") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from None
    except Exception as error:  # Pillow's parsers let out whatever they stumble over
        raise DataError(f"{name}: {error or type(error).__name__}") from error


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no defined white; save it with 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{name}: 32-bit pixels have no defined white; save it with 8 bits")
        # 65535 = 257 · 255
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def resize_short_side(pixels: Pixels, side: int) -> Pixels:
    """Resize an image (h, w, 3) with Pillow's bicubic filter so that its short side is ``side``.

    The aspect ratio is kept up to rounding.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short == side:
        return pixels
    size = (round(width * side / short), round(height * side / short))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def resize_as_adm(pixels: Pixels, side: int) -> Pixels:
    """Resize an image (h, w, 3) so that its short side is ``side``, as ADM does.

    It is halved with a box filter, odd sides rounded down, as long as its short side is at least
    twice ``side``; Pillow's bicubic filter does the rest, and enlarges smaller images.

    Source: Dhariwal and Nichol, arXiv 2105.05233, whose ``center_crop_arr`` most published numbers on
    ImageNet are measured with.
    """
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def resize_to_cover(pixels: Pixels, shape: Shape) -> Pixels:
    """Resize an image (h, w, 3) with Pillow's bicubic filter to the smallest one that holds ``shape``.

    The aspect ratio is kept up to rounding.
    """
    height, width = pixels.shape[:2]
    scale = max(shape[0] / height, shape[1] / width)
    # The side that decides is met exactly, whatever the product rounds to.
    size = (max(shape[1], round(width * scale)), max(shape[0], round(height * scale)))
    if size == (width, height):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def crop(pixels: Pixels, shape: Shape, top: float, left: float) -> Pixels:
    """A crop (*shape, 3).

    Args:
        pixels: (h, w, 3), at least as large as the crop.
        shape: height and width of the crop, in pixels.
        top, left: position in [0, 1]; 0 is the first possible offset and 1 the last, and equal parts
            of the interval lead to every offset.
    """
    (height, width), (h, w) = pixels.shape[:2], shape
    y = min(int(top * (height - h + 1)), height - h)
    x = min(int(left * (width - w + 1)), width - w)
    return pixels[y : y + h, x : x + w]


def centre_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle (height, width, 3) of an image that is at least as large."""
    y, x = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[y : y + height, x : x + width]


def to_tensor(pixels: Pixels) -> Float[Tensor, "3 h w"]:
    """An image (h, w, 3) as floats in [0, 1], channels first."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)


def to_image(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """An image in [0, 1] as an 8-bit picture (rounded)."""
    values = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(values))
