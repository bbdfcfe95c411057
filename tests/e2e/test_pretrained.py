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


def test_sampling_needs_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["sample", "cifar10", "--classes", "cat,ship", "--per-class", "2", "--steps", "4"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("samples.png: 4 samples, classes: 2")
    with Image.open("samples.png") as sheet:
        assert sheet.width > 2 * 32
        assert sheet.height > 2 * 32
    assert main(["reconstruct", "cifar10", "samples.png"]) == 1
    assert "a generator and no tokenizer, its own being cifar10-vb16" in capsys.readouterr().err


def test_a_shipped_generator_is_of_the_shipped_tokenizer() -> None:
    """Its fingerprint is compared as it is loaded; so both are replaced together or not at all."""
    generator = rpiae.load_generator("cifar10")
    assert generator.model.facts.tokenizer == "cifar10-vb16"
    assert generator.model.facts.label_names[3] == "cat"
    images = generator.sample(["cat", "ship"], steps=4, seed=1)
    assert images.shape == (2, 3, 32, 32)
    assert not torch.equal(images[0], images[1])


def test_what_ships_is_small_and_has_cards() -> None:
    folder = Path(rpiae.__file__).parent / "pretrained"
    models = [path for path in folder.iterdir() if path.is_dir()]
    assert {path.name for path in models} == {"cifar10", "cifar10-vb16"}
    listed = (folder / "README.md").read_text(encoding="utf-8")
    for path in models:
        card = (path / "README.md").read_text(encoding="utf-8")
        assert card.startswith(f"# `{path.name}`: ")
        assert f"]({path.name}/README.md)" in listed
    weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert weights < 20e6
