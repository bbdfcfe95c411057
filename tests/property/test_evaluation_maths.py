"""Evaluation's numbers do not depend on order or batching, and are those of the plain formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.evaluation.frechet import FeatureMoments, frechet_distance
from rpiae.evaluation.latent_statistics import LatentStatistics
from rpiae.evaluation.neighbours import NearestNeighbours, spherical_interpolation
from rpiae.evaluation.probing import knn_accuracy, linear_probe
from rpiae.evaluation.resemblance import Resemblance

seeds = st.integers(0, 2**31)
offsets = st.sampled_from([0.0, 3.0, -1e3])
scales = st.sampled_from([1e-3, 1.0, 50.0])
cuts = st.lists(st.integers(0, 30), max_size=5)


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _parts(values: Tensor, cuts: list[int]) -> list[Tensor]:
    bounds = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    return [values[a:b] for a, b in itertools.pairwise(bounds)]


def _moments(*parts: Tensor) -> FeatureMoments:
    found = FeatureMoments(parts[0].shape[1])
    for part in parts:
        found.add(part)
    return found


@given(
    n=st.integers(2, 30), d=st.integers(1, 12), offset=offsets, scale=scales, cuts=cuts, seed=seeds
)
def test_moments_are_those_of_the_whole_set(
    n: int, d: int, offset: float, scale: float, cuts: list[int], seed: int
) -> None:
    features = _normal(n, d, seed=seed) * scale + offset
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    streamed, merged = _moments(*_parts(features[order], cuts)), FeatureMoments(d)
    for part in reversed(_parts(features, cuts)):
        merged.merge(_moments(part))
    expected = np.cov(features.numpy().T).reshape(d, d)
    for found in (streamed, merged):
        assert found.count == n
        np.testing.assert_allclose(found.mean, features.mean(0), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(
            found.covariance, expected, rtol=1e-8, atol=1e-9 * scale**2 + 1e-13
        )


@given(
    n=st.integers(2, 30),
    m=st.integers(2, 30),
    d=st.integers(1, 16),
    offset=offsets,
    scale=scales,
    cuts=cuts,
    seed=seeds,
)
def test_frechet_distance_is_symmetric_and_of_sets(
    n: int, m: int, d: int, offset: float, scale: float, cuts: list[int], seed: int
) -> None:
    a = _normal(n, d, seed=seed) @ _normal(d, d, seed=seed + 1) * scale + offset
    b = _normal(m, d, seed=seed + 2) * scale + offset
    first, second = _moments(a), _moments(b)
    found = frechet_distance(first, second)
    tolerance = 1e-9 * (first.trace + second.trace)
    assert found >= (first.mean - second.mean).square().sum().item() - tolerance
    assert frechet_distance(second, first) == pytest.approx(found, rel=1e-9, abs=tolerance)
    again = _moments(*_parts(a.flip(0), cuts))
    assert frechet_distance(again, second) == pytest.approx(found, rel=1e-7, abs=100 * tolerance)
    assert 0 <= frechet_distance(first, again) <= 1e-6 * first.trace


@given(seed=seeds, shift=st.floats(-5, 5), d=st.integers(1, 8))
def test_a_shifted_set_is_as_far_as_its_shift(seed: int, shift: float, d: int) -> None:
    features = _normal(20, d, seed=seed)
    found = frechet_distance(_moments(features), _moments(features + shift))
    assert found == pytest.approx(d * shift**2, rel=1e-9, abs=1e-9)


@given(seed=seeds, noise=st.floats(0.1, 1.5))
def test_probes_do_not_care_for_the_order_of_features(seed: int, noise: float) -> None:
    labels = torch.arange(3).repeat(12)
    centres = 3 * torch.eye(3, 5, dtype=torch.float64)
    training = centres[labels] + noise * _normal(36, 5, seed=seed)
    testing = centres[labels] + noise * _normal(36, 5, seed=seed + 1)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    plain = linear_probe(training, labels, testing, labels, strengths=(1e-3, 1e-1))
    mixed = linear_probe(
        training[:, order], labels, testing[:, order], labels, strengths=(1e-3, 1e-1)
    )
    assert mixed == plain
    assert knn_accuracy(training[:, order], labels, testing[:, order], labels, k=5) == knn_accuracy(
        training, labels, testing, labels, k=5
    )


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)),
    seed=seeds,
    scale=scales,
    weight=st.floats(0, 1),
)
def test_arcs_start_and_end_where_they_should(
    shape: tuple[int, ...], seed: int, scale: float, weight: float
) -> None:
    a, b = _normal(*shape, seed=seed).float(), scale * _normal(*shape, seed=seed + 1).float()
    assert spherical_interpolation(a, b, 0.0).equal(a)
    assert spherical_interpolation(a, b, 1.0).equal(b)
    there, back = spherical_interpolation(a, b, weight), spherical_interpolation(b, a, 1 - weight)
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-5 * max(scale, 1))


@given(seed=seeds, d=st.integers(2, 20), weight=st.floats(0, 1))
def test_arcs_keep_the_length(seed: int, d: int, weight: float) -> None:
    a, b = (_normal(4, d, seed=s) for s in (seed, seed + 1))
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    lengths = spherical_interpolation(a, b, weight).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(4, dtype=torch.float64))


@given(
    m=st.integers(1, 60),
    n=st.integers(1, 12),
    d=st.integers(1, 20),
    distinct=st.integers(1, 60),
    block=st.integers(1, 70),
    offset=offsets,
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=seeds,
)
def test_nearest_neighbours_as_by_brute_force(
    m: int,
    n: int,
    d: int,
    distinct: int,
    block: int,
    offset: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    draws = torch.Generator().manual_seed(seed)
    references = (_normal(distinct, d, seed=seed) + offset).to(dtype)
    references = references[torch.randint(distinct, (m,), generator=draws)]
    queries = torch.cat([(_normal(n, d, seed=seed + 1) + offset).to(dtype), references[-1:]])
    found, distances = NearestNeighbours(references, block=block).query(queries)
    apart = references.double().numpy()[None] - queries.double().numpy()[:, None]
    squares = np.square(apart).sum(axis=-1)
    assert found.tolist() == squares.argmin(axis=1).tolist()
    np.testing.assert_allclose(distances, np.sqrt(squares.min(axis=1)), rtol=1e-12)


@given(n=st.integers(2, 20), offset=offsets, cuts=cuts, seed=seeds)
def test_resemblance_is_that_of_the_whole_set(
    n: int, offset: float, cuts: list[int], seed: int
) -> None:
    pairs = _normal(n, 3, 2, 4, seed=seed) + offset
    whole, streamed, merged = Resemblance(4), Resemblance(4), Resemblance(4)
    whole.add(pairs[:, :, 0], pairs[:, :, 1])
    for part in reversed(_parts(pairs, cuts)):
        single = Resemblance(4)
        for found in (streamed, single):
            found.add(part[:, :, 0], part[:, :, 1])
        merged.merge(single)
    assert 0 <= whole.linear_cka <= 1 + 1e-12
    for found in (streamed, merged):
        for name in ("cosine_distance", "relative_error", "linear_cka"):
            assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-8, abs=1e-12)


@given(
    n=st.integers(1, 12), h=st.integers(1, 5), w=st.integers(1, 5), offset=offsets, seed=seeds,
    cuts=cuts,
)  # fmt: skip
def test_latent_statistics_are_those_of_the_whole_set(
    n: int, h: int, w: int, offset: float, seed: int, cuts: list[int]
) -> None:
    latents = _normal(n, 3, h, w, seed=seed) + offset
    whole, merged = LatentStatistics(3), LatentStatistics(3)
    whole.add(latents, mean=latents, logvar=latents.sin())
    for part in reversed(_parts(latents, cuts)):
        single = LatentStatistics(3)
        single.add(part, mean=part, logvar=part.sin())
        merged.merge(single)
    assert merged.images == n
    assert 0 <= whole.high_frequency_share <= 1
    assert whole.effective_rank <= 3 + 1e-9
    assert whole.spectrum.sum().item() == pytest.approx(float(h * w > 1))
    assert whole.spectrum[0].item() == pytest.approx(0, abs=1e-12)
    for name in ("mean", "std", "kl", "rate_bits", "effective_rank", "spectrum"):
        torch.testing.assert_close(
            torch.as_tensor(getattr(merged, name)),
            torch.as_tensor(getattr(whole, name)),
            rtol=1e-7,
            atol=1e-10,
        )
    assert merged.high_frequency_share == pytest.approx(whole.high_frequency_share, rel=1e-8)
