"""The fitted linear bridge against scikit-learn's principal components on the same tokens."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from rpiae.bridges.linear import LinearBridge
from rpiae.core.model.contracts import Features


def tokens(count: int, channels: int, *, seed: int, mean: float) -> Tensor:
    """Correlated tokens (count, channels) whose components have well separated variances."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    spread = 0.8 ** torch.arange(channels)
    return torch.randn(count, channels, generator=generator) * spread @ axes.T + mean


def fitted(values: Tensor, latent_channels: int, *, whiten: bool, batch: int) -> LinearBridge:
    bridge = LinearBridge(features=values.shape[1], latent_channels=latent_channels, whiten=whiten)
    bridge.fit(Features(part[None], (1, 1, len(part))) for part in values.split(batch))
    return bridge


@given(
    channels=st.integers(1, 12),
    more=st.integers(4, 40),
    seed=st.integers(0, 2**31),
    mean=st.floats(-20, 20),
    whiten=st.booleans(),
    batch=st.integers(1, 64),
    data=st.data(),
)
def test_it_is_scikit_learns(
    channels: int, more: int, seed: int, mean: float, whiten: bool, batch: int, data: st.DataObject
) -> None:
    latent_channels = data.draw(st.integers(1, channels))
    values = tokens(channels * more, channels, seed=seed, mean=mean)
    bridge = fitted(values, latent_channels, whiten=whiten, batch=batch)
    pca = PCA(latent_channels, whiten=whiten, svd_solver="full").fit(values.double().numpy())
    coded = pca.transform(values.double().numpy())
    restored = pca.inverse_transform(coded)
    with torch.no_grad():
        latent = bridge.encode(Features(values[None], (1, 1, len(values)))).mode()
        made = bridge.decode(latent).tokens[0]
    ours = latent[0, :, 0, 0].T.double().numpy()
    np.testing.assert_allclose(made.double().numpy(), restored, atol=1e-5)
    signs = np.sign((ours * coded).sum(axis=0))
    np.testing.assert_allclose(ours * signs, coded, atol=1e-5 * max(1.0, np.abs(coded).max()))
    if whiten:
        np.testing.assert_allclose(ours.var(axis=0, ddof=1), 1, rtol=1e-4)


@given(channels=st.integers(2, 8), seed=st.integers(0, 2**31), batch=st.integers(1, 200))
def test_batches_make_no_difference(channels: int, seed: int, batch: int) -> None:
    values = tokens(150, channels, seed=seed, mean=1000.0)
    whole = fitted(values, channels - 1, whiten=False, batch=150)
    parts = fitted(values, channels - 1, whiten=False, batch=batch)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)


@given(channels=st.integers(1, 10), seed=st.integers(0, 2**31), whiten=st.booleans())
def test_with_all_channels_nothing_is_lost(channels: int, seed: int, whiten: bool) -> None:
    values = tokens(40, channels, seed=seed, mean=3.0)
    bridge = LinearBridge(features=channels, latent_channels=channels, whiten=whiten)
    features = Features(values[None], (1, 5, 8))
    found = bridge.fit([features])
    assert abs(found.kept - 1) < 1e-9
    with torch.no_grad():
        made = bridge.decode(bridge.encode(features).mode())
    assert made.grid == features.grid
    torch.testing.assert_close(made.tokens, features.tokens, atol=1e-5, rtol=1e-5)
