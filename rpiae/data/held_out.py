"""Which images are held out, and their centre crops."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch

from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import HeldOut
from rpiae.core.runtime.names import printable
from rpiae.data.crops import none_usable
from rpiae.data.images import Picture, centre_crop, to_tensor
from rpiae.data.orders import sampled

logger = logging.getLogger(__name__)


def check_held_out(held_out: int) -> None:
    """Refuse to hold out nothing.

    Raises:
        UsageError: if ``held_out`` is below one.
    """
    if held_out < 1:
        raise UsageError(f"data.held_out must be at least 1, got {held_out}")


def held_out_indices(num_images: int, held_out: int) -> list[int]:
    """Indices of the held-out images, drawn once and for all; at most half of them, and at least one."""
    return sampled(num_images, most_held_out(num_images, held_out), "held-out")


def most_held_out(num_images: int, held_out: int) -> int:
    """How many images are held out: as asked for, at most half of them, and at least one."""
    return max(1, min(held_out, num_images // 2))


def trained_on_itself(location: str, one: str = "image") -> str:
    """What is said of a source of one image, or of one of something else."""
    return (
        f"{printable(location)} has a single {one}: it is trained on and measured on, so scores say "
        "how well it is learned by heart"
    )


def centre_crops(
    images: Iterable[tuple[str, Callable[[], Picture]]], *, image_size: int, where: str
) -> HeldOut:
    """Held-out images from their names and what reads them; unusable ones are logged and left out.

    Raises:
        DataError: if none of them can be used.
    """
    crops, groups = [], []
    errors: list[DataError] = []
    for name, read in images:
        try:
            pixels = read()
        except DataError as error:
            logger.warning("held-out image left out: %s", error)
            errors.append(error)
            continue
        crops.append(to_tensor(centre_crop(pixels, image_size, image_size)))
        groups.append(name)
    if not crops:
        raise DataError("held out: " + none_usable(errors, where, image_size))
    return HeldOut(torch.stack(crops), tuple(groups), dict.fromkeys(groups, 1))
