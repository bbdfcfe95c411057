"""Nearest neighbours in blocks, and precision and recall, against plain computations of the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation import manifolds
from rpiae.evaluation.manifolds import inside, nearest


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute(queries: Tensor, references: Tensor, k: int) -> tuple[float, float]:
    """Precision of queries among references, and recall, pair by pair."""

    def among(one: np.ndarray, other: np.ndarray) -> float:
        found = 0
        radii = [
            sorted(np.linalg.norm(each - b) for j, b in enumerate(other) if j != i)[k - 1]
            for i, each in enumerate(other)
        ]
        for a in one:
            found += any(np.linalg.norm(a - b) <= r for b, r in zip(other, radii, strict=True))
        return found / len(one)

    a, b = queries.numpy(), references.numpy()
    return among(a, b), among(b, a)


def share(queries: Tensor, references: Tensor, k: int) -> float:
    radii = nearest(references, references, k, themselves=True)[0][:, -1]
    return float(inside(queries, references, radii).double().mean())


@given(
    n=st.integers(5, 20),
    m=st.integers(5, 20),
    d=st.integers(1, 6),
    k=st.integers(1, 4),
    apart=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_shares_are_those_of_every_pair(
    n: int, m: int, d: int, k: int, apart: float, seed: int
) -> None:
    a, b = normal(n, d, seed=seed) + apart, normal(m, d, seed=seed + 1) * 1.5
    assert (share(a, b, k), share(b, a, k)) == pytest.approx(brute(a, b, k))


@pytest.mark.parametrize("k", [1, 3])
def test_shares_are_those_of_torch_fidelity(k: int) -> None:
    prc = pytest.importorskip("torch_fidelity.metric_prc", reason="no torch-fidelity")
    a, b = normal(60, 8, seed=0).float() + 0.4, normal(50, 8, seed=1).float()
    expected = prc.calculate_precision_recall_full(a, b, neighborhood=k)
    assert (share(a, b, k), share(b, a, k)) == pytest.approx(expected)
    assert 0 < expected[0] < 1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(23, 5, seed=2), normal(31, 5, seed=3)
    whole = nearest(a, b, 4), nearest(b, b, 3, themselves=True), share(a, b, 3)
    monkeypatch.setattr(manifolds, "ROWS", 4)
    monkeypatch.setattr(manifolds, "COLUMNS", 3)
    parts = nearest(a, b, 4), nearest(b, b, 3, themselves=True), share(a, b, 3)
    for one, other in zip(whole[:2], parts[:2], strict=True):
        torch.testing.assert_close(one[0], other[0])
        assert torch.equal(one[1], other[1])
    assert whole[2] == parts[2]
    distances = torch.cdist(a, b).sort(dim=1)
    torch.testing.assert_close(whole[0][0], distances.values[:, :4])
    assert torch.equal(whole[0][1], distances.indices[:, :4])


def test_equal_vectors_far_from_zero_have_no_distance() -> None:
    vectors = (1e3 + normal(6, 64, seed=4)).float()
    twice = torch.cat([vectors, vectors])
    distances, indices = nearest(vectors, twice, 2)
    assert distances.abs().max() == 0
    assert torch.equal(
        indices.sort().values, torch.stack([torch.arange(6), torch.arange(6) + 6], 1)
    )
    assert share(vectors, twice, 1) == 1.0  # though every radius is zero


def test_what_has_no_neighbours_is_refused() -> None:
    a = normal(3, 2, seed=5)
    with pytest.raises(UsageError, match=r"3 vectors have no 3 neighbours each"):
        nearest(a, a, 3, themselves=True)
    assert nearest(a, a, 3)[0].shape == (3, 3)
    with pytest.raises(UsageError, match="the references are not finite"):
        nearest(a, a.log(), 1)
