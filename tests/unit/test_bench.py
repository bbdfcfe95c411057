"""``rpiae bench``: what runs of images and of videos are measured on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rpiae import runs
from rpiae.cli import main
from rpiae.core.model.tokenizer import RPiAE
from rpiae.generators.configs import DitConfig
from rpiae.runs import timing
from rpiae.runs.speed import measure
from rpiae.runs.timing import Speed
from tests.toys import BRIDGES, DECODERS, ENCODERS

STAGE: dict[str, Any] = {
    "train": ["decoder"], "steps": 3, "batch_size": 2, "terms": [{"loss": "l1", "weight": 1.0}],
    "optimiser": {"learning_rate": 1e-3},
}  # fmt: skip
STAGES = [
    STAGE | {"name": "still", "image_share": 1.0},
    STAGE | {"name": "mixed", "image_share": 0.5},
]


RUN = """
bridge = "tvb4x4"
encoder = { name = "vit", width = 32, depth = 1, num_heads = 2 }
decoder = { name = "vit", width = 32, depth = 1, num_heads = 2, mlp_hidden = 32 }

[recipe]
name = "short"

[[recipe.stages]]
name = "still"
train = ["encoder", "bridge", "decoder"]
steps = 3
batch_size = 2
image_share = 1.0
optimiser = { learning_rate = 1e-3 }
terms = [{ loss = "l1", weight = 1.0 }]
"""


@pytest.fixture(autouse=True)
def _small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "PEAK_SIZE", 64)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Of what is encoded where it is timed."""
    seen: list[tuple[int, ...]] = []
    encode = RPiAE.encode

    def watched(self: RPiAE, images: torch.Tensor, *more: Any, **named: Any) -> Any:
        if images.device.type != "meta":
            seen.append(tuple(images.shape[2:]))
        return encode(self, images, *more, **named)

    monkeypatch.setattr(RPiAE, "encode", watched)
    return seen


def _measured(bridge: str, decoder: str, stages: list[dict[str, Any]]) -> dict[str, Speed]:
    tree = {
        "encoder": ENCODERS["vit"], "bridge": BRIDGES.get(bridge, bridge),
        "decoder": DECODERS[decoder], "recipe": {"name": "short", "stages": stages},
    }  # fmt: skip
    resolved = runs.resolve(tree, overrides=("encoder.pretrained=false",))
    rows = measure(resolved, precisions=("fp32",), repeats=1)
    return {row.operation: row for row in rows if isinstance(row, Speed)}


@pytest.mark.parametrize(("bridge", "decoder"), [("tvb4x4", "vit"), ("vb4", "video-vit")])
def test_what_works_over_time_is_measured_on_clips(
    bridge: str, decoder: str, shapes: list[tuple[int, ...]]
) -> None:
    rows = _measured(bridge, decoder, STAGES)
    assert {shape[0] for shape in shapes} == {17}
    frames = {name: row.frames for name, row in rows.items()}
    assert frames == {
        "encode": 17, "encode + decode": 17, "stage still": None, "stage mixed": 17,
    }  # fmt: skip
    assert all(row.images_per_second > 0 for row in rows.values())


def test_cost_is_per_frame() -> None:
    alone = _measured("vb4", "vit", [STAGE | {"name": "still"}])
    over_time = _measured("vb4", "video-vit", [STAGE | {"name": "still"}])
    assert {row.frames for row in alone.values()} == {None}
    assert over_time["encode"].multiply_adds == alone["encode"].multiply_adds
    assert over_time["encode + decode"].multiply_adds > alone["encode + decode"].multiply_adds


def test_the_command_says_what_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(RUN)
    command = ["bench", "--config", str(config), "--precision", "fp32", "--repeats", "1"]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "clips of 17 frames" in said
    assert "frames/s GMAC/frame" in said
    assert "stage still (images)" in said


GENERATOR = (
    "bench", "--generator", "dit-t", "--precision", "fp32", "--repeats", "1",
    "--set", "generator.latent_channels=4", "--set", "generator.rows=4",
    "--set", "generator.columns=2", "--set", "generator.depth=1", "--set", "recipe.batch_size=2",
)  # fmt: skip


def test_a_generator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GENERATOR, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["latent"] == [4, 4, 2]
    sampling, training = report["rows"]
    assert [sampling["operation"], training["operation"]] == ["sampling step", "stage flow"]
    # Per token: 12·w² in the block and what lies around it; the backward pass takes twice as much.
    assert sampling["multiply_adds"] > 8 * 12 * 192**2
    assert training["multiply_adds"] / sampling["multiply_adds"] == pytest.approx(3, rel=0.02)
    assert all(row["images_per_second"] > 0 and row["peak_share"] > 0 for row in report["rows"])
    wanted = DitConfig(
        latent_channels=4, rows=4, columns=2, num_classes=1000, width=192, depth=1, num_heads=3
    ).build()
    assert report["parameters"] == {"generator": sum(p.numel() for p in wanted.parameters())}


def test_the_run_of_a_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.toml"
    config.write_text('generator = "dit-t"\nlatents = "not/read"\n')
    command = [word for word in GENERATOR if word not in ("--generator", "dit-t")]
    assert main([*command, "--config", str(config), "--set", "generator.num_classes=0"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "parameters · latents 4×4×2" in said
    assert "sampling step fp32" in said


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        (("--encoder", "tiny"), "--encoder is of a tokenizer's run, and a generator is measured"),
        (("--recipe", "quick"), "'quick' trains a tokenizer, and this run is of a generator"),
        (("--set", "generator.num_heads=5"), "5 heads do not divide the width of 192"),
    ],
)
def test_what_does_not_go_with_a_generator(
    more: tuple[str, ...], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*GENERATOR, *more]) == 2
    assert wanted in " ".join(capsys.readouterr().err.split())
