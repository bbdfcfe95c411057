"""Posteriors that the bridges share."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import standard_normal_like
from rpiae.core.model.geometry import at_least_fp32

LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussian:
    """A diagonal Gaussian over latents, in fp32 (or fp64, as what it is made of).

    Args:
        mean: (b, C, t, h, w).
        logvar: (b, C, t, h, w); clamped to [−30, 20].
    """

    def __init__(
        self, mean: Float[Tensor, "b c t h w"], logvar: Float[Tensor, "b c t h w"]
    ) -> None:
        self.mean = at_least_fp32(mean)
        self.logvar = at_least_fp32(logvar).clamp(*LOGVAR_RANGE)

    def mode(self) -> Float[Tensor, "b c t h w"]:
        """The mean."""
        return self.mean

    def sample(self, noise: Float[Tensor, "b c t h w"] | None = None) -> Float[Tensor, "b c t h w"]:
        """mean + std · noise; the noise is drawn where it is not given."""
        if noise is None:
            noise = standard_normal_like(self.mean)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Float[Tensor, ""]:
        """Mean over all elements of mean² + var − 1 − logvar, without the factor ½.

        Source: L_KL of arXiv 2603.19206 (twice the usual KL per element).
        """
        return (self.mean.square() + self.logvar.exp() - 1 - self.logvar).mean()


class Delta:
    """A posterior that is a point.

    Args:
        value: the point, (b, C, t, h, w).
    """

    def __init__(self, value: Float[Tensor, "b c t h w"]) -> None:
        self._value = value

    def mode(self) -> Float[Tensor, "b c t h w"]:
        """The point."""
        return self._value

    def sample(self, noise: Float[Tensor, "b c t h w"] | None = None) -> Float[Tensor, "b c t h w"]:
        """The point; there is nothing to draw."""
        return self._value
