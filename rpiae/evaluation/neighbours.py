"""Exact nearest neighbours, and paths between latents."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.errors import UsageError

#: Candidates per query that are looked at in float64.
CANDIDATES = 8

#: Values per block and side; bounds the memory where vectors are long.
VALUES_PER_BLOCK = 2**25

#: Sine of an angle below which two vectors count as (anti)parallel.
PARALLEL = 1e-6


class NearestNeighbours:
    """The nearest of a set of references by Euclidean distance.

    Matrix products in float32 find candidates with a lower bound on every distance; the candidates'
    own distances are taken in float64. Where the bounds do not rule the others out, they are looked
    at as well, so the answer is that of float64 throughout. Of references equally near, the one with
    the lowest index is found.

    Args:
        references: on any device and of any precision; kept as they are.
        block: vectors per block, of the queries as of the references.

    Raises:
        UsageError: if there are none, or they are not finite vectors.

    Source: rounding of inner products after Higham and Mary 2019, A New Approach to Probabilistic
    Rounding Error Analysis (four times the square root of the length).
    """

    def __init__(self, references: Float[Tensor, "m d"], *, block: int = 4096) -> None:
        if references.ndim != 2 or not references.numel():
            raise UsageError(
                f"references have shape (m, d), none of them 0, got {tuple(references.shape)}"
            )
        if block < 1:
            raise UsageError(f"a block holds at least 1 vector, got {block}")
        self.references = references.detach().cpu()
        dimensions = references.shape[1]
        self._rows = max(1, min(block, VALUES_PER_BLOCK // dimensions))
        self._slack = torch.finfo(torch.float32).eps / 2 * (4 * math.sqrt(dimensions) + 16)
        # Near the middle of the references, squares are small and their differences are accurate.
        total = torch.zeros(dimensions, dtype=torch.float64)
        for _, part in self._blocks():
            total += part.double().sum(dim=0)
        self._centre = (total / len(references)).float()
        self._squares = torch.cat([_squares(self._centred(part)) for _, part in self._blocks()])
        _check_finite("references", self._squares)

    def query(self, queries: Float[Tensor, "n d"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """Index (int64) of the nearest reference of each query, and the distance to it (float64).

        Raises:
            UsageError: if the queries are not finite vectors of the references' length.
        """
        dimensions = self.references.shape[1]
        if queries.ndim != 2 or queries.shape[1] != dimensions:
            raise UsageError(
                f"expected queries of shape (n, {dimensions}), got {tuple(queries.shape)}"
            )
        indices = torch.empty(len(queries), dtype=torch.int64)
        squares = torch.empty(len(queries), dtype=torch.float64)
        for start in range(0, len(queries), self._rows):
            part = queries[start : start + self._rows].detach().cpu()
            candidates, bounds = self._candidates(part)
            for i, query in enumerate(part):
                chosen = candidates[i].sort().values
                index, square = self._nearest_of(query, chosen)
                if len(chosen) < len(self.references) and bounds[i] <= square:
                    index, square = self._nearest_of(query, self._within(query, square))
                indices[start + i], squares[start + i] = index, square
        return indices, squares.sqrt()

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self.references), self._rows):
            yield start, self.references[start : start + self._rows]

    def _centred(self, vectors: Tensor) -> Tensor:
        wide = torch.promote_types(vectors.dtype, torch.float32)
        return (vectors.to(wide) - self._centre).float()

    def _lower_bounds(self, queries: Tensor, start: int, references: Tensor) -> Tensor:
        """Of the squared distances between centred queries and a block of references, (n, m)."""
        squares = self._squares[start : start + len(references)]
        sums = (_squares(queries)[:, None] + squares) * (1 - self._slack)
        return torch.addmm(sums, queries, self._centred(references).T, alpha=-2)

    def _candidates(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the lowest bounds, (n, k), and the highest of those bounds, (n,)."""
        queries = self._centred(queries)
        _check_finite("queries", _squares(queries))
        bounds = torch.empty(len(queries), 0)
        indices = torch.empty(len(queries), 0, dtype=torch.int64)
        for start, references in self._blocks():
            found = self._lower_bounds(queries, start, references)
            lowest = found.topk(min(CANDIDATES, found.shape[1]), largest=False)
            bounds = torch.cat([bounds, lowest.values], dim=1)
            indices = torch.cat([indices, lowest.indices + start], dim=1)
            kept = bounds.topk(min(CANDIDATES, bounds.shape[1]), largest=False)
            bounds, indices = kept.values, indices.gather(1, kept.indices)
        return indices, bounds.amax(dim=1)

    def _within(self, query: Tensor, square: float) -> Tensor:
        """Indices of all references that may be as near as a squared distance."""
        centred = self._centred(query[None])
        return torch.cat(
            [
                start + (self._lower_bounds(centred, start, part)[0] <= square).nonzero()[:, 0]
                for start, part in self._blocks()
            ]
        )

    def _nearest_of(self, query: Tensor, indices: Tensor) -> tuple[int, float]:
        """The first of the nearest among references in ascending order, and the squared distance."""
        best, least = -1, math.inf
        for part in torch.split(indices, self._rows):
            # numpy sums each row alike, however many there are, so that equal rows stay equal.
            apart = self.references[part].double().numpy() - query.double().numpy()
            squares = np.square(apart).sum(axis=1)
            lowest = int(squares.argmin())
            if best < 0 or squares[lowest] < least:
                best, least = int(part[lowest]), float(squares[lowest])
        return best, least


def spherical_interpolation(
    a: Float[Tensor, "n ..."], b: Float[Tensor, "n ..."], weight: float
) -> Float[Tensor, "n ..."]:
    """The way from ``a`` (weight 0) to ``b`` (weight 1) along the arc, sample by sample.

    sin((1 − w)θ)/sin θ · a + sin(wθ)/sin θ · b, with θ the angle between the samples as vectors.
    Linear where they are parallel, opposite or zero, all nearly. At the ends, ``a`` and ``b`` to the
    bit.

    Raises:
        UsageError: if the shapes differ, or the weight is outside 0 to 1.

    Source: Shoemake 1985; on latents, White 2016 (arXiv 1609.04468).
    """
    if a.shape != b.shape:
        raise UsageError(f"cannot go from shape {tuple(a.shape)} to {tuple(b.shape)}")
    if not 0 <= weight <= 1:
        raise UsageError(f"a weight lies between 0 and 1, got {weight}")
    if weight in (0, 1):
        return (b if weight else a).clone()
    first, second = a.flatten(1).double(), b.flatten(1).double()
    lengths = [vectors.norm(dim=1, keepdim=True) for vectors in (first, second)]
    u, v = first / lengths[0], second / lengths[1]
    # Accurate at every angle, which an arc cosine is not (Kahan).
    angle = 2 * torch.atan2((u - v).norm(dim=1, keepdim=True), (u + v).norm(dim=1, keepdim=True))
    sine = angle.sin()
    arc = sine > PARALLEL  # not where a length is 0 and the angle NaN
    ours = torch.where(arc, ((1 - weight) * angle).sin() / sine, 1 - weight)
    theirs = torch.where(arc, (weight * angle).sin() / sine, weight)
    return (ours * first + theirs * second).to(a.dtype).view_as(a)


def _squares(vectors: Tensor) -> Tensor:
    return vectors.double().square().sum(dim=1).float()


def _check_finite(what: str, squares: Tensor) -> None:
    if not squares.isfinite().all():
        raise UsageError(f"the {what} are not finite, or too large to be squared in float32")
