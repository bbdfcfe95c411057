"""Models that ship with rpiae work right after installation, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rpiae
from rpiae.cli import main
from rpiae.core.errors import CheckpointError


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A smooth picture of 40×64 pixels, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[0:40, 0:64]
    waves = np.stack([np.sin(rows / 9), np.cos(columns / 11), np.sin((rows + columns) / 13)], -1)
    Image.fromarray(np.uint8(127.5 + 100 * waves)).save("photo.png")
    return tmp_path / "photo.png"


def test_reconstructing_a_photo_needs_its_name_alone(
    photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", "cifar10-vb16", "photo.png"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("photo-reconstructed.png: 40×64 through a latent of 16×10×16, PSNR ")
    assert float(told.rpartition("PSNR ")[2].split()[0]) > 25
    with Image.open("photo-reconstructed.png") as made:
        assert made.height == 40
        assert made.width >= 2 * 64
    assert main(["reconstruct", "cifar10-vb16", "photo.png"]) == 2
    assert "photo-reconstructed.png is there already" in capsys.readouterr().err


def test_in_python_it_computes_in_single_precision() -> None:
    model = rpiae.load("cifar10-vb16")
    assert model.dtype == torch.float32
    assert model.latent_shape(32, 32) == (16, 8, 8)


def test_names_that_are_none_are_told_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="Did you mean 'cifar10-vb16'"):
        rpiae.load("cifar10-vb61")


def test_a_folder_of_that_name_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = rpiae.build(encoder="tiny", bridge="vb4", decoder="vit-t")
    rpiae.save(own, "cifar10-vb16")
    assert rpiae.load("cifar10-vb16").latent_shape(32, 32) == (4, 8, 8)
