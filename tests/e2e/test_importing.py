"""Models of others: imported, and then used as any model of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import rpiae as library
from rpiae.interop.diffusers.exporting import write_diffusers
from tests.commands import rpiae, rpiae_alone
from tests.official import decoder_alone, official, state_of, tokenizer
from tests.toys import DECODERS


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for index in range(4):
        Image.effect_noise((32, 32), 30 + index).convert("RGB").save(folder / f"{index}.png")
    return folder


def stage_one(folder: Path) -> list[str]:
    """No bridge, a replica, and averages beside raw weights."""
    state = state_of(official(folder / "there", tokenizer(bridge="identity")))
    replica = {f"teacher_{n}": v for n, v in state.items() if n.startswith("encoder.")}
    torch.save({"model": state, "ema": state | replica, "epoch": 16}, folder / "ep-16.pt")
    return ["ep-16.pt", "--heads", "2", "--decoder-heads", "2"]


def with_bridge(folder: Path) -> list[str]:
    """With statistics; the configs lie beside it."""
    model = tokenizer()
    model.register_buffer("feature_mean", torch.zeros(32, 2, 2))
    model.register_buffer("feature_var", torch.ones(32, 2, 2))
    official(folder / "there", model)
    return ["there"]


def rae(folder: Path) -> list[str]:
    """A decoder, its encoder in transformers' layout and its statistics."""
    there = official(folder / "there", tokenizer(bridge="identity"))
    decoder_alone(folder / "decoder.pt", state_of(there))
    torch.save({"mean": torch.zeros(32, 1, 1), "var": torch.ones(32, 1, 1)}, folder / "stats.pt")
    options = ["--encoder", "there/encoder", "--config", "there/decoder", "--stats", "stats.pt"]
    return ["decoder.pt", *options]


def diffusers(folder: Path) -> list[str]:
    """A folder of AutoencoderRAE."""
    encoder = {
        "name": "timm", "model": "vit_small_patch14_reg4_dinov2", "pretrained": False, "eps": 1e-6,
        "output_patch": 2, "image_size": 32,
        "model_args": {"embed_dim": 64, "depth": 1, "num_heads": 1},
    }  # fmt: skip
    model = library.build(encoder=encoder, bridge="identity", decoder=DECODERS["vit"])
    write_diffusers(model, folder / "there")
    return ["there"]


LAYOUTS = (stage_one, with_bridge, rae, diffusers)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_imported_and_used(layout: object, photos: Path, tmp_path: Path) -> None:
    assert callable(layout)
    out, _ = rpiae("import", *layout(tmp_path), "--out", "model", cwd=tmp_path)
    assert "wrote model: " in out
    assert "images of 32×32 pixels to latents of" in out
    out, _ = rpiae("reconstruct", "model", str(photos / "0.png"), "--out", "both.png", cwd=tmp_path)
    assert "32×32 through a latent of" in out
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.size == (68, 32)
    data = ("--data", f"folder:{photos}")
    rpiae("eval", "model", *data, "--metrics", "psnr,ssim", "--device", "cpu", cwd=tmp_path)
    evaluations = json.loads((tmp_path / "model" / "evaluation.json").read_text())
    assert "psnr" in json.dumps(evaluations)
    rpiae(
        "encode", "model", f"folder:{photos}", "--out", "latents", "--device", "cpu", cwd=tmp_path
    )
    assert any((tmp_path / "latents").iterdir())


def test_a_command_of_its_own(tmp_path: Path) -> None:
    arguments = with_bridge(tmp_path)
    out, _ = rpiae_alone("import", *arguments, "--out", "model", "--json", cwd=tmp_path)
    report = json.loads(out)
    assert report["tokenizer"] == "model"
    assert report["latent"] == [4, 2, 2]
    assert report["feature_norm"] is True
    _, err = rpiae_alone("import", "nowhere.pt", "--out", "other", cwd=tmp_path, code=1)
    assert "there is no file or folder nowhere.pt" in err
    assert not (tmp_path / "other").exists()
