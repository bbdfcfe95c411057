"""Metrics of pixels: PSNR, SSIM, LPIPS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from rpiae.evaluation.examination import (
    Accumulator,
    Examination,
    Mean,
    Measured,
    check_side,
)
from rpiae.evaluation.reconstruction import SSIM_WINDOW, psnr_of


class Psnr:
    """PSNR of 8-bit images in dB: ``psnr`` is the mean over images, ``psnr_pooled`` that of the mean
    squared error of all of them, which a few bad images dominate."""

    def __init__(self) -> None:
        self._psnr = Mean()
        self._error = Mean()

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        difference = seen.reconstruction.double() - seen.images.double()
        errors = difference.square().flatten(1).mean(1).cpu()
        self._error.add(errors)
        self._psnr.add(torch.tensor([psnr_of(error) for error in errors.tolist()]))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._psnr, self._error

    def compute(self) -> Measured:
        """Both, in dB; an image without error counts as 100 dB."""
        return Measured(
            values={"psnr": self._psnr.value, "psnr_pooled": psnr_of(self._error.value)}
        )


class Ssim:
    """SSIM of 8-bit images, mean over images, as torchmetrics computes it.

    Source: Wang et al. 2004; the Gaussian window has 11 pixels, and places whose window leaves the
    image do not count.
    """

    def __init__(self) -> None:
        self._mean = Mean()

    def update(self, seen: Examination) -> None:
        """Take in some images.

        Raises:
            UsageError: if they are smaller than the window.
        """
        check_side(seen.images, SSIM_WINDOW, "the window of SSIM")
        found = structural_similarity_index_measure(
            seen.reconstruction, seen.images, data_range=1.0, reduction="none"
        )
        assert isinstance(found, Tensor)
        self._mean.add(found.reshape(-1).cpu())

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return (self._mean,)

    def compute(self) -> Measured:
        """The mean."""
        return Measured(values={"ssim": self._mean.value})


class Lpips:
    """LPIPS of 8-bit images, mean over images.

    Args:
        weights: a torchvision VGG-16 file; downloaded where empty.

    Raises:
        FetchError: if it cannot be had.
        CheckpointError: if it is not a VGG-16's.
    """

    def __init__(self, *, weights: str = "") -> None:
        from rpiae.losses.lpips import (
            LEAST_SIDE,
            LpipsLoss,
            packaged_heads,
            read_state,
            vgg_weights,
        )

        path = vgg_weights(weights)
        loss = LpipsLoss(backbone=read_state(path), heads=read_state(packaged_heads()))
        self._loss = loss.requires_grad_(False).eval()
        self._least = LEAST_SIDE
        self._mean = Mean()

    @torch.no_grad()
    def update(self, seen: Examination) -> None:
        """Take in some images.

        Raises:
            UsageError: if VGG-16 leaves nothing of them.
        """
        check_side(seen.images, self._least, "which VGG-16 halves four times")
        self._loss.to(seen.images.device)
        self._mean.add(self._loss.distance(seen.reconstruction, seen.images).cpu())

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return (self._mean,)

    def compute(self) -> Measured:
        """The mean."""
        return Measured(values={"lpips": self._mean.value})
