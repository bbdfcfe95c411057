"""The embedded default of ``rpiae diffuse``, short of training anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rpiae.core.errors import UsageError
from rpiae.data.digits import digits_file, read_digits
from rpiae.runs.demonstration import demonstrate
from rpiae.runs.demonstration.reader import DigitReader, grey_values, scans
from tests.commands import rpiae


def test_grey_values_of_a_scan_are_the_scan() -> None:
    images, labels = scans("all", 8)
    digits = read_digits(digits_file())
    assert np.array_equal(np.round(grey_values(images)), digits.scans.reshape(-1, 64))
    assert labels == digits.labels.tolist()


@pytest.mark.parametrize("side", [16, 32])
def test_held_out_scans_are_read(side: int) -> None:
    reader = DigitReader()
    images, labels = scans("held-out", side)
    assert reader.share(images, labels) > 0.97
    assert reader.share(1 - images, labels) < 0.3
    assert reader.share(images, [(label + 1) % 10 for label in labels]) < 0.02


def test_colours_do_not_matter_but_for_their_mean() -> None:
    images, _ = scans("held-out", 16)
    tinted = images * torch.tensor([0.5, 1.0, 1.5]).view(3, 1, 1)
    assert np.allclose(grey_values(tinted), grey_values(images), atol=1e-4)


def test_the_plan_of_the_first_step(tmp_path: Path) -> None:
    out, _ = rpiae("diffuse", "--dry-run", cwd=tmp_path)
    assert "data digits (given), 1437 images to train on" in out
    assert "then: latents of the scans, a generator on them" in out
    assert not list(tmp_path.iterdir())


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(UsageError, match="already holds a run: name another --out"):
        next(demonstrate(tmp_path))
    own = tmp_path / "own"
    (own / "tokenizer").mkdir(parents=True)
    config = own / "tokenizer" / "config.toml"
    for text in ("seed = 4\n", "[data]\nname = 'folder'\n"):
        config.write_text(text)
        with pytest.raises(UsageError, match="holds another run's tokenizer"):
            next(demonstrate(own, seed=4))
    config.write_text("seed = 4\n[data]\nname = 'digits'\n")
    with pytest.raises(UsageError, match="was begun with seed 4: say --seed 4 to go on"):
        next(demonstrate(own, seed=5))
