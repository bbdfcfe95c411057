"""The first look at generators: its table, out of what ``rpiae eval --json`` prints."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from rpiae.cli import main
from rpiae.evaluation.cnn import SmallCnn, save_cnn
from tests.toy_generators import NAMES, write_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "look_at_generation.py"


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("look_at_generation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def write_images(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for i in range(10):
            pixels = draws.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_the_table_of_what_eval_prints(
    look: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "val")
    write_run(tmp_path / "g")
    cnn = tmp_path / "cnn.safetensors"
    save_cnn(SmallCnn(widths=(4, 8, 16), classes=3), cnn, accuracy=0.25, seed=7, training="none")
    capsys.readouterr()
    asked = ["--data", f"folder:{tmp_path / 'val'}", "--count", "12", "--steps", "2"]
    metrics = ["--metrics", look.metrics(cnn), "--device", "cpu", "--json"]
    assert main(["eval", str(tmp_path / "g"), *asked, *metrics]) == 0
    printed = capsys.readouterr().out
    (numbers,) = (each["metrics"] for each in json.loads(printed).values())
    settings = look.Settings(
        out=tmp_path, data=tmp_path, cnn=cnn, generator="dit-t", steps=1, batch_size=1, count=12,
        sampling_steps=2, guidance=2.0,
    )  # fmt: skip
    results = tmp_path / "generators"
    results.mkdir()
    for each in look.LOOKS:
        for guidance in ("1", "2"):
            (results / f"{each.name}-{guidance}.json").write_text(printed)
    head, _, *rows = look.table(settings)
    assert head.count("|") == 2 + len(look.COLUMNS) + 1
    assert len(rows) == 2 * len(look.LOOKS)
    cells = [f"{numbers[name]:.{digits}f}" for name, (_, digits) in look.COLUMNS.items()]
    assert rows[1] == f"| rae | 2 | {' | '.join(cells)} |"
    # What was not measured is left open.
    lacking = json.loads(printed)
    for one in lacking.values():
        del one["metrics"]["recall[tiny]"]
    (results / "rae-1.json").write_text(json.dumps(lacking))
    assert next(row for row in look.table(settings) if "| rae | 1 |" in row).count(" – ") == 1


def test_the_picture_shows_half_of_every_guided_sheet(look: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "generators").mkdir()
    for number, each in enumerate(look.LOOKS):
        sheet = Image.new("RGB", (40, 10), (number, 0, 0))
        sheet.paste((0, 0, 200), (20, 0, 40, 10))
        sheet.save(tmp_path / "generators" / f"{each.name}-2.png")
    settings = look.Settings(
        out=tmp_path, data=tmp_path, cnn=tmp_path, generator="dit-t", steps=1, batch_size=1, count=12,
        sampling_steps=2, guidance=2.0,
    )  # fmt: skip
    with Image.open(look.picture(settings)) as whole:
        assert whole.height == 10
        shown = [whole.getpixel((left, 5)) for left in range(whole.width)]
    assert [shown.count((number, 0, 0)) for number in range(len(look.LOOKS))] == [20] * 4
    assert (0, 0, 200) not in shown
