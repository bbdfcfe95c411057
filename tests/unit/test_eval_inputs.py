"""What an evaluation is given is looked at before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpiae.cli import main
from rpiae.core.model.build import build
from rpiae.core.model.folders import save_tokenizer
from rpiae.evaluation.panel import Panel
from tests.short_run import write_images
from tests.toys import DECODERS, ENCODERS


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a tokenizer and images to measure it on."""
    monkeypatch.chdir(tmp_path)
    save_tokenizer(build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"]), "a")
    write_images(tmp_path / "test", count=3)
    return tmp_path


@pytest.mark.parametrize(
    ("train", "code", "reason"),
    [
        ("folder:nowhere", 1, "there is no such folder"),
        ("nonsense:x", 2, "nonsense"),
        ("folder:mixed", 2, "has several splits"),
        ("folder:test", 2, "both what is learned from and what is measured on"),
    ],
)
def test_training_images_are_looked_at_before_measuring(
    place: Path,
    train: str,
    code: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split in ("train", "test"):
        write_images(place / "mixed" / "a" / split, count=2)
    monkeypatch.setattr(Panel, "update", lambda *_: pytest.fail("it is measured"))
    given = ["--data", "folder:test", "--train", train, "--metrics", "psnr", "--device", "cpu"]
    assert main(["eval", "a", *given]) == code
    assert reason in capsys.readouterr().err
