"""The whole path, from images in [0, 1] to the reconstruction, against the reference.

Each golden states how far its fp32 values lie from float64. Ours is another fp32 evaluation of the
same function, so the two may lie ``FLOORS`` floors apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from attrs import evolve
from torch import Tensor

from rpiae.bridges.configs import IdentityBridgeConfig, VariationalBridgeConfig
from rpiae.bridges.posterior import DiagonalGaussian
from rpiae.core.errors import CheckpointError
from rpiae.core.model.adapters import tokenizer_from_reference, tokenizer_to_reference
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import Features
from rpiae.core.model.geometry import Grid, tokens_to_map
from rpiae.core.model.resolve import resolve_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.decoders.configs import VitDecoderConfig
from rpiae.encoders.configs import TimmEncoderConfig
from rpiae.tasks.tokenizer.replica import PivotReplica

if TYPE_CHECKING:
    from tests.golden.conftest import Golden, Load

FLOORS = 2
GRID = (16, 16)
WITH_BRIDGE = ("rpiae_bridge", "rpiae_bridge_norm")
ALL = ("rpiae_stage1", *WITH_BRIDGE)


def _tokenizer(golden: Golden, state: dict[str, Tensor] | None = None) -> RPiAE:
    encoder, decoder = golden.facts["encoder"], golden.facts["decoder"]
    bridge = golden.facts.get("bridge")
    resolved = resolve_tokenizer(
        TimmEncoderConfig(
            name="timm",
            model="vit_small_patch14_reg4_dinov2",
            model_args={
                "embed_dim": encoder["hidden_size"],
                "depth": encoder["num_hidden_layers"],
                "num_heads": encoder["num_attention_heads"],
            },
            mean=tuple(golden.facts["image_mean"]),
            std=tuple(golden.facts["image_std"]),
            pretrained=False,
        ),
        VariationalBridgeConfig(name="variational", latent_channels=bridge["vb_latent_dim"])
        if bridge
        else IdentityBridgeConfig(name="identity"),
        VitDecoderConfig(
            name="vit",
            width=decoder["decoder_hidden_size"],
            depth=decoder["decoder_num_hidden_layers"],
            num_heads=decoder["decoder_num_attention_heads"],
            mlp_hidden=decoder["decoder_intermediate_size"],
            stored_grid=GRID,
        ),
    )
    model = build_tokenizer(resolved)
    model.load_state_dict(state or tokenizer_from_reference(golden.state, grid=GRID))
    if golden.facts["normalization_stats"]:
        model.register_buffer("feature_mean", golden.inputs["latent_mean"])
        model.register_buffer("feature_var", golden.inputs["latent_var"])
    return model.eval()


def _near(golden: Golden, actual: Tensor, name: str, floor: str) -> None:
    tolerance = FLOORS * golden.facts["max_abs_diff_vs_same_model_in_float64"][floor]
    torch.testing.assert_close(actual, golden.expected[name], rtol=0, atol=tolerance)


def image_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens of images as the reference lays them out, (b, d, h, w)."""
    return tokens_to_map(tokens, grid).squeeze(2)


@torch.inference_mode()
def test_stage_one(golden: Load) -> None:
    stage1 = golden("rpiae_stage1")
    model = _tokenizer(stage1)
    images = stage1.inputs["images"]
    features = model.features(images)
    assert features.grid == (1, *GRID)
    _near(stage1, features.tokens, "encoder_tokens", "latent")
    latent = model.encode(images).mode()
    _near(stage1, latent, "latent", "latent")
    reconstruction = model.decode(latent, size=(256, 256))
    _near(stage1, reconstruction, "reconstruction", "reconstruction")
    torch.testing.assert_close(
        F.l1_loss(reconstruction, images), stage1.expected["rec_l1"], rtol=1e-5, atol=0
    )
    assert torch.equal(model.reconstruct(images), reconstruction.clamp(0, 1))


@torch.inference_mode()
def test_replica(golden: Load) -> None:
    stage1 = golden("rpiae_stage1")
    names = {k.removeprefix("teacher_"): v for k, v in stage1.state.items()}
    decoder = {k: v for k, v in stage1.state.items() if k.startswith("decoder.")}
    pivot = {k: v for k, v in names.items() if k.startswith("encoder.")}
    teacher = {k: stage1.state[f"teacher_{k}"] for k in pivot}
    anchored = _tokenizer(stage1, tokenizer_from_reference(teacher | decoder, grid=GRID))
    replica = PivotReplica(anchored.encoder, output_patch=anchored.decoder.patch)
    images = stage1.inputs["images"]
    tokens = replica.features(images).tokens
    _near(stage1, image_map(tokens, (1, *GRID)), "teacher_latent", "teacher_latent")
    loss = F.mse_loss(_tokenizer(stage1).features(images).tokens, tokens)
    torch.testing.assert_close(loss, stage1.expected["piv_loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", WITH_BRIDGE)
@torch.inference_mode()
def test_with_bridge(golden: Load, name: str) -> None:
    bridged = golden(name)
    model = _tokenizer(bridged)
    images = bridged.inputs["images"]
    features = model.features(images)
    _near(bridged, features.tokens, "encoder_tokens", "z_clean")
    posterior = model.posterior(features)
    assert isinstance(posterior, DiagonalGaussian)
    _near(bridged, posterior.mean.squeeze(2), "posterior_mean", "posterior_mean")
    _near(bridged, posterior.logvar.squeeze(2), "posterior_logvar", "posterior_logvar")
    assert torch.equal(model.encode(images).mode(), posterior.mean.squeeze(2))
    expanded = model.expand(posterior.mode())
    _near(bridged, image_map(*expanded), "vb_decoded_denorm", "vb_decoded_denorm")
    reconstruction = model.decode(posterior.mode(), size=(1, 256, 256)).squeeze(2)
    assert torch.equal(model.decode(posterior.mode().squeeze(2), size=(256, 256)), reconstruction)
    _near(bridged, reconstruction, "reconstruction", "reconstruction")
    torch.testing.assert_close(
        posterior.kl(), bridged.expected["stage2_kl_mean"], rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        F.l1_loss(reconstruction, images), bridged.expected["stage2_rec_l1"], rtol=1e-5, atol=0
    )


@torch.inference_mode()
def test_features_are_compared_in_one_space(golden: Load) -> None:
    plain = golden("rpiae_bridge")
    model = _tokenizer(plain)
    features = model.features(plain.inputs["images"])
    loss = F.mse_loss(model.expand(model.posterior(features).mode()).tokens, features.tokens)
    torch.testing.assert_close(loss, plain.expected["stage2_feat_mse"], rtol=1e-5, atol=0)

    # With statistics the reference mixes two spaces; the value in one of them is given beside it.
    normed = golden("rpiae_bridge_norm")
    model = _tokenizer(normed)
    features = model.features(normed.inputs["images"])
    mean, var = normed.inputs["latent_mean"], normed.inputs["latent_var"]
    normalised = (image_map(*features) - mean) / (var + 1e-5).sqrt()
    _near(normed, normalised, "z_clean", "z_clean")
    decoded = model.bridge.decode(as_clip(normed.expected["latent_mode"]))
    _near(normed, image_map(*decoded), "vb_decoded", "vb_decoded_denorm")
    torch.testing.assert_close(
        F.mse_loss(image_map(*decoded), normalised),
        normed.expected["feat_mse_in_normalised_space"],
        rtol=1e-5,
        atol=0,
    )


@torch.inference_mode()
def test_feature_norm_of_another_grid_is_refused(golden: Load) -> None:
    model = _tokenizer(golden("rpiae_bridge_norm"))
    with pytest.raises(ValueError, match="feature_norm was made for a grid of"):
        model.posterior(Features(torch.zeros(1, 15 * 16, 96), (1, 15, 16)))


@pytest.mark.parametrize("name", ALL)
def test_round_trip(golden: Load, name: str) -> None:
    own = tokenizer_from_reference(golden(name).state, grid=GRID)
    there = tokenizer_to_reference(own)
    ignored = ("teacher_encoder.", "encoder.encoder.embeddings.mask_token")
    assert set(there) == {k for k in golden(name).state if not k.startswith(ignored)}
    back = tokenizer_from_reference(there, grid=GRID)
    assert set(back) == set(own)
    assert all(torch.equal(back[key], own[key]) for key in own)


def test_missing_and_unknown_keys_are_named(golden: Load) -> None:
    state = golden("rpiae_bridge").state
    name = "encoder.encoder.encoder.layer.2.layer_scale2.lambda1"
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.2\.layer_scale2\.lambda1 is miss"):
        tokenizer_from_reference({k: v for k, v in state.items() if k != name}, grid=GRID)
    with pytest.raises(CheckpointError, match=r"has no optimizer\.step"):
        tokenizer_from_reference(state | {"optimizer.step": torch.zeros(1)}, grid=GRID)
    own = tokenizer_from_reference(state, grid=GRID)
    with pytest.raises(CheckpointError, match="has no feature_mean"):
        tokenizer_to_reference(own | {"feature_mean": torch.zeros(64, 1, 1)})


def test_stored_positions_follow_the_config(golden: Load) -> None:
    model = _tokenizer(golden("rpiae_stage1"))
    assert model.config is not None
    assert isinstance(model.config.decoder, VitDecoderConfig)
    moved = evolve(model.config, decoder=evolve(model.config.decoder, stored_grid=()))
    assert "decoder.positions" in dict(model.named_buffers())
    assert "decoder.positions" not in dict(build_tokenizer(moved).named_buffers())
