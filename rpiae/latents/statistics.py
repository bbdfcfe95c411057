"""Mean and standard deviation per channel, in one pass and in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError


class ChannelStatistics:
    """Mean and standard deviation of latents per channel, over images and places.

    Values are added in any number of parts; the numbers do not depend on how they were divided, up
    to rounding in float64. The standard deviation is that of the population (divided by the count).

    Args:
        channels: how many.

    Attributes:
        count: values per channel so far.
        mean: (C,), float64.
        squares: sum of squared deviations from the mean, (C,), float64.

    Source: the pairwise update of Chan, Golub and LeVeque (1979).
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    @property
    def std(self) -> Tensor:
        """Standard deviation (C,), float64; NaN where nothing was added."""
        return (self.squares / (self.count or math.nan)).sqrt()

    def add(
        self,
        latents: Float[Tensor, "b c h w"],
        *,
        variance: Float[Tensor, "b c h w"] | None = None,
    ) -> None:
        """Add latents, or Gaussians by their means and variances, of which every sample counts."""
        values = latents.detach().cpu().double().transpose(0, 1).flatten(1)
        if not values.numel():
            return
        part = ChannelStatistics(len(self.mean))
        part.count = values.shape[1]
        part.mean = values.mean(dim=1)
        part.squares = (values - part.mean[:, None]).square().sum(dim=1)
        if variance is not None:
            spread = variance.detach().cpu().double().transpose(0, 1).flatten(1)
            part.squares += spread.sum(dim=1)
        self.merge(part)

    def merge(self, other: ChannelStatistics) -> None:
        """Add all that another one has seen."""
        count = self.count + other.count
        if not count:
            return
        apart = other.mean - self.mean
        self.mean = self.mean + apart * (other.count / count)
        self.squares = (
            self.squares + other.squares + apart.square() * (self.count * other.count / count)
        )
        self.count = count

    def as_tree(self) -> dict[str, Any]:
        """As JSON values that give the same numbers again."""
        return {
            "count": self.count,
            "mean": self.mean.tolist(),
            "squares": self.squares.tolist(),
        }

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> ChannelStatistics:
        """Inverse of ``as_tree``."""
        made = cls(len(tree["mean"]))
        made.count = int(tree["count"])
        made.mean = torch.tensor(tree["mean"], dtype=torch.float64)
        made.squares = torch.tensor(tree["squares"], dtype=torch.float64)
        return made


def latent_norm(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, std) to normalise with, (C,) in fp32; a channel that never varies is left unscaled.

    Raises:
        UsageError: if they are not finite.
    """
    if not (mean.isfinite().all() and std.isfinite().all()):
        raise UsageError("the statistics of the latents are not finite")
    return mean.float(), torch.where(std > 0, std, 1.0).float()
