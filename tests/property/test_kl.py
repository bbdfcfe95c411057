"""The bridge's posterior: a divergence that is zero only at the prior."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rpiae.bridges.posterior import LOGVAR_RANGE, DiagonalGaussian

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
seeds = st.integers(0, 2**31)
scales = st.floats(0, 20)


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(shapes, seeds, scales, scales)
def test_never_negative(
    shape: tuple[int, ...], seed: int, mean_scale: float, logvar_scale: float
) -> None:
    mean, logvar = mean_scale * _normal(shape, seed), logvar_scale * _normal(shape, seed + 1)
    kl = DiagonalGaussian(mean, logvar).kl()
    # var − 1 − logvar cancels near the prior, to the rounding of numbers of size one.
    assert kl >= -(2**-22)
    assert kl.isfinite()


@given(shapes)
def test_zero_at_the_prior(shape: tuple[int, ...]) -> None:
    assert DiagonalGaussian(torch.zeros(shape), torch.zeros(shape)).kl() == 0


@given(shapes, seeds, st.floats(0.01, 4), st.floats(0.01, 4))
def test_twice_the_mean_of_the_usual_one(
    shape: tuple[int, ...], seed: int, mean_scale: float, logvar_scale: float
) -> None:
    mean, logvar = mean_scale * _normal(shape, seed), logvar_scale * _normal(shape, seed + 1)
    posterior = Normal(mean.double(), (0.5 * logvar.double()).exp())
    usual = kl_divergence(posterior, Normal(0.0, 1.0)).mean()
    found = DiagonalGaussian(mean, logvar).kl().double()
    torch.testing.assert_close(found, 2 * usual, rtol=1e-5, atol=1e-6)


@given(st.floats(-1e4, 1e4), st.floats(-5, 5))
def test_log_variance_is_clamped(logvar: float, noise: float) -> None:
    shape = (1, 1, 1, 1)
    posterior = DiagonalGaussian(torch.zeros(shape), torch.full(shape, logvar))
    low, high = LOGVAR_RANGE
    assert posterior.logvar.item() == pytest.approx(min(max(logvar, low), high), rel=1e-6)
    drawn = posterior.sample(torch.full(shape, noise))
    assert drawn.item() == pytest.approx(noise * (posterior.logvar / 2).exp().item(), rel=1e-5)


@given(shapes, seeds)
def test_mode_is_the_sample_without_noise(shape: tuple[int, ...], seed: int) -> None:
    posterior = DiagonalGaussian(_normal(shape, seed), _normal(shape, seed + 1))
    assert torch.equal(posterior.mode(), posterior.sample(torch.zeros(shape)))


@given(shapes, seeds)
def test_half_precision_moments_are_taken_in_full(shape: tuple[int, ...], seed: int) -> None:
    mean, logvar = _normal(shape, seed).bfloat16(), _normal(shape, seed + 1).bfloat16()
    posterior = DiagonalGaussian(mean, logvar)
    assert posterior.mean.dtype == posterior.logvar.dtype == torch.float32
    assert torch.equal(posterior.kl(), DiagonalGaussian(mean.float(), logvar.float()).kl())
