"""Streamed statistics are those of the whole, however it is divided."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rpiae.core.errors import UsageError
from rpiae.latents.statistics import ChannelStatistics, latent_norm


@given(
    n=st.integers(1, 24),
    channels=st.integers(1, 4),
    side=st.integers(1, 3),
    offset=st.sampled_from([0.0, 3.0, -1e4]),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    cuts=st.lists(st.integers(0, 24), max_size=5),
    seed=st.integers(0, 1000),
)
def test_they_are_those_of_the_whole_set(
    n: int, channels: int, side: int, offset: float, scale: float, cuts: list[int], seed: int
) -> None:
    draws = torch.Generator().manual_seed(seed)
    latents = torch.randn(n, channels, side, side, generator=draws) * scale + offset
    bounds = [0, *sorted(min(cut, n) for cut in cuts), n]
    parts = [latents[a:b] for a, b in itertools.pairwise(bounds)]
    streamed, merged = ChannelStatistics(channels), ChannelStatistics(channels)
    for part in parts:
        streamed.add(part)
        single = ChannelStatistics(channels)
        single.add(part)
        merged.merge(ChannelStatistics.from_tree(json.loads(json.dumps(single.as_tree()))))
    whole = latents.double().numpy()
    for found in (streamed, merged):
        assert found.count == n * side * side
        np.testing.assert_allclose(found.mean, whole.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found.std, whole.std((0, 2, 3)), rtol=1e-9, atol=1e-12)


@given(n=st.integers(1, 8), seed=st.integers(0, 100))
def test_gaussians_count_with_all_their_samples(n: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, 3, 2, 2, generator=draws)
    variance = torch.rand(n, 3, 2, 2, generator=draws)
    found = ChannelStatistics(3)
    for part, spread in zip(mean.split(2), variance.split(2), strict=True):
        found.add(part, variance=spread)
    expected = mean.double().var((0, 2, 3), correction=0) + variance.double().mean((0, 2, 3))
    torch.testing.assert_close(found.std.square(), expected)


def test_nothing_has_no_statistics() -> None:
    found = ChannelStatistics(2)
    found.add(torch.empty(0, 2, 4, 4))
    found.merge(ChannelStatistics(2))
    assert found.count == 0
    assert found.std.isnan().all()
    with pytest.raises(UsageError, match="not finite"):
        latent_norm(found.mean, found.std)


def test_a_channel_that_never_varies_is_left_unscaled() -> None:
    found = ChannelStatistics(2)
    found.add(torch.stack([torch.full((3, 2, 2), 7.0), torch.randn(3, 2, 2)], dim=1))
    mean, std = latent_norm(found.mean, found.std)
    assert (mean[0], std[0]) == (7.0, 1.0)
    assert found.std[0] == 0
    assert std[1] == found.std[1].float()
