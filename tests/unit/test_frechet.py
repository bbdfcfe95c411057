"""Fréchet distance: against other formulas, in closed form, and where covariances are singular."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from rpiae.core.errors import UsageError
from rpiae.evaluation.frechet import FeatureMoments, few_samples, frechet_distance


def moments(features: Tensor) -> FeatureMoments:
    found = FeatureMoments(features.shape[1])
    found.add(features)
    return found


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(n: int, d: int, seed: int) -> Tensor:
    """Correlated features with a mean."""
    return normal(n, d, seed) @ normal(d, d, seed + 1) + 3 * normal(1, d, seed + 2)


@pytest.fixture(params=[(50, 6), (200, 24)])
def pair(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    n, d = request.param
    return mixed(n, d, 0), 0.5 * mixed(n + 7, d, 10)


def test_moments_are_those_of_numpy() -> None:
    features = mixed(40, 5, 0).float() + 1000
    found = moments(features)
    whole = features.double().numpy()
    assert found.count == 40
    np.testing.assert_allclose(found.mean, whole.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(whole.T), rtol=1e-10, atol=1e-10)
    assert found.trace == pytest.approx(np.cov(whole.T).trace(), rel=1e-10)
    assert found.mean.dtype == found.scatter.dtype == torch.float64


def test_as_with_the_matrix_square_root(pair: tuple[Tensor, Tensor]) -> None:
    a, b = (part.numpy() for part in pair)
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(first @ second))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (first + second - 2 * root).trace()
    assert frechet_distance(*map(moments, pair)) == pytest.approx(expected, rel=1e-8)


def test_as_torchmetrics(pair: tuple[Tensor, Tensor]) -> None:
    a, b = pair
    expected = _compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected.item(), rel=1e-8)


def test_independent_dimensions_in_closed_form() -> None:
    a, b = FeatureMoments(3), FeatureMoments(3)
    a.count, b.count = 11, 21
    a.scatter = 10 * torch.tensor([1.0, 4.0, 9.0]).double().diag()
    b.scatter = 20 * torch.tensor([4.0, 4.0, 1.0]).double().diag()
    b.mean = torch.tensor([0.0, 3.0, 4.0]).double()
    assert frechet_distance(a, b) == pytest.approx(25 + 1 + 0 + 4, rel=1e-14)


@pytest.mark.parametrize("n", [3, 20, 400])
def test_no_distance_to_itself(n: int) -> None:
    found = moments(mixed(n, 64, 4))
    again = moments(mixed(n, 64, 4).flip(0))
    assert 0 <= frechet_distance(found, found) <= 1e-10 * found.trace
    assert 0 <= frechet_distance(found, again) <= 1e-10 * found.trace


def test_singular_covariances_count_in_their_own_subspace() -> None:
    basis = torch.linalg.qr(normal(80, 80, 7)).Q
    a, b = mixed(30, 4, 0), mixed(30, 4, 20)
    inside = frechet_distance(moments(a), moments(b))
    embedded = frechet_distance(moments(a @ basis[:4]), moments(b @ basis[:4]))
    assert embedded == pytest.approx(inside, rel=1e-9)
    apart = frechet_distance(moments(a @ basis[:4]), moments(b @ basis[4:8]))
    first, second = moments(a), moments(b)
    expected = first.mean.square().sum() + second.mean.square().sum() + first.trace + second.trace
    assert apart == pytest.approx(expected.item(), rel=1e-9)


def test_fewer_samples_than_dimensions_stay_symmetric() -> None:
    a, b = moments(mixed(10, 90, 0)), moments(mixed(35, 90, 30))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-11)


def test_what_never_varies_has_no_scatter_at_all() -> None:
    features = torch.stack([torch.full((7,), 0.1), torch.arange(7.0)], dim=1)
    found = FeatureMoments(2)
    for part in features.split(3):
        found.add(part)
    assert found.scatter[0].tolist() == [0.0, 0.0]
    assert found.mean[0].item() == features[0, 0].double().item()
    assert frechet_distance(found, found) == 0


def test_moments_survive_pickling_and_take_half_precision() -> None:
    features = mixed(12, 3, 0).half().requires_grad_()
    found = pickle.loads(pickle.dumps(moments(features)))
    assert not found.mean.requires_grad
    torch.testing.assert_close(found.mean, features.detach().double().mean(0), rtol=0, atol=1e-13)
    assert found.covariance.equal(moments(features).covariance)


def test_nothing_adds_nothing() -> None:
    found = moments(mixed(5, 3, 0))
    before = found.scatter.clone()
    found.add(torch.empty(0, 3))
    found.merge(FeatureMoments(3))
    assert found.count == 5
    assert found.scatter.equal(before)


def test_refusals() -> None:
    good = moments(mixed(5, 3, 0))
    with pytest.raises(UsageError, match="3 and of 4 dimensions"):
        frechet_distance(good, moments(mixed(5, 4, 0)))
    with pytest.raises(UsageError, match="3 and of 4 dimensions"):
        good.merge(FeatureMoments(4))
    with pytest.raises(UsageError, match="at least 2 samples, got 1"):
        frechet_distance(good, moments(mixed(1, 3, 0)))
    with pytest.raises(UsageError, match="at least 2 samples, got 0"):
        _ = FeatureMoments(3).trace
    for value in (torch.nan, torch.inf):
        bad = mixed(5, 3, 0)
        bad[2, 1] = value
        with pytest.raises(UsageError, match="not finite"):
            frechet_distance(good, moments(bad))
    for shape in ((5, 4), (3,), (2, 3, 3)):
        with pytest.raises(UsageError, match=r"shape \(n, 3\)"):
            good.add(torch.zeros(shape))


def test_few_samples_are_said() -> None:
    said = few_samples(moments(mixed(8, 8, 0)), "made images")
    assert said is not None
    assert said.startswith("made images: 8 samples for 8 dimensions")
    assert few_samples(moments(mixed(9, 8, 0)), "made images") is None
