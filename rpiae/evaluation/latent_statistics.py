"""What the channels and places of a latent carry: spread, rate, rank and spatial frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation.accumulators import Gathered
from rpiae.evaluation.frechet import FeatureMoments

#: Share of the liveliest channel's standard deviation below which a channel counts as dead.
DEAD = 0.01

#: Highest frequency of a grid along a side, in cycles per place.
NYQUIST = 0.5


class LatentStatistics(Gathered):
    """Statistics of latents over images and places.

    Latents are added in any number of parts and of any grids; the numbers do not depend on how they
    were divided, up to rounding in float64.

    Args:
        channels: of a latent.

    Attributes:
        images: so far.
        moments: of the channels, every place of every image a sample.
        gaussian_images, gaussian_places: images, and places of them, that came with a Gaussian.
        divergence: sum of mean² + var − 1 − logvar over those places, (C,), float64.
        power: per grid (h, w), the sum over images and channels of the squared magnitude of the
            discrete Fourier transform, (h, w), float64.
    """

    def __init__(self, channels: int) -> None:
        self.images = 0
        self.moments = FeatureMoments(channels)
        self.gaussian_images = 0
        self.gaussian_places = 0
        self.divergence = torch.zeros(channels, dtype=torch.float64)
        self.power: dict[tuple[int, int], Tensor] = {}

    def add(
        self,
        latent: Float[Tensor, "b c h w"],
        *,
        mean: Float[Tensor, "b c h w"] | None = None,
        logvar: Float[Tensor, "b c h w"] | None = None,
    ) -> None:
        """Add modes of posteriors, and the posteriors' moments where they are Gaussians.

        Raises:
            UsageError: for shapes that do not fit, or only one of mean and logvar.
        """
        channels = self.moments.dimensions
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise UsageError(
                f"expected latents of shape (b, {channels}, h, w), got {tuple(latent.shape)}"
            )
        if (mean is None) != (logvar is None):
            raise UsageError("a Gaussian has a mean and a logvar; give both or neither")
        if mean is not None and logvar is not None:
            if mean.shape != latent.shape or logvar.shape != latent.shape:
                raise UsageError(
                    f"latents {tuple(latent.shape)}, means {tuple(mean.shape)} and logvars "
                    f"{tuple(logvar.shape)} have one shape"
                )
            mu, log = mean.detach().double(), logvar.detach().double()
            divergence = (mu.square() + log.exp() - 1 - log).sum((0, 2, 3))
            self.divergence = self.divergence.to(divergence.device) + divergence
            self.gaussian_images += len(latent)
            self.gaussian_places += latent.numel() // channels
        values = latent.detach().double()
        self.images += len(latent)
        self.moments.add(values.movedim(1, -1).flatten(0, -2))
        if values.numel():
            self._add_power((latent.shape[2], latent.shape[3]), _power(values))

    def merge(self, other: LatentStatistics) -> None:
        """Add all that another one has seen."""
        self.moments.merge(other.moments)
        self.images += other.images
        self.gaussian_images += other.gaussian_images
        self.gaussian_places += other.gaussian_places
        self.divergence = self.divergence + other.divergence
        for grid, power in other.power.items():
            self._add_power(grid, power)

    @property
    def mean(self) -> Float[Tensor, " c"]:
        """Of each channel, float64; NaN where nothing was added."""
        return self.moments.mean if self.moments.count else self.moments.mean * math.nan

    @property
    def std(self) -> Float[Tensor, " c"]:
        """Standard deviation of each channel, of the population, float64; NaN where nothing was added."""
        return (self.moments.scatter.diagonal() / (self.moments.count or math.nan)).sqrt()

    @property
    def kl(self) -> Float[Tensor, " c"] | None:
        """Mean of mean² + var − 1 − logvar per channel, float64; None without Gaussians.

        Source: L_KL of arXiv 2603.19206 (twice the usual KL).
        """
        return self.divergence / self.gaussian_places if self.gaussian_places else None

    @property
    def rate_bits(self) -> float | None:
        """Bits per image that the Gaussians say beyond the prior; None without Gaussians.

        KL(posterior ‖ N(0, 1))/ln 2 summed over all latent values of an image, mean over images.
        """
        if not self.gaussian_images:
            return None
        return 0.5 * self.divergence.sum().item() / math.log(2) / self.gaussian_images

    def active_channels(self, threshold: float = DEAD) -> int:
        """Channels whose standard deviation is at least ``threshold`` times the liveliest one's."""
        spread = self.std
        return int((spread >= threshold * spread.max()).sum())

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the covariance's normalised eigenvalues, 1 to C.

        0 where nothing varies.

        Source: Roy and Vetterli 2007, on the channels' covariance.
        """
        values = torch.linalg.eigvalsh(self.moments.scatter).clamp(min=0)
        total = values.sum()
        if not total > 0:
            return 0.0
        return float(torch.special.entr(values / total).sum().exp())

    @property
    def spectrum(self) -> Float[Tensor, " r"]:
        """Power of the latent maps by spatial frequency, sum 1, float64.

        Each map less its mean; power averaged over the ring of every whole radius r, in cycles per
        longer side of the grid, from 0 (whose power is 0) to the Nyquist frequency; corners of the
        plane beyond it are left out. All 0 where no map varies.

        Raises:
            UsageError: if latents of several grids were added, or none.
        """
        if len(self.power) != 1:
            raise UsageError(f"a spectrum takes latents of one grid, got {sorted(self.power)}")
        [(grid, power)] = self.power.items()
        longer = max(grid)
        radius = (_frequencies(grid) * longer + 0.5).long().flatten()
        rings = int(NYQUIST * longer) + 1
        inside = radius < rings
        sums = torch.zeros(rings, dtype=torch.float64)
        sums.index_add_(0, radius[inside], power.flatten()[inside])
        averages = sums / radius[inside].bincount(minlength=rings).clamp(min=1)
        total = averages.sum()
        return averages / total if total > 0 else averages

    @property
    def high_frequency_share(self) -> float:
        """Share of the latent maps' power above half the Nyquist frequency, 0 to 1.

        Over all images, channels and the whole plane of frequencies; white noise on a large grid has
        1 − π/16 ≈ 0.80 of it there. 0 where no map varies.
        """
        low = high = 0.0
        for grid, power in self.power.items():
            # Over h·w, power is the sum of squares of the maps (Parseval), whatever the grid.
            scaled = power / power.numel()
            above = _frequencies(grid) > NYQUIST / 2
            low += scaled[~above].sum().item()
            high += scaled[above].sum().item()
        return high / (low + high) if high else 0.0

    def _add_power(self, grid: tuple[int, int], power: Tensor) -> None:
        self.power[grid] = self.power[grid] + power if grid in self.power else power


def compression(
    image_shape: Sequence[int],
    latent_shape: Sequence[int],
    *,
    bits_per_value: float = 16,
    codebook_size: int | None = None,
) -> dict[str, float]:
    """How many times smaller than an 8-bit image or clip its latent is.

    Args:
        image_shape: (3, H, W), or (3, T, H, W).
        latent_shape: (C, h, w), or (C, t, h, w).
        bits_per_value: of a stored latent.
        codebook_size: entries of the codebook where every place of the latent is one of them.

    Returns:
        ``values``: values of the image per value of the latent; ``bits``: bits of the image per bit
        of the latent, log₂ of the codebook's size per place where there is one.

    Raises:
        UsageError: for shapes, bits or a codebook that hold nothing.
    """
    for shape in (image_shape, latent_shape):
        if len(shape) not in (3, 4) or min(shape) < 1:
            raise UsageError(
                "shapes are (channels, height, width) or (channels, frames, height, width), all "
                f"positive, got {shape}"
            )
    if bits_per_value <= 0:
        raise UsageError(f"a value takes more than 0 bits, got {bits_per_value}")
    if codebook_size is not None and codebook_size < 2:
        raise UsageError(f"a codebook has at least 2 entries, got {codebook_size}")
    pixels, values = math.prod(image_shape), math.prod(latent_shape)
    if codebook_size is None:
        bits = values * bits_per_value
    else:
        bits = math.prod(latent_shape[1:]) * math.log2(codebook_size)
    return {"values": pixels / values, "bits": 8 * pixels / bits}


def _power(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "h w"]:
    """Squared magnitude of the Fourier transform of every map less its mean, summed over maps."""
    # From the first place on, so that a map that does not vary has no power at all.
    maps = latents - latents[..., :1, :1]
    maps = maps - maps.mean(dim=(-2, -1), keepdim=True)
    power: Tensor = torch.fft.fft2(maps).abs().square().sum(dim=(0, 1))
    return power


def _frequencies(grid: tuple[int, int]) -> Float[Tensor, "h w"]:
    """Cycles per place of each coefficient of the transform."""
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in grid)
    return torch.hypot(rows[:, None], columns)
