"""Decoders alone, the hub, and the way back to the official layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import rpiae
from rpiae.cli import main
from rpiae.core.errors import CheckpointError, FetchError, UsageError
from rpiae.core.model.adapters import decoder_to_reference, tokenizer_to_reference
from rpiae.core.model.blocks import sincos_positions
from rpiae.core.model.build import build_tokenizer, resolved_parts
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.weights import shapes
from rpiae.encoders.configs import TimmEncoderConfig
from rpiae.interop import importing
from rpiae.interop.importing import import_model
from rpiae.interop.reference.facts import Facts, Told
from rpiae.interop.reference.parts import bridge_config, decoder_sizes
from rpiae.interop.reference.tokenizers import write_reference
from rpiae.interop.reference.transformers import foreign_encoder
from tests.official import ENCODER, alone, decoder_alone, official, state_of, tokenizer
from tests.toys import DECODERS, ENCODERS


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def same(one: RPiAE, other: RPiAE) -> bool:
    return torch.equal(one.reconstruct(images()), other.reconstruct(images()))


def test_a_decoder_with_an_encoder_of_transformers(tmp_path: Path) -> None:
    model = tokenizer(bridge="identity")
    there = official(tmp_path / "there", model)
    file = decoder_alone(tmp_path / "decoder.pt", state_of(there))
    told = Told(encoder=str(there / "encoder"), configs=(str(there / "decoder"),))
    found = import_model(file, told=told)
    assert isinstance(found.model, RPiAE)
    assert same(found.model, model)
    assert {"decoder.pt", "model.safetensors"} <= {Path(path).name for path in found.read}
    other = tokenizer(
        bridge="identity", encoder={**ENCODER, "model_args": {"embed_dim": 48, "depth": 1}}
    )
    wide = official(tmp_path / "wide", other) / "encoder"
    with pytest.raises(UsageError, match=r"features 32 wide, and encoder 'timm' gives 48"):
        import_model(file, told=Told(encoder=str(wide), decoder_heads=2))
    with pytest.raises(UsageError, match="holds its encoder: --encoder and --encoder-weights are"):
        import_model(there, told=Told(encoder="dinov2-b"))


def test_a_decoder_with_a_preset(tmp_path: Path) -> None:
    model = rpiae.build(encoder="tiny", bridge="identity", decoder=DECODERS["vit"]).eval()
    own = model.roles["decoder"].state_dict()
    own["positions"] = sincos_positions(8, 8, 32).reshape(1, 8, 8, 32)
    prefixed = {f"decoder.{n}": value for n, value in decoder_to_reference(own).items()}
    torch.save({"ema": prefixed}, tmp_path / "decoder.pt")
    command = ["import", str(tmp_path / "decoder.pt"), "--out", str(tmp_path / "out")]
    assert main([*command, "--encoder", "tiny", "--decoder-heads", "2"]) == 0
    found = rpiae.load(tmp_path / "out")
    assert same(found, model)
    assert main([*command, "--encoder", "tyni", "--decoder-heads", "2"]) == 2


def test_a_preset_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = {**ENCODERS["timm"], "model_args": {"embed_dim": 384, "depth": 1, "num_heads": 6}}
    there = official(tmp_path / "there", tokenizer(bridge="identity", encoder=encoder))
    file = decoder_alone(tmp_path / "decoder.pt", state_of(there))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(FetchError, match=r"fetch dinov2-s` .* --encoder-weights") as caught:
        import_model(file, told=Told(encoder="dinov2-s", decoder_heads=2))
    assert "--set" not in str(caught.value)
    with pytest.raises(UsageError, match="is a preset, to which --heads, --eps does not belong"):
        import_model(file, told=Told(encoder="dinov2-s", num_heads=6, eps=1e-6, decoder_heads=2))
    told = Told(encoder="dinov2-s", encoder_weights=str(tmp_path / "none.pt"), decoder_heads=2)
    with pytest.raises(CheckpointError, match="weights of encoder 'dinov2-s': there is no file"):
        import_model(file, told=told)


def test_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tokenizer()
    file = alone(tmp_path / "snapshot", official(tmp_path / "there", model))
    asked: list[Any] = []

    def fetched(repository: str, revision: str, files: Sequence[str]) -> Path:
        asked.append((repository, revision, list(files)))
        return file

    monkeypatch.setattr(importing, "fetch_hub", fetched)
    told = Told(num_heads=2, decoder_heads=2, revision="v1")
    found = import_model("qihoo360/RPiAE", told=told).model
    assert isinstance(found, RPiAE)
    assert same(found, model)
    import_model("a/b", told=Told(num_heads=2, decoder_heads=2, file="x/y.pt"))
    with pytest.raises(UsageError, match="does not belong"):
        import_model("qihoo360/RPiAE", told=Told(tokenizer="runs/a"))
    assert asked[0][:2] == ("qihoo360/RPiAE", "v1")
    assert asked[0][2][0] == "rpiae_stage3_1_c64_ema.pt"
    assert asked[1:] == [
        ("a/b", "main", ["x/y.pt"]),
        ("qihoo360/RPiAE", "main", ["LightningDiT/ep-0000800.pt"]),
    ]


def test_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        FetchError, match=r"rpiae_stage3_1_c64_ema\.pt.*HF_HUB_OFFLINE is set.*--file"
    ):
        import_model("qihoo360/RPiAE")
    assert main(["import", "qihoo360/RPiAE", "--out", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="--revision is of repositories of the hub, and"):
        import_model(tmp_path, told=Told(revision="v1"))


@pytest.mark.parametrize("bridge", ["identity", "vb4"])
def test_what_is_written(tmp_path: Path, bridge: str) -> None:
    model = tokenizer(bridge=bridge)
    model.register_buffer("latent_mean", torch.zeros(model.bridge.latent_channels))
    model.register_buffer("latent_std", torch.ones(model.bridge.latent_channels))
    said = write_reference(model, tmp_path / "there")
    assert "left out latent_norm, which the official layout has no place for" in said
    target = "stage1.RPiAE_VB" if bridge == "vb4" else "stage1.RPiAE\n"
    assert f"target: {target}" in (tmp_path / "there" / "rpiae.yaml").read_text()
    assert not (tmp_path / "there" / "stats.pt").exists()


def test_halves_are_written_in_float32(tmp_path: Path) -> None:
    said = write_reference(tokenizer().bfloat16(), tmp_path / "there")
    assert "weights were torch.bfloat16 and were written in float32" in said
    found = import_model(tmp_path / "there").model
    assert isinstance(found, RPiAE)
    rounded = tokenizer()
    for value in rounded.parameters():
        value.data = value.data.bfloat16().float()
    assert same(found, rounded)


REFUSED = {
    "conv decoder": ({"decoder": DECODERS["conv"]}, "its decoder 'conv' is not the ViT one"),
    "conv bridge": ({"bridge": "conv4"}, "its bridge .* is not the variational one"),
    "our ViT": ({"encoder": ENCODERS["vit"]}, "its encoder 'vit' is none of timm's"),
    "layers": ({"encoder": ENCODERS["timm-layers"]}, "its features are made of several layers"),
    "rotary": ({"encoder": ENCODERS["timm-rotary"]}, "none of transformers known here"),
    "not square": (
        {"decoder": {**DECODERS["vit"], "stored_grid": [2, 3]}},
        "has square grids alone, and the decoder's is 2×3",
    ),
    "timm's resampling": (
        {
            "encoder": {
                **ENCODERS["timm"], "model": "vit_small_patch14_dinov2", "image_size": 32,
                "model_args": {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 56},
            }
        },
        "its encoder follows other rules than those of transformers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_official_layout_has_no_place_for(tmp_path: Path, case: str) -> None:
    parts, reason = REFUSED[case]
    given = {"encoder": ENCODER, "bridge": "vb4", "decoder": DECODERS["vit"], **parts}
    model = rpiae.build(**given, pretrained=False)
    with pytest.raises(UsageError, match=re.escape(reason) if "*" not in reason else reason):
        write_reference(model, tmp_path / "there")


def test_the_released_sizes_need_nothing_told() -> None:
    """dinov2-b, 64 channels and the decoder XL, without their memory."""
    decoder = {"name": "vit", "width": 1152, "depth": 28, "num_heads": 16, "mlp_hidden": 4096}
    resolved = resolved_parts("dinov2-b", "vb64", {**decoder, "stored_grid": [16, 16]})
    model = build_tokenizer(resolved, device="meta")
    there = shapes(tokenizer_to_reference(model.state_dict()))
    facts = Facts("the released file")
    encoder = foreign_encoder(there, source="the file", prefix="encoder.")
    sizes = decoder_sizes(there, "the file")
    config = encoder.config(facts, output_patch=sizes.patch, image_size=sizes.image_size)
    assert (sizes.heads(facts), sizes.image_size) == (16, 256)
    facts.check_none_asked()
    assert config.describe() == resolved.encoder_facts
    assert isinstance(config, TimmEncoderConfig)
    assert config.model_args["num_heads"] == 12
    assert [note.partition(":")[0] for note in facts.notes] == [
        "attention heads of the encoder (width 768, 12 blocks)", "epsilon of the encoder's norms",
        "mean of the encoder's input", "std of the encoder's input",
        "attention heads of the decoder (width 1152, 28 layers)",
    ]  # fmt: skip
    bridge = bridge_config(there, "the file", encoder.width)
    assert bridge.describe() == resolved.bridge_facts
