"""The bridge as a part of rpiae: contract, codes, plugin, training, saving."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rpiae_fsq import LEVELS
from rpiae_fsq.bridge import FsqBridge
from rpiae_fsq.configs import FsqBridgeConfig

import rpiae
from rpiae.plugin import (
    ConfigError,
    Features,
    QuantisedPosterior,
    UsageError,
    check_bridge,
    check_builds,
    check_plugin,
)

ENCODER = {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "pretrained": False}
DECODER = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64}
TRAINING_BRIDGE = {"name": "fsq", "levels": [4, 3, 3]}

#: Losses that load weights, or play against a critic that does.
LOADING = ("lpips", "adversarial")

some_levels = st.lists(st.integers(2, 8), min_size=1, max_size=3)

settings.register_profile("fsq", max_examples=40, deadline=None)
settings.load_profile("fsq")


def plain(levels: list[int]) -> FsqBridge:
    """A bridge that quantises the features themselves."""
    bridge = FsqBridge(features=len(levels), levels=levels)
    with torch.no_grad():
        bridge.encoder.weight.copy_(torch.eye(len(levels))[:, :, None, None])
        bridge.encoder.bias.zero_()
    return bridge


@pytest.mark.parametrize("projection", ["linear", "conv"])
@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 2)])
def test_contract(levels: tuple[int, ...], projection: Any) -> None:
    check_bridge(FsqBridgeConfig(features=32, levels=levels, projection=projection))


def test_the_plugin_is_found_and_brings_what_it_says() -> None:
    check_plugin("rpiae-fsq")
    assert rpiae.BRIDGES.broken() == {}
    assert rpiae.BRIDGES.entry("fsq").distribution == "rpiae-fsq"
    assert rpiae.BRIDGES.config_class("fsq") is FsqBridgeConfig


@pytest.mark.parametrize(
    ("name", "size"), [("1k", 1000), ("4k", 4375), ("16k", 15360), ("64k", 64000)]
)
def test_presets_have_the_papers_levels(name: str, size: int) -> None:
    assert math.prod(LEVELS[name]) == size
    tree = rpiae.BRIDGES.select(f"fsq-{name}").tree
    assert tree == {"name": "fsq", "preset": f"fsq-{name}", "levels": LEVELS[name]}


def test_the_manifest_and_the_config_need_no_torch() -> None:
    code = "import sys, rpiae_fsq, rpiae_fsq.configs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(levels=some_levels)
def test_every_code_is_reached_and_numbered_once(levels: list[int]) -> None:
    bridge = plain(levels)
    count = math.prod(levels)
    indices = torch.arange(count).view(1, count, 1)
    codes = bridge.latent_of(indices)
    assert codes.shape == (1, len(levels), count, 1)
    assert torch.equal(bridge.indices_of(codes), indices)
    expected = [[(i - n // 2) / (n // 2) for i in range(n)] for n in levels]
    rows = {tuple(row) for row in codes[0, :, :, 0].T.tolist()}
    wanted = torch.tensor(list(itertools.product(*expected))).tolist()
    assert rows == set(map(tuple, wanted))
    # An input that the bound maps to a level itself is rounded to that level.
    across = bridge.levels.view(-1, 1, 1)
    half, bound = across // 2, (across - 1) / 2 + 1e-3
    offset = (1 - across % 2) / 2
    inputs = torch.atanh((codes * half + offset) / bound) - torch.atanh(offset / bound)
    tokens = inputs[0, :, :, 0].T[None]
    with torch.no_grad():
        found = bridge.encode(Features(tokens, (1, count, 1)))
    assert torch.equal(found.indices.squeeze(1), indices)
    torch.testing.assert_close(found.mode().squeeze(2), codes, atol=1e-6, rtol=0)


@given(levels=some_levels, seed=st.integers(0, 2**31), scale=st.floats(0, 1e6))
def test_codes_stay_inside_the_codebook_for_any_features(
    levels: list[int], seed: int, scale: float
) -> None:
    bridge = plain(levels)
    tokens = scale * torch.randn(2, 6, len(levels), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        posterior = bridge.encode(Features(tokens, (1, 2, 3)))
    assert isinstance(posterior, QuantisedPosterior)
    assert posterior.codebook_size == math.prod(levels)
    assert posterior.indices.min() >= 0
    assert posterior.indices.max() < posterior.codebook_size
    assert posterior.mode().abs().max() <= 1
    assert torch.equal(posterior.sample(), posterior.mode())
    torch.testing.assert_close(bridge.latent_of(posterior.indices), posterior.mode())


def test_a_clip_is_coded_frame_by_frame() -> None:
    model = rpiae.build(
        encoder=ENCODER, bridge=TRAINING_BRIDGE | {"projection": "conv"}, decoder=DECODER
    ).eval()
    clip = torch.rand(2, 3, 3, 12, 20)
    with torch.no_grad():
        posterior = model.encode(clip)
        frames = [model.encode(frame).indices for frame in clip.unbind(2)]
        assert torch.equal(posterior.indices, torch.stack(frames, dim=1))
        assert torch.equal(model.bridge.latent_of(posterior.indices), posterior.mode())
        assert model.reconstruct(clip).shape == clip.shape


@given(levels=some_levels)
def test_zero_stays_zero(levels: list[int]) -> None:
    tokens = torch.zeros(1, 1, len(levels))
    assert plain(levels).encode(Features(tokens, (1, 1, 1))).mode().abs().max() == 0


def test_gradients_pass_the_rounding_as_if_it_were_not_there() -> None:
    bridge = plain([8, 5])
    tokens = torch.tensor([[[0.3, -0.7]]], requires_grad=True)
    bridge.encode(Features(tokens, (1, 1, 1))).mode().sum().backward()
    again = tokens.detach().clone().requires_grad_()
    bound = torch.tensor([3.5, 2.0]) + 1e-3
    offset = torch.tensor([0.5, 0.0])
    smooth = torch.tanh(again + torch.atanh(offset / bound)) * bound - offset
    (smooth / torch.tensor([4, 2])).sum().backward()
    torch.testing.assert_close(tokens.grad, again.grad)


def test_numbers_outside_the_codebook_are_refused() -> None:
    with pytest.raises(UsageError, match=r"numbered 0 to 999, these go from -1 to 1000"):
        FsqBridge(features=4).latent_of(torch.tensor([[[-1, 1000]]]))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "at least one channel"),
        ([8, 1], "each of 2 levels or more"),
        ([2] * 64, "64 bits"),
        ([8, "5"], r"levels\[1\]: expected int, got '5'"),
        (8, r"levels: expected a list, got 8"),
    ],
)
def test_levels_that_make_no_codebook_are_config_errors(levels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rpiae.build(encoder=ENCODER, bridge={"name": "fsq", "levels": levels}, decoder=DECODER)


@pytest.mark.parametrize(
    "recipe", [p.name for p in rpiae.RECIPES.presets() if p.part != "generator"]
)
def test_it_trains_in_every_recipe(recipe: str) -> None:
    check_builds(
        encoder=ENCODER, bridge=TRAINING_BRIDGE, decoder=DECODER, recipe=recipe, without=LOADING
    )  # fmt: skip


def test_its_codes_come_back_from_disk(tmp_path: Path) -> None:
    model = rpiae.build(encoder=ENCODER, bridge=TRAINING_BRIDGE, decoder=DECODER).eval()
    images = torch.rand(1, 3, 40, 28)
    loaded = rpiae.load(rpiae.save(model, tmp_path / "tokenizer"))
    with torch.no_grad():
        ours, theirs = model.encode(images), loaded.encode(images)
        assert torch.equal(model.reconstruct(images), loaded.reconstruct(images))
    assert isinstance(theirs, QuantisedPosterior)
    assert torch.equal(ours.indices, theirs.indices)
    assert theirs.indices.shape == (1, *theirs.mode().shape[2:])
    assert torch.equal(loaded.bridge.latent_of(theirs.indices), theirs.mode())
    assert "rpiae_fsq" not in (tmp_path / "tokenizer" / "config.json").read_text()


def test_the_feature_loss_falls_when_the_bridge_is_trained() -> None:
    torch.manual_seed(0)
    bridge = FsqBridge(features=16, levels=[8, 8, 8, 8])
    basis = torch.randn(3, 16)
    tokens = torch.randn(8, 12, 3) @ basis
    features = Features(tokens, (1, 3, 4))
    optimiser = torch.optim.Adam(bridge.parameters(), lr=2e-2)
    losses = []
    for _ in range(120):
        made = bridge.decode(bridge.encode(features).mode()).tokens
        loss = (made - tokens).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
