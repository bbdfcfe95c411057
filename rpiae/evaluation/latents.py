"""The metric of latents: what a diffusion model will find."""

from __future__ import annotations

from collections.abc import Sequence

from rpiae.core.model.contracts import QuantisedPosterior
from rpiae.evaluation.accumulators import Accumulator, Gathered, Once
from rpiae.evaluation.examination import Examination, Measured
from rpiae.evaluation.latent_statistics import LatentStatistics, compression


class _Seen(Gathered):
    """Statistics of latents, and what else is told by the first of them."""

    def __init__(self, seen: Examination) -> None:
        latent = seen.latent
        self.statistics = LatentStatistics(latent.shape[1])
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

    Args:
        bits_per_value: that a latent value is stored in.
    """

    def __init__(self, *, bits_per_value: int = 16) -> None:
        self._bits = bits_per_value
        self._gathered = Once()

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        if self._gathered.made is None:
            self._gathered.made = _Seen(seen)
        mean, logvar = seen.moments or (None, None)
        self._gathered.made.statistics.add(seen.latent, mean=mean, logvar=logvar)

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
        divergence, rate = found.kl, found.rate_bits
        if divergence is not None and rate is not None:
            values |= {"kl": float(divergence.mean()), "rate_bits": rate}
            details["kl"] = divergence.tolist()
        return Measured(values=values, details=details, facts={"bits_per_value": self._bits})
