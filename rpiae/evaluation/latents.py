"""The metric of latents: what a diffusion model will find."""

from __future__ import annotations

from collections.abc import Sequence

from rpiae.core.contracts import QuantisedPosterior
from rpiae.evaluation.examination import Accumulator, Examination, Measured
from rpiae.evaluation.latent_statistics import LatentStatistics, compression


class Latents:
    """Spread, KL, activity, rank, spatial spectrum and size of the latents.

    Args:
        bits_per_value: that a latent value is stored in.
    """

    def __init__(self, *, bits_per_value: int = 16) -> None:
        self._bits = bits_per_value
        self._statistics: list[LatentStatistics] = []
        self._shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self._codebook: int | None = None

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        latent = seen.latent
        if not self._statistics:
            self._statistics.append(LatentStatistics(latent.shape[1]))
            self._shapes = tuple(seen.images.shape[1:]), tuple(latent.shape[1:])
            if isinstance(seen.posterior, QuantisedPosterior):
                self._codebook = seen.posterior.codebook_size
        mean, logvar = seen.moments or (None, None)
        self._statistics[0].add(latent, mean=mean, logvar=logvar)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._statistics

    def compute(self) -> Measured:
        """Numbers, and under details one per channel and the spectrum."""
        (found,) = self._statistics
        image, latent = self._shapes
        size = compression(image, latent, bits_per_value=self._bits, codebook_size=self._codebook)
        values = {
            "latent_std": float(found.std.mean()),
            "active_channels": float(found.active_channels()),
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
