"""The convolutional bridges and decoder: any grid, any patch, half a grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rpiae
from rpiae.bridges.configs import ConvBridgeConfig, ConvKlBridgeConfig, LinearBridgeConfig
from rpiae.bridges.conv import ConvBridge
from rpiae.core.config.parts import BridgeConfig
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.blocks import ConvBlock, group_norm, recomputing
from rpiae.core.model.contracts import Features
from rpiae.core.model.resolve import part_config
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.registry.registry import registry
from rpiae.decoders.configs import ConvDecoderConfig
from rpiae.decoders.conv import ConvDecoder
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.testing import check_bridge, check_decoder
from tests.toys import BRIDGES, DECODERS, ENCODERS

HALF = {"name": "conv", "latent_channels": 4, "width": 16, "blocks": 1, "downsampling": 2}


def tokenizer(bridge: object, *, encoder: str = "vit", decoder: str = "vit") -> RPiAE:
    return rpiae.build(
        encoder=ENCODERS[encoder], bridge=bridge, decoder=DECODERS[decoder], pretrained=False
    ).eval()


@pytest.mark.parametrize("downsampling", [1, 2])
@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("cls", [ConvBridgeConfig, ConvKlBridgeConfig])
def test_bridges_of_all_sizes(cls: type[ConvBridgeConfig], blocks: int, downsampling: int) -> None:
    check_bridge(
        cls(features=12, latent_channels=3, width=10, blocks=blocks, downsampling=downsampling)
    )


def test_a_whitened_linear_bridge_keeps_the_contract() -> None:
    check_bridge(LinearBridgeConfig(features=12, latent_channels=3, whiten=True))


@pytest.mark.parametrize("patch", [1, 2, 3, 7, 8, 12, 14, 16])
def test_a_decoder_of_any_patch(patch: int) -> None:
    check_decoder(ConvDecoderConfig(features=12, patch=patch, width=34, depth=1, blocks=1))


@pytest.mark.parametrize(("patch", "octaves", "shuffled"), [(1, 0, 1), (14, 1, 7), (16, 4, 1)])
def test_octaves_and_remainder(patch: int, octaves: int, shuffled: int) -> None:
    decoder = ConvDecoder(features=8, patch=patch, width=64, depth=0, blocks=0)
    assert len(decoder.octaves) == octaves
    assert decoder.last_weight.shape[:2] == (3 * shuffled**2, max(32, 64 >> octaves))


def test_a_token_makes_the_pixels_around_its_place() -> None:
    decoder = ConvDecoder(features=4, patch=6, width=8, depth=0, blocks=0)
    decoder.norm = nn.Identity()  # the norm looks at the whole map
    tokens = torch.zeros(2, 5 * 7, 4)
    tokens[1, 2 * 7 + 4] = 1
    with torch.no_grad():
        plain, changed = decoder(Features(tokens, (1, 5, 7))).squeeze(2)
    rows, columns = ((plain != changed).any(dim=0).any(dim=d).nonzero() for d in (1, 0))
    assert (rows.min() + rows.max() + 1) / 2 == (2 + 0.5) * 6
    assert (columns.min() + columns.max() + 1) / 2 == (4 + 0.5) * 6


@pytest.mark.parametrize("encoder", ["vit", "timm"])
@pytest.mark.parametrize("bridge", BRIDGES)
@pytest.mark.parametrize("size", [(40, 28), (1, 1), (33, 64), (17, 100)])
def test_any_size_comes_back_in_its_size(size: tuple[int, int], bridge: str, encoder: str) -> None:
    model = tokenizer(BRIDGES[bridge], encoder=encoder)
    images = torch.rand(2, 3, *size)
    with torch.no_grad():
        latent = model.encode(images).mode()
        made = model.reconstruct(images)
        whole = model.decode(latent)
    assert tuple(latent.shape[1:]) == model.latent_shape(*size)
    assert made.shape == images.shape
    assert (1, *whole.shape[-2:]) == model.geometry(*size).padded
    assert torch.equal(whole[..., : size[0], : size[1]].clamp(0, 1), made)


@pytest.mark.parametrize("encoder", ["vit", "timm"])
def test_half_the_grid_is_half_the_latent_and_the_replica_keeps_in_step(encoder: str) -> None:
    model = tokenizer(HALF, encoder=encoder)
    _, q, _ = model.decoder.patch
    plan = model.geometry(5 * q, 3 * q)
    assert plan.grid == (1, 6, 4)
    assert plan.padded == (1, 6 * q, 4 * q)
    assert model.latent_shape(5 * q, 3 * q) == (4, 3, 2)
    pivot = tokenizer(HALF, encoder=encoder).encoder
    pivot.load_state_dict(model.encoder.state_dict())
    replica = PivotReplica(pivot, output_patch=q, downsampling=model.bridge.downsampling)
    images = torch.rand(1, 3, 5 * q - 1, 3 * q)
    with torch.no_grad():
        ours, theirs = model.features(images), replica.features(images)
    assert ours.grid == theirs.grid == (1, 6, 4)
    torch.testing.assert_close(ours.tokens, theirs.tokens)


def test_an_odd_grid_is_refused_where_no_tokenizer_padded_it() -> None:
    bridge = ConvBridge(features=8, latent_channels=2, width=8, downsampling=2)
    with pytest.raises(UsageError, match=r"3×4 tokens cannot be downsampled by 2"):
        bridge.encode(Features(torch.zeros(1, 12, 8), (1, 3, 4)))
    with pytest.raises(ValueError, match="downsampling is 1 or 2, not 3"):
        ConvBridge(features=8, latent_channels=2, downsampling=3)


def test_another_downsampling_is_a_config_error_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"downsampling: expected one of 1, 2, got 4"):
        part_config("bridges", HALF | {"downsampling": 4})


@pytest.mark.parametrize(
    ("name", "part", "channels"),
    [("conv16", "conv", 16), ("conv-kl16", "conv-kl", 16), ("linear8", "linear", 8),
     ("pca", "linear", 64), ("conv-kl", "conv-kl", 64)],
)  # fmt: skip
def test_names_of_bridges(name: str, part: str, channels: int) -> None:
    config = part_config("bridges", name)
    assert isinstance(config, BridgeConfig)
    assert config.name == part
    assert config.describe().latent_channels == channels


def test_presets_of_the_decoder_are_what_their_summaries_say() -> None:
    presets = [p for p in registry("decoders").presets() if p.part == "conv"]
    assert {p.name for p in presets} == {"conv-b", "conv-s"}
    for preset in presets:
        config = part_config("decoders", preset.name)
        assert isinstance(config, ConvDecoderConfig)
        per = "per octave"
        said = (
            f"{config.width} wide, {config.depth} blocks on the token grid, {config.blocks} {per}"
        )
        assert preset.summary == said


def test_activations_computed_again_give_the_same_gradients() -> None:
    decoder = ConvDecoder(features=4, patch=4, width=8, depth=2, blocks=1)
    features = Features(torch.randn(1, 6, 4), (1, 2, 3))
    gradients = []
    for enabled in (False, True):
        decoder.zero_grad()
        with recomputing(enabled):
            decoder(features).square().sum().backward()
        gradients.append([p.grad for p in decoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("width", "groups"), [(4, 1), (26, 2), (32, 8), (34, 2), (256, 32)])
def test_groups_divide_the_width_and_hold_four_channels(width: int, groups: int) -> None:
    assert group_norm(width).num_groups == groups
    assert ConvBlock(width=width)(torch.randn(1, width, 1, 1)).shape == (1, width, 1, 1)
