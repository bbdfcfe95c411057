"""Distances between two sets of vectors in blocks, so that memory does not grow with the sets, and the
manifolds that neighbours span.

All is in float64. Squared distances below the rounding of vectors in float32 count as zero, so equal
images have none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rpiae.core.errors import UsageError

#: Vectors per block, of the queries and of the references.
ROWS, COLUMNS = 1024, 4096

#: Squared distance, relative to the vectors' squared lengths, that counts as zero.
ROUNDING = 1e-12


def nearest(
    queries: Float[Tensor, "n d"],
    references: Float[Tensor, "m d"],
    k: int,
    *,
    themselves: bool = False,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Distances from each query to its k nearest references, ascending, and their indices.

    Args:
        queries, references: of any precision, on CPU.
        k: how many.
        themselves: whether both are the same set, of which no vector is a neighbour of itself.

    Raises:
        UsageError: if there are fewer than k references, or vectors are not finite.
    """
    if len(references) - themselves < k:
        raise UsageError(
            f"{len(references)} vectors have no {k} neighbours each: take more images, or a lower k"
        )
    distances = torch.empty(len(queries), k, dtype=torch.float64)
    indices = torch.empty(len(queries), k, dtype=torch.int64)
    for rows, blocks in _blocks(queries, references):
        best = torch.empty(0)
        found = torch.empty(0, dtype=torch.int64)
        for start, squares in blocks:
            if themselves:
                _without_diagonal(squares, rows.start - start)
            least = squares.topk(min(k, squares.shape[1]), largest=False)
            best = torch.cat([best.view(len(squares), -1), least.values], dim=1)
            found = torch.cat([found.view(len(squares), -1), least.indices + start], dim=1)
            kept = best.topk(min(k, best.shape[1]), largest=False)
            best, found = kept.values, found.gather(1, kept.indices)
        distances[rows], indices[rows] = best.sqrt(), found
    return distances, indices


def inside(
    queries: Float[Tensor, "n d"], references: Float[Tensor, "m d"], radii: Float[Tensor, " m"]
) -> Bool[Tensor, " n"]:
    """Whether each query lies within the radius of some reference.

    Args:
        queries, references: of any precision, on CPU.
        radii: of the references, such as the distance to their k-th neighbour.

    Raises:
        UsageError: if vectors are not finite.

    Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), equation 1.
    """
    found = torch.zeros(len(queries), dtype=torch.bool)
    limits = radii.double().square()
    for rows, blocks in _blocks(queries, references):
        for start, squares in blocks:
            found[rows] |= (squares <= limits[start : start + squares.shape[1]]).any(dim=1)
    return found


def _blocks(
    queries: Tensor, references: Tensor
) -> Iterator[tuple[slice, Iterator[tuple[int, Tensor]]]]:
    """Rows of queries with their squared distances to references, block by block."""
    for what, vectors in (("queries", queries), ("references", references)):
        if not vectors.isfinite().all():
            raise UsageError(f"the {what} are not finite")
    # Near the middle, squares are small and their differences accurate.
    centre = references.double().mean(dim=0)

    def columns(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(references), COLUMNS):
            yield start, _squares(rows, references[start : start + COLUMNS].double() - centre)

    for start in range(0, len(queries), ROWS):
        rows = slice(start, min(start + ROWS, len(queries)))
        yield rows, columns(queries[rows].double() - centre)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances between two blocks, (n, m)."""
    lengths = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    squares = torch.addmm(lengths, a, b.T, alpha=-2)
    return torch.where(squares < ROUNDING * lengths, 0.0, squares)


def _without_diagonal(squares: Tensor, offset: int) -> None:
    """Have no vector be near itself: row i is column i + ``offset``."""
    rows = torch.arange(len(squares))
    there = (rows + offset >= 0) & (rows + offset < squares.shape[1])
    squares[rows[there], rows[there] + offset] = torch.inf
