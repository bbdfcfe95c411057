"""Batches of centre crops in a dataset's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rpiae.data.listed import CentreCrop, EveryImage
from rpiae.data.loading import Handed, handed_over, loaded, loader


class CropBatch(NamedTuple):
    """Some images in the order of their source.

    Attributes:
        crops: all of them, without their pixels.
        pixels: (m, 3, s, s), uint8, of those that can be used.
    """

    crops: tuple[CentreCrop, ...]
    pixels: Handed

    @property
    def usable(self) -> tuple[CentreCrop, ...]:
        """The images that ``pixels`` are of."""
        return tuple(crop for crop in self.crops if not crop.failure)

    def images(self, device: torch.device) -> Tensor:
        """The pixels as floats in [0, 1]."""
        return torch.as_tensor(self.pixels).to(device).to(torch.float32).div_(255)


def load_batches(images: EveryImage, batches: Sequence[Sequence[int]]) -> Iterator[CropBatch]:
    """Batches of images by their positions in the source.

    Raises:
        DataError: if a process that loads images ended.
    """
    workers = min(images.workers, len(batches))
    return loaded(loader(images, workers=workers, batch_sampler=batches, collate_fn=_collated))


def _collated(crops: list[CentreCrop]) -> CropBatch:
    pixels = [crop.pixels for crop in crops if crop.pixels is not None]
    return CropBatch(
        tuple(crop._replace(pixels=None) for crop in crops),
        handed_over(torch.stack(pixels)) if pixels else torch.empty(0, dtype=torch.uint8),
    )
