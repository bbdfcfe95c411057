"""Batches of centre crops in a dataset's order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rpiae.data.datasets import delivered, live_with_parent
from rpiae.data.listed import CentreCrop, EveryImage


class CropBatch(NamedTuple):
    """Some images in the order of their source.

    Attributes:
        crops: all of them, without their pixels.
        pixels: (m, 3, s, s), uint8, of those that can be used.
    """

    crops: tuple[CentreCrop, ...]
    pixels: Tensor

    @property
    def usable(self) -> tuple[CentreCrop, ...]:
        """The images that ``pixels`` are of."""
        return tuple(crop for crop in self.crops if not crop.failure)

    def images(self, device: torch.device) -> Tensor:
        """The pixels as floats in [0, 1]."""
        return self.pixels.to(device).to(torch.float32).div_(255)


def load_batches(images: EveryImage, batches: Sequence[Sequence[int]]) -> Iterator[CropBatch]:
    """Batches of images by their positions in the source.

    Raises:
        DataError: if a process that loads images ended.
    """
    loader = DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of lists
        num_workers=min(images.workers, len(batches)),
        collate_fn=_collated,
        worker_init_fn=live_with_parent,
        generator=torch.Generator(),
    )
    return delivered(loader)


def _collated(crops: list[CentreCrop]) -> CropBatch:
    pixels = [crop.pixels for crop in crops if crop.pixels is not None]
    return CropBatch(
        tuple(crop._replace(pixels=None) for crop in crops),
        torch.stack(pixels) if pixels else torch.empty(0, dtype=torch.uint8),
    )
