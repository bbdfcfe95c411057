"""Fréchet distance between two sets of features, from moments in one pass and in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation.accumulators import Gathered


class FeatureMoments(Gathered):
    """Mean and scatter of feature vectors.

    Vectors are added in any number of parts; the numbers do not depend on how they were divided, up
    to rounding in float64. A dimension that never varies has a scatter of exactly zero.

    Args:
        dimensions: of a vector.

    Attributes:
        count: vectors so far.
        mean: (d,), float64.
        scatter: sum of outer products of the deviations from the mean, (d, d), float64.

    Source: the pairwise update of Chan, Golub and LeVeque (1979).
    """

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimensions, dtype=torch.float64)
        self.scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    @property
    def dimensions(self) -> int:
        """Of a vector."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Covariance, divided by the count less one.

        Raises:
            UsageError: for fewer than two vectors.
        """
        if self.count < 2:
            raise UsageError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)

    @property
    def trace(self) -> float:
        """Sum of the variances."""
        return self.covariance.trace().item()

    def add(self, features: Float[Tensor, "n d"]) -> None:
        """Add vectors.

        Raises:
            UsageError: if they are not vectors of ``dimensions``.
        """
        if features.ndim != 2 or features.shape[1] != self.dimensions:
            raise UsageError(
                f"expected features of shape (n, {self.dimensions}), got {tuple(features.shape)}"
            )
        if not len(features):
            return
        values = features.detach().double()
        # From the first vector on, so that what never varies deviates by nothing at all.
        values = values - values[0]
        offset = values.mean(dim=0)
        part = FeatureMoments(self.dimensions)
        part.count = len(features)
        part.mean = features[0].detach().double() + offset
        values -= offset
        part.scatter = values.T @ values
        self.merge(part)

    def merge(self, other: FeatureMoments) -> None:
        """Add all that another one has seen.

        Raises:
            UsageError: if its vectors have other dimensions.
        """
        _same_dimensions(self, other)
        if not other.count:
            return
        if not self.count:
            vars(self).update(vars(other))
            return
        count = self.count + other.count
        apart = other.mean - self.mean
        self.scatter = torch.addr(
            self.scatter + other.scatter, apart, apart, alpha=self.count * other.count / count
        )
        self.mean = self.mean + apart * (other.count / count)
        self.count = count


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Squared Fréchet distance between Gaussians of those moments, in squared units of the features.

    ‖μ₁ − μ₂‖² + tr S₁ + tr S₂ − 2 tr (S₁^½ S₂ S₁^½)^½, at least 0. The last trace is taken as the sum
    of the singular values of S₁^½ S₂^½, whose squares are the eigenvalues of S₁^½ S₂ S₁^½: without
    the square root of their rounding, so that covariances may be singular.

    Raises:
        UsageError: for different dimensions, fewer than two samples, or values that are not finite.

    Source: Heusel et al. 2017 (FID), Dowson and Landau 1982.
    """
    _same_dimensions(a, b)
    for moments in (a, b):
        if not (moments.mean.isfinite().all() and moments.scatter.isfinite().all()):
            raise UsageError("the features to compare are not finite")
    first, second = _root(a.covariance), _root(b.covariance)
    shared = torch.linalg.svdvals(first.T @ second).sum()
    distance = (a.mean - b.mean).square().sum() + a.trace + b.trace - 2 * shared
    return max(float(distance), 0.0)


def few_samples(moments: FeatureMoments, what: str) -> str | None:
    """A warning where there are too few samples for a covariance of full rank, else None."""
    if moments.count > moments.dimensions:
        return None
    return (
        f"{what}: {moments.count} samples for {moments.dimensions} dimensions leave the covariance "
        "singular and the Fréchet distance too large; compare it only with the same number of samples"
    )


def _root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d r"]:
    """R with R Rᵀ = S, of one column per eigenvalue above rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    above = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    root: Tensor = vectors[:, above] * values[above].sqrt()
    return root


def _same_dimensions(a: FeatureMoments, b: FeatureMoments) -> None:
    if a.dimensions != b.dimensions:
        raise UsageError(
            f"features of {a.dimensions} and of {b.dimensions} dimensions cannot be compared; "
            "take both from one network"
        )
