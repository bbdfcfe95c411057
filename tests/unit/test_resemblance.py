"""What is left of the pivot: against direct formulas, and what each number does not see."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation.resemblance import Resemblance, similarity_map

WIDTH = 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draws, dtype=torch.float64)


def compared(tokens: Tensor, pivot: Tensor) -> Resemblance:
    found = Resemblance(tokens.shape[-1])
    found.add(tokens, pivot)
    return found


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    pivot = normal(6, 9, WIDTH) * torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5]) + 2
    return pivot @ normal(WIDTH, WIDTH, seed=1) + normal(6, 9, WIDTH, seed=2) - 1, pivot


def gram_cka(a: Tensor, b: Tensor) -> Tensor:
    """From the centred matrices of inner products between all samples."""
    n = len(a)
    centring = torch.eye(n, dtype=a.dtype) - 1 / n
    first, second = (centring @ x @ x.T @ centring for x in (a, b))
    return (first * second).sum() / first.norm() / second.norm()


def test_alignment_as_from_gram_matrices(pair: tuple[Tensor, Tensor]) -> None:
    expected = gram_cka(*(part.flatten(0, 1) for part in pair)).item()
    assert 0.05 < expected < 0.95
    assert compared(*pair).linear_cka == pytest.approx(expected, rel=1e-10)


def test_alignment_is_blind_to_rotation_scale_and_offset(pair: tuple[Tensor, Tensor]) -> None:
    tokens, pivot = pair
    rotation = torch.linalg.qr(normal(WIDTH, WIDTH, seed=3)).Q
    turned = compared(3 * tokens @ rotation + 5, pivot)
    plain = compared(tokens, pivot)
    assert turned.linear_cka == pytest.approx(plain.linear_cka, rel=1e-10)
    assert compared(0.1 * pivot @ rotation, pivot).linear_cka == pytest.approx(1, rel=1e-12)
    assert abs(turned.cosine_distance - plain.cosine_distance) > 1e-3
    assert abs(turned.relative_error - plain.relative_error) > 1e-3


def test_distance_and_error_by_hand(pair: tuple[Tensor, Tensor]) -> None:
    tokens, pivot = pair
    found = compared(tokens, pivot)
    cosine = (tokens * pivot).sum(-1) / tokens.norm(dim=-1) / pivot.norm(dim=-1)
    assert found.cosine_distance == pytest.approx((1 - cosine).mean().item(), rel=1e-10)
    error = (tokens - pivot).norm() / pivot.norm()
    assert found.relative_error == pytest.approx(error.item(), rel=1e-10)


def test_nothing_lost() -> None:
    pivot = normal(2, 4, WIDTH)
    found = compared(pivot, pivot)
    assert found.cosine_distance == pytest.approx(0, abs=1e-12)
    assert found.relative_error == 0
    assert found.linear_cka == pytest.approx(1, rel=1e-12)
    opposite = compared(-2 * pivot, pivot)
    assert opposite.cosine_distance == pytest.approx(2)
    assert opposite.relative_error == pytest.approx(3)
    assert opposite.linear_cka == pytest.approx(1, rel=1e-12)


def test_parts_are_the_whole(pair: tuple[Tensor, Tensor]) -> None:
    tokens, pivot = pair
    whole, streamed, merged = compared(tokens, pivot), Resemblance(WIDTH), Resemblance(WIDTH)
    for part in (slice(3, 6), slice(0, 1), slice(1, 3)):
        streamed.add(tokens[part], pivot[part])
        merged.merge(pickle.loads(pickle.dumps(compared(tokens[part], pivot[part]))))
    for found in (streamed, merged):
        for name in ("cosine_distance", "relative_error", "linear_cka"):
            assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-11)


def test_nothing_is_not_a_number() -> None:
    found = Resemblance(WIDTH)
    for value in (found.cosine_distance, found.relative_error, found.linear_cka):
        assert value != value
    constant = compared(torch.ones(1, 3, WIDTH), normal(1, 3, WIDTH))
    assert constant.linear_cka != constant.linear_cka
    assert constant.cosine_distance == constant.cosine_distance


def test_tokens_that_do_not_fit() -> None:
    found = Resemblance(WIDTH)
    for a, b in (((1, 2, 4), (1, 2, 4)), ((1, 2, 5), (1, 3, 5)), ((2, 5), (2, 5))):
        with pytest.raises(UsageError, match=r"tokens of shape \(b, n, 5\)"):
            found.add(torch.zeros(a), torch.zeros(b))
    assert found.moments.count == 0


@pytest.mark.parametrize("grid", [(2, 3), (1, 2, 3)])
def test_similarity_of_one_token_with_all(grid: tuple[int, ...]) -> None:
    tokens = normal(6, WIDTH).float()
    found = similarity_map(tokens, grid, (1, 0))
    assert found.shape == (2, 3)
    assert found[1, 0].item() == pytest.approx(1)
    expected = F.cosine_similarity(tokens[2], tokens[3], dim=0).item()
    assert found[0, 2].item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(1)


def test_similarity_map_refuses() -> None:
    tokens = normal(6, WIDTH)
    for grid in ((2, 4), (2, 2, 3), (6, 2, 3)):
        with pytest.raises(UsageError, match="does not hold tokens"):
            similarity_map(tokens, grid, (0, 0))
    for place in ((2, 0), (0, 3), (-1, 0)):
        with pytest.raises(UsageError, match="on a grid of 2 rows and 3 columns"):
            similarity_map(tokens, (2, 3), place)
