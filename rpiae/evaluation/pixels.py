"""Metrics of pixels: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from rpiae.core.errors import UsageError
from rpiae.evaluation.accumulators import Accumulator, Mean
from rpiae.evaluation.examination import Examination, Measured, check_side
from rpiae.losses.lpips import LEAST_SIDE, LpipsLoss, packaged_heads, read_state, vgg_weights

#: PSNR in dB that an image without any error counts as; 8-bit images that differ reach at most 99.
EXACT = 100.0

#: Side of SSIM's Gaussian window, in pixels; a smaller image has no SSIM.
SSIM_WINDOW = 11


def psnr_of(errors: Tensor | float) -> Tensor:
    """Peak signal-to-noise ratios in dB of mean squared errors, for a peak of 1, at most ``EXACT``;
    NaN for NaN."""
    errors = torch.as_tensor(errors, dtype=torch.float64)
    return torch.where(errors < 1e-10, EXACT, -10 * errors.log10())


def squared_errors(
    made: Float[Tensor, "n 3 h w"], images: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """Mean squared error of every picture, float64."""
    return (made.double() - images.double()).square().flatten(1).mean(1)


def ssim_of(
    made: Float[Tensor, "n 3 h w"], images: Float[Tensor, "n 3 h w"]
) -> Float[Tensor, " n"]:
    """Structural similarity of every picture of at least 11 pixels a side, as torchmetrics computes it.

    Source: Wang et al. 2004; the Gaussian window has 11 pixels, and places whose window leaves the
    image do not count.
    """
    found = structural_similarity_index_measure(made, images, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found.reshape(-1)


def pairs(seen: Examination) -> Iterator[tuple[Float[Tensor, "n 3 h w"], Float[Tensor, "n 3 h w"]]]:
    """Whole pictures as they were reconstructed, and as they are."""
    return zip(seen.whole(seen.reconstruction), seen.whole(seen.images), strict=True)


class Psnr:
    """PSNR of 8-bit images in dB: ``psnr`` is the mean over pictures, ``psnr_pooled`` that of the mean
    squared error of all of them, which a few bad pictures dominate."""

    def __init__(self) -> None:
        self._psnr = Mean()
        self._error = Mean()

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        for made, images in pairs(seen):
            errors = squared_errors(made, images)
            self._error.add(errors)
            self._psnr.add(psnr_of(errors))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._psnr, self._error

    def compute(self) -> Measured:
        """Both, in dB; a picture without error counts as 100 dB."""
        pooled = float(psnr_of(self._error.value))
        return Measured(values={"psnr": self._psnr.value, "psnr_pooled": pooled})


class Ssim:
    """SSIM of 8-bit images, mean over the pictures that are no smaller than its window."""

    def __init__(self) -> None:
        self._mean = Mean()

    def update(self, seen: Examination) -> None:
        """Take in some images.

        Raises:
            UsageError: if they are smaller than the window, and no tiles of larger pictures.
        """
        if not seen.pictures:
            check_side(seen.images, SSIM_WINDOW, "the window of SSIM")
        for made, images in pairs(seen):
            if min(images.shape[-2:]) >= SSIM_WINDOW:
                self._mean.add(ssim_of(made, images))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return (self._mean,)

    def compute(self) -> Measured:
        """The mean.

        Raises:
            UsageError: if every picture is smaller than the window.
        """
        if not self._mean.count:
            raise UsageError(
                f"no picture has {SSIM_WINDOW}×{SSIM_WINDOW} pixels, the window of SSIM"
            )
        return Measured(values={"ssim": self._mean.value})


@functools.cache
def shared_lpips(weights: str) -> LpipsLoss:
    """LPIPS with the VGG-16 of a file, the same for all metrics, so that it is loaded once."""
    loss = LpipsLoss(backbone=read_state(vgg_weights(weights)), heads=read_state(packaged_heads()))
    return loss.requires_grad_(False).eval()


class Lpips:
    """LPIPS of 8-bit images, mean over images.

    Args:
        weights: a torchvision VGG-16 file; downloaded where empty.

    Raises:
        FetchError: if it cannot be had.
        CheckpointError: if it is not a VGG-16's.
    """

    def __init__(self, *, weights: str = "") -> None:
        self._loss = shared_lpips(weights)
        self._mean = Mean()

    @torch.no_grad()
    def update(self, seen: Examination) -> None:
        """Take in some images.

        Raises:
            UsageError: if VGG-16 leaves nothing of them.
        """
        check_side(seen.images, LEAST_SIDE, "which VGG-16 halves four times")
        self._loss.to(seen.images.device)
        self._mean.add(self._loss.distance(seen.reconstruction, seen.images))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return (self._mean,)

    def compute(self) -> Measured:
        """The mean."""
        return Measured(values={"lpips": self._mean.value})
