"""Nearest neighbours as by brute force, where float32 would do and where it would not; arcs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation.neighbours import NearestNeighbours, spherical_interpolation


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(references: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    apart = references.double()[None] - queries.double()[:, None]
    squares = apart.square().sum(dim=-1)
    # The first of the least; torch's argmin does not promise it.
    return torch.from_numpy(squares.numpy().argmin(axis=1)), squares.amin(dim=1).sqrt()


def agree(references: Tensor, queries: Tensor, *, block: int = 4096) -> None:
    found, distances = NearestNeighbours(references, block=block).query(queries)
    expected, least = brute_force(references, queries)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    torch.testing.assert_close(distances, least, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_as_by_brute_force(block: int) -> None:
    agree(normal(150, 12), normal(40, 12, seed=1), block=block)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_of_any_precision(dtype: torch.dtype) -> None:
    agree(normal(90, 8).to(dtype), normal(20, 8, seed=1).to(dtype), block=32)


def test_far_from_the_origin() -> None:
    agree(normal(200, 6) + 1e4, normal(30, 6, seed=1) + 1e4, block=64)


def test_the_first_of_many_duplicates_wins() -> None:
    references = normal(5, 16).repeat(40, 1)
    queries = normal(5, 16)
    indices, distances = NearestNeighbours(references, block=17).query(queries)
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert distances.tolist() == [0.0] * 5
    agree(references, normal(20, 16, seed=2), block=17)


def test_differences_below_float32_decide() -> None:
    references = normal(1, 64).double().repeat(60, 1)
    references[:, 0] += 1e-9 * torch.arange(60, 0, -1)
    references[41, 0] -= 30e-9
    # Two far ones keep the middle away, and squares large.
    references = torch.cat([references, normal(2, 64, seed=5).double() * 100])
    query = references[:1] - 1e-7
    single = (references.float() - query.float()).square().sum(1)
    assert (single[1:60] == single[41]).all()
    indices, _ = NearestNeighbours(references, block=16).query(query)
    assert indices.item() == 41
    agree(references, query, block=16)


def test_one_reference_and_no_queries() -> None:
    found = NearestNeighbours(normal(1, 3))
    assert found.query(normal(4, 3))[0].tolist() == [0] * 4
    indices, distances = found.query(torch.empty(0, 3))
    assert (len(indices), len(distances)) == (0, 0)


def test_neighbours_refuse() -> None:
    with pytest.raises(UsageError, match="none of them 0"):
        NearestNeighbours(torch.empty(0, 3))
    with pytest.raises(UsageError, match="at least 1 vector, got 0"):
        NearestNeighbours(normal(2, 3), block=0)
    with pytest.raises(UsageError, match=r"shape \(n, 3\)"):
        NearestNeighbours(normal(2, 3)).query(normal(2, 4))
    for value in (math.nan, math.inf, 1e30):
        bad = normal(4, 3)
        bad[1, 1] = value
        with pytest.raises(UsageError, match="references are not finite"):
            NearestNeighbours(bad)
        with pytest.raises(UsageError, match="queries are not finite"):
            NearestNeighbours(normal(2, 3)).query(bad)


def test_an_arc_of_the_circle() -> None:
    a, b = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]])
    for weight in (0.25, 0.5, 0.9):
        found = spherical_interpolation(a, b, weight)
        angle = weight * math.pi / 2
        assert found.shape == (1, 2, 1)
        assert found.flatten().tolist() == pytest.approx([math.cos(angle), math.sin(angle)])


def test_vectors_are_weighted_as_they_are() -> None:
    a, b = normal(3, 4, 2, 2).double(), 5 * normal(3, 4, 2, 2, seed=1).double()
    found = spherical_interpolation(a, b, 0.3)
    for ours, theirs, made in zip(a, b, found, strict=True):
        cosine = (ours * theirs).sum() / ours.norm() / theirs.norm()
        angle = torch.arccos(cosine)
        expected = (torch.sin(0.7 * angle) * ours + torch.sin(0.3 * angle) * theirs) / angle.sin()
        torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("factor", [1.0, 2.5, 1 + 1e-9, -1.0, 0.0])
def test_linear_without_an_arc(factor: float) -> None:
    a = normal(2, 5).double()
    found = spherical_interpolation(a, factor * a, 0.25)
    torch.testing.assert_close(found, (0.75 + 0.25 * factor) * a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_are_exact_and_separate(dtype: torch.dtype) -> None:
    a, b = normal(3, 7).to(dtype), normal(3, 7, seed=1).to(dtype)
    start, end = spherical_interpolation(a, b, 0), spherical_interpolation(a, b, 1.0)
    assert start.equal(a)
    assert end.equal(b)
    assert start.data_ptr() != a.data_ptr()
    assert spherical_interpolation(a, b, 0.5).dtype == dtype


def test_arcs_refuse() -> None:
    with pytest.raises(UsageError, match=r"\(2, 3\) to \(2, 4\)"):
        spherical_interpolation(normal(2, 3), normal(2, 4), 0.5)
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="between 0 and 1"):
            spherical_interpolation(normal(2, 3), normal(2, 3), weight)


def test_the_first_of_equally_near_but_different_ones_wins() -> None:
    references = torch.tensor([[3.0, 4.0], [-5.0, 0.0], [0.0, 5.0], [4.0, -3.0]])
    indices, distances = NearestNeighbours(references).query(torch.zeros(1, 2))
    assert (indices.item(), distances.item()) == (0, 5.0)
