"""A tokenizer on a GPU: encode, decode, reconstruct, measure; from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rpiae import runs
from rpiae.cli import main
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.streaming import reconstructed
from rpiae.core.model.tokenizer import RPiAE
from rpiae.latents import LatentDataset
from tests.short_run import write_images
from tests.toys import BRIDGES, DECODERS, ENCODERS

pytestmark = pytest.mark.gpu

COMBINATIONS = [
    ("vit", "vb4", "vit"),
    ("timm", "conv-kl-half", "conv"),
    ("timm-rotary", "linear4", "vit"),
    ("open-clip", "conv4", "vit"),
]


def _tokenizer(encoder: str, bridge: str, decoder: str) -> RPiAE:
    tree = {
        "encoder": ENCODERS[encoder], "bridge": BRIDGES[bridge], "decoder": DECODERS[decoder],
    }  # fmt: skip
    return build_tokenizer(runs.resolve(tree).tokenizer, seed=0, trained_size=32).eval()


@pytest.mark.parametrize(("encoder", "bridge", "decoder"), COMBINATIONS)
def test_the_card_encodes_and_decodes_as_the_processor(
    card: torch.device, encoder: str, bridge: str, decoder: str
) -> None:
    model = _tokenizer(encoder, bridge, decoder)
    images = torch.rand(3, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, latent = model.reconstruct(images), model.encode(images).mode()
        model.to(card)
        found = model.reconstruct(images.to(card))
        torch.testing.assert_close(
            model.encode(images.to(card)).mode().cpu(), latent, atol=2e-3, rtol=2e-3
        )
    assert found.device.type == card.type
    torch.testing.assert_close(found.cpu(), wanted, atol=2e-3, rtol=2e-3)


def test_clips_and_streams_on_the_card(card: torch.device) -> None:
    model = _tokenizer("vit", "tvb4x4", "video-vit")
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    clip = torch.rand(2, 3, 11, 20, 36, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.reconstruct(clip)
        model.to(card)
        found = model.reconstruct(clip.to(card))
        chunks = torch.split(clip.to(card), [3, 1, 7], dim=2)
        streamed = torch.cat(list(reconstructed(model, chunks)), dim=2)
    assert streamed.device.type == card.type
    torch.testing.assert_close(found.cpu(), wanted, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(streamed, found, atol=2e-3, rtol=2e-3)


def test_the_verbs_run_on_the_card(
    tmp_path: Path, card: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = save_tokenizer(_tokenizer("vit", "vb4", "vit"), tmp_path / "tokenizer")
    images = write_images(tmp_path / "images")
    common = ["--device", str(card)]
    data = f"folder:{images}"
    latents, pictures = tmp_path / "latents", tmp_path / "pictures"
    assert main(["encode", str(saved), data, "--out", str(latents), *common]) == 0
    assert len(LatentDataset(latents)) == 13
    assert main(["decode", str(latents), "--out", str(pictures), "--limit", "2", *common]) == 0
    assert len(list(pictures.glob("*.png"))) == 2
    capsys.readouterr()
    figures = {}
    for device in (str(card), "cpu"):
        command = ["eval", str(saved), "--data", data, "--metrics", "psnr,ssim,rfd:tiny", "--json"]
        assert main([*command, "--device", device, "--precision", "fp32"]) == 0
        (measured,) = json.loads(capsys.readouterr().out).values()
        figures[device] = {name: measured["metrics"][name] for name in ("psnr", "ssim")}
    assert figures[str(card)] == pytest.approx(figures["cpu"], rel=2e-3)
