"""A dataset that needs no files."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import Batch, HeldOut, StageSteps


class SyntheticImages:
    """Smooth random images as a dataset, the same in every process.

    Args:
        size: side in pixels.
        count: how many.
    """

    notices: tuple[str, ...] = ()

    def __init__(self, size: int, *, count: int = 8) -> None:
        self.num_images = count
        self.image_size = size
        coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.images: Float[Tensor, "n 3 s s"] = F.interpolate(coarse, size=size, mode="bilinear")

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """The images in turn."""
        for samples in steps:
            yield Batch(self.images[[sample % self.num_images for sample in samples]], samples)

    def held_out(self) -> HeldOut:
        """The first two images."""
        names = ("first", "second")
        return HeldOut(self.images[:2], names, dict.fromkeys(names, 1))

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """The first ``count`` images."""
        return self.images[:count]
