"""``rpiae bench``: what runs of images and of videos are measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rpiae import runs
from rpiae.cli import main
from rpiae.core.model.tokenizer import RPiAE
from rpiae.runs import speed
from rpiae.runs.speed import Speed, measure
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
    monkeypatch.setattr(speed, "PEAK_SIZE", 64)


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
