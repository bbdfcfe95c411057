"""The encoder as a part of rpiae, offline and at toy size: transformers' own tokens, any grid, weights."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rpiae_vjepa2 import MODELS
from rpiae_vjepa2.configs import MEAN, STD, VJepa2EncoderConfig
from rpiae_vjepa2.encoder import VJepa2Encoder, rotated, rotation_of
from transformers import (
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
    VJEPA2VideoProcessor,
)

import rpiae
from rpiae.plugin import (
    CheckpointError,
    ConfigError,
    FetchError,
    UsageError,
    check_builds,
    check_encoder,
    check_plugin,
)

#: Two heads of 18 channels: 6 turn with time, rows and columns each.
TOY = {"width": 36, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "patch": 4}
#: Three heads of 14 channels: two of them do not turn.
LEFT_OVER = TOY | {"width": 42, "num_heads": 3}
ENCODER = {"name": "vjepa2", **TOY}
DECODER = {
    "name": "video",
    "image": {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64},
}


def theirs(side: int = 12, **changed: Any) -> VJEPA2Model:
    """transformers' model of the same size, for crops of ``side`` pixels, with weights that matter."""
    torch.manual_seed(1)
    fields = TOY | changed
    model = VJEPA2Model(
        VJEPA2Config(
            hidden_size=fields["width"], num_hidden_layers=fields["depth"],
            num_attention_heads=fields["num_heads"], mlp_ratio=fields["mlp_ratio"],
            patch_size=fields["patch"], crop_size=side, frames_per_clip=4, initializer_range=0.3,
            pred_hidden_size=12, pred_num_attention_heads=1, pred_num_hidden_layers=1,
            attn_implementation="eager",
        )
    )  # fmt: skip
    return model.eval()


def ours(model: VJEPA2Model, folder: Path, **changed: Any) -> VJepa2Encoder:
    """Our encoder with the weights of theirs, out of a folder that transformers has written."""
    model.save_pretrained(folder)
    config = VJepa2EncoderConfig(weights=str(folder), **(TOY | changed))
    encoder = config.build().eval()
    config.load_pretrained(encoder)
    return encoder


@pytest.mark.parametrize("fields", [TOY, LEFT_OVER, TOY | {"frames": 3}], ids=str)
def test_contract(fields: dict[str, Any]) -> None:
    check_encoder(VJepa2EncoderConfig(**fields))


def test_the_plugin_is_found_and_brings_what_it_says() -> None:
    check_plugin("rpiae-vjepa2")
    assert rpiae.ENCODERS.broken() == {}
    assert rpiae.ENCODERS.entry("vjepa2").distribution == "rpiae-vjepa2"


@pytest.mark.parametrize(("size", "parameters"), [("l", 304), ("h", 632), ("g", 1_012)])
def test_presets_are_of_the_published_sizes(size: str, parameters: int) -> None:
    tree = rpiae.ENCODERS.select(f"vjepa2-{size}").tree
    values = {k: v for k, v in tree.items() if k not in ("name", "preset")}
    config = VJepa2EncoderConfig(name="vjepa2", preset=f"vjepa2-{size}", **values)
    facts = config.describe()
    assert (facts.frames, facts.patch, facts.image_size) == (2, 16, 256)
    assert config.repository() == f"facebook/vjepa2-vit{size}-fpc64-256" == MODELS[size][0]
    with torch.device("meta"):
        encoder = config.build()
    found = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert math.isclose(found, parameters, rel_tol=0.01)


def test_the_manifest_and_the_config_need_no_torch() -> None:
    code = (
        "import sys, rpiae_vjepa2, rpiae_vjepa2.configs; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_statistics_are_the_processors() -> None:
    assert (tuple(VJEPA2VideoProcessor.image_mean), tuple(VJEPA2VideoProcessor.image_std)) == (
        MEAN,
        STD,
    )


@pytest.mark.parametrize("fields", [TOY, LEFT_OVER], ids=["turned", "left over"])
def test_tokens_and_gradients_are_transformers_own(fields: dict[str, Any], tmp_path: Path) -> None:
    model = theirs(**fields)
    encoder = ours(model, tmp_path, **fields)
    clip = torch.randn(2, 3, 6, 12, 12)
    mine, other = clip.clone().requires_grad_(), clip.clone().requires_grad_()
    tokens, grid = encoder(mine)
    assert grid == (3, 3, 3)
    expected = model(other.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(tokens.shape)
    (tokens * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        encoder.last_weight.grad, model.encoder.layer[-1].mlp.fc2.weight.grad, atol=1e-4, rtol=1e-4
    )


def test_blocks_are_the_layers_outputs(tmp_path: Path) -> None:
    model = theirs()
    encoder = ours(model, tmp_path)
    clip = torch.randn(1, 3, 4, 12, 12)
    with torch.no_grad():
        found = encoder.blocks(clip, [-1, 0]).tokens
        layers = model(clip.transpose(1, 2), skip_predictor=True, output_hidden_states=True)
        normed = torch.nn.functional.layer_norm(found[0], (36,), eps=1e-6)
    # transformers lists the embeddings first, and each layer's output after that.
    torch.testing.assert_close(found[1], layers.hidden_states[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(normed, layers.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (5, 2), (1, 1), (3, 7)])
def test_places_are_those_of_the_grid_at_hand(rows: int, columns: int) -> None:
    """Along a row alone, transformers' places are right for any width: theirs is the reference."""
    grid = (2, rows, columns)
    rotation = rotation_of(grid, 18, torch.device("cpu"))
    q = torch.randn(1, 2, 2 * rows * columns, 18)
    side = max(rows, columns)
    attention = theirs(4 * side).encoder.layer[0].attention
    t, y, x = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    numbered = (t * side * side + y * side + x).reshape(1, -1)
    expected = attention.apply_rotary_embeddings(q, attention.get_position_ids(q[0], numbered))
    torch.testing.assert_close(rotated(q, rotation), expected, atol=1e-6, rtol=1e-6)


def test_half_precision_does_not_blur_places(tmp_path: Path) -> None:
    encoder = ours(theirs(), tmp_path)
    clip = torch.randn(1, 3, 4, 12, 20)
    with torch.no_grad():
        exact = encoder(clip).tokens
        half = encoder.to(torch.bfloat16)(clip.bfloat16()).tokens
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, half, dim=-1).min() > 0.99


def test_weights_of_a_classifier_and_of_one_file(tmp_path: Path) -> None:
    model = theirs()
    classifier = VJEPA2ForVideoClassification(model.config)
    classifier.vjepa2.load_state_dict(model.state_dict())
    classifier.save_pretrained(tmp_path / "classifier")
    encoder = ours(model, tmp_path / "plain")
    for weights in (tmp_path / "classifier", tmp_path / "plain" / "model.safetensors"):
        config = VJepa2EncoderConfig(weights=str(weights), **TOY)
        again = config.build()
        config.load_pretrained(again)
        for name, value in again.state_dict().items():
            assert torch.equal(value, encoder.state_dict()[name])


def test_another_architecture_is_refused_also_where_shapes_are_the_same(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    for changed, message in (
        ({"num_heads": 3}, "says num_attention_heads = 2, and this encoder has 3"),
        ({"depth": 2}, "says num_hidden_layers = 3, and this encoder has 2"),
    ):
        config = VJepa2EncoderConfig(weights=str(tmp_path), **(TOY | changed))
        with pytest.raises(CheckpointError, match=message):
            config.load_pretrained(config.build())
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="no place for"):
        config.load_pretrained(config.build())
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json is no config of V-JEPA 2"):
        config.load_pretrained(config.build())


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vjepa2"}))
    with pytest.raises(CheckpointError, match=r"weights of encoder 'vjepa2'.*folder"):
        VJepa2EncoderConfig(name="vjepa2", weights=str(tmp_path), **TOY).fetch()


def test_offline_is_one_sentence_and_names_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tree = rpiae.ENCODERS.select("vjepa2-l").tree
    config = VJepa2EncoderConfig(**tree)
    with pytest.raises(FetchError) as caught:
        config.fetch()
    said = str(caught.value)
    assert "https://huggingface.co/facebook/vjepa2-vitl-fpc64-256 (revision main)" in said
    assert "HF_HUB_OFFLINE is set" in said
    assert "rpiae fetch vjepa2-l" in said
    with pytest.raises(UsageError, match="names no weights"):
        VJepa2EncoderConfig(name="vjepa2").fetch()


@pytest.mark.parametrize("fields", [{"width": 35}, {"num_heads": 12}, {"num_heads": 5}])
def test_heads_that_cannot_have_positions_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="heads of an even number of channels, at least 6"):
        VJepa2EncoderConfig(**(TOY | fields)).describe()


def test_an_image_decoder_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError) as caught:
        rpiae.build(encoder=ENCODER, bridge="vb4", decoder="vit-t", pretrained=False)
    (problem,) = caught.value.problems
    assert "per token and encoder 'vjepa2' takes 2" in problem


@pytest.mark.parametrize("bridge", ["vb4", "tvb4x2"])
@pytest.mark.parametrize("frames", [1, 4, 5])
@torch.inference_mode()
def test_clips_come_back_in_their_length_and_size(bridge: str, frames: int) -> None:
    model = rpiae.build(encoder=ENCODER, bridge=bridge, decoder=DECODER, pretrained=False).eval()
    clip = torch.rand(1, 3, frames, 11, 18)
    assert model.reconstruct(clip).shape == clip.shape
    image = clip[:, :, 0]
    assert model.encode(image).mode().shape == (1, 4, 3, 5)
    assert model.reconstruct(image).shape == image.shape


@pytest.mark.parametrize("bridge", ["vb4", "tvb4x2"])
def test_it_trains_and_comes_back_from_disk(bridge: str) -> None:
    for frames in (1, 5):
        check_builds(encoder=ENCODER, bridge=bridge, decoder=DECODER, frames=frames)
