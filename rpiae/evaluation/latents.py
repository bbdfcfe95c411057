"""The metric of latents: what a diffusion model will find."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import QuantisedPosterior
from rpiae.core.model.folding import fold
from rpiae.evaluation.accumulators import Accumulator, Gathered, Once
from rpiae.evaluation.examination import Examination, Measured
from rpiae.evaluation.interpolation import frames_per_latent
from rpiae.evaluation.latent_statistics import LatentStatistics, compression


class _Seen(Gathered):
    """Statistics of latents, of which every step in time is one, and what else is told by the first
    of them.

    Attributes:
        frames: images, or frames of a clip, per step.
        values_per_second: of the latent of a clip that goes on; None where the frame rate is not known.
    """

    def __init__(self, seen: Examination) -> None:
        latent = seen.latent
        self.statistics = LatentStatistics(latent.shape[1])
        self.frames = (seen.num_frames or 1) / (latent.shape[2] if seen.num_frames else 1)
        self.values_per_second: float | None = None
        if seen.num_frames and seen.frame_rate is not None:
            per_step = latent[0, :, 0].numel()
            self.values_per_second = per_step * seen.frame_rate / frames_per_latent(seen.model)
        self.image, self.latent = tuple(seen.images.shape[1:]), tuple(latent.shape[1:])
        posterior = seen.posterior
        self.codebook: int | None = None
        if isinstance(posterior, QuantisedPosterior):
            self.codebook = posterior.codebook_size

    def merge(self, other: _Seen) -> None:
        """Add all that another one has seen."""
        self.statistics.merge(other.statistics)


class Latents:
    """Spread, KL, activity, rank, spatial spectrum and size of the latents.

    Every step of a clip's latent counts as an image's; sizes and the rate are of the clips as they are
    measured, and the values per second of a clip that goes on.

    Args:
        bits_per_value: that a latent value is stored in.
    """

    def __init__(self, *, bits_per_value: int = 16) -> None:
        self._bits = bits_per_value
        self._gathered = Once()

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        seen = seen.given
        if self._gathered.made is None:
            self._gathered.made = _Seen(seen)
        mean, logvar = map(_steps, seen.moments) if seen.moments else (None, None)
        self._gathered.made.statistics.add(_steps(seen.latent), mean=mean, logvar=logvar)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return (self._gathered,)

    def compute(self) -> Measured:
        """Numbers, and under details one per channel and the spectrum."""
        gathered: _Seen = self._gathered.made
        found, image, latent = gathered.statistics, gathered.image, gathered.latent
        size = compression(
            image, latent, bits_per_value=self._bits, codebook_size=gathered.codebook
        )
        values = {
            "latent_std": float(found.std.mean()),
            "active_channels": float(found.active_channels()),
            "dead_channels": float(latent[0] - found.active_channels()),
            "effective_rank": found.effective_rank,
            "high_frequency_share": found.high_frequency_share,
            "compression_values": size["values"],
            "compression_bits": size["bits"],
        }
        details = {
            "mean": found.mean.tolist(),
            "std": found.std.tolist(),
            "spectrum": found.spectrum.tolist(),
            "shape": list(latent),
        }
        if gathered.values_per_second is not None:
            values["latent_values_per_second"] = gathered.values_per_second
        divergence, rate = found.kl, found.rate_bits
        if divergence is not None and rate is not None:
            values |= {"kl": float(divergence.mean()), "rate_bits": rate / gathered.frames}
            details["kl"] = divergence.tolist()
        return Measured(values=values, details=details, facts={"bits_per_value": self._bits})


def _steps(latent: Tensor) -> Tensor:
    """Latents of images as they are, and every step of those of clips."""
    return fold(as_clip(latent))
