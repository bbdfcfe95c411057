"""Metrics of pixels: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from rpiae.core.errors import UsageError
from rpiae.evaluation.accumulators import Accumulator, ByFrame, Mean
from rpiae.evaluation.examination import Examination, Measured, check_side
from rpiae.evaluation.interpolation import frames_per_latent
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


class ByPosition(ByFrame):
    """Means of numbers of pictures that are the frames of clips, by their position: the first frame;
    the first group of frames after it that have a step of the latent together; and the rest.

    Attributes:
        group: frames in a group.
    """

    def __init__(self) -> None:
        super().__init__()
        self.group = 0

    def add_pictures(self, seen: Examination, numbers: Sequence[Tensor]) -> None:
        """Add numbers of whole pictures, in parts and in their order; none where they are images."""
        frames = seen.given.num_frames
        if frames and numbers:
            self.group = frames_per_latent(seen.model)
            self.add(torch.cat(list(numbers)).reshape(-1, frames))

    def merge(self, other: ByFrame) -> None:
        """Add all that another one has seen."""
        super().merge(other)
        assert isinstance(other, ByPosition)
        self.group = max(self.group, other.group)

    def measured(self, name: str, values: dict[str, float]) -> Measured:
        """Numbers by their names, those of the positions that there are, and, under details, the mean
        of every frame."""
        if not len(self.counts):
            return Measured(values=values)
        places = {
            "first": slice(0, 1),
            "group": slice(1, 1 + self.group),
            "rest": slice(1 + self.group, None),
        }
        found = {
            f"{name}_{place}": self.mean(frames)
            for place, frames in places.items()
            if len(self.counts[frames])
        }
        return Measured(values=values | found, details={f"{name}_by_frame": self.means.tolist()})


class Psnr:
    """PSNR of 8-bit images in dB: ``psnr`` is the mean over pictures, ``psnr_pooled`` that of the mean
    squared error of all of them, which a few bad pictures dominate.

    Of clips, every frame is a picture; ``psnr_first``, ``psnr_group`` and ``psnr_rest`` are the means
    over those at a position, see ``ByPosition``.
    """

    def __init__(self) -> None:
        self._psnr = Mean()
        self._error = Mean()
        self._by_position = ByPosition()

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        found = []
        for made, images in pairs(seen):
            errors = squared_errors(made, images)
            self._error.add(errors)
            found.append(psnr_of(errors))
            self._psnr.add(found[-1])
        self._by_position.add_pictures(seen, found)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._psnr, self._error, self._by_position

    def compute(self) -> Measured:
        """All, in dB; a picture without error counts as 100 dB."""
        pooled = float(psnr_of(self._error.value))
        values = {"psnr": self._psnr.value, "psnr_pooled": pooled}
        return self._by_position.measured("psnr", values)


class Ssim:
    """SSIM of 8-bit images, mean over the pictures that are no smaller than its window; of clips also
    by position, as PSNR."""

    def __init__(self) -> None:
        self._mean = Mean()
        self._by_position = ByPosition()

    def update(self, seen: Examination) -> None:
        """Take in some images.

        Raises:
            UsageError: if they are smaller than the window, and no tiles of larger pictures.
        """
        if not seen.pictures:
            check_side(seen.images, SSIM_WINDOW, "the window of SSIM")
        found = []
        for made, images in pairs(seen):
            if min(images.shape[-2:]) >= SSIM_WINDOW:
                found.append(ssim_of(made, images))
                self._mean.add(found[-1])
        self._by_position.add_pictures(seen, found)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._mean, self._by_position

    def compute(self) -> Measured:
        """The mean.

        Raises:
            UsageError: if every picture is smaller than the window.
        """
        if not self._mean.count:
            raise UsageError(
                f"no picture has {SSIM_WINDOW}×{SSIM_WINDOW} pixels, the window of SSIM"
            )
        return self._by_position.measured("ssim", {"ssim": self._mean.value})


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
