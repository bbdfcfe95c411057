"""Parts of a notebook or script, elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rpiae.core.errors import PluginError, UsageError
from rpiae.core.registry.importing import import_hint, import_modules
from tests.commands import rpiae, rpiae_alone

MODULE = '''
import attrs
import rpiae
from rpiae.encoders.configs import VitEncoderConfig

@rpiae.ENCODERS.register("mine")
@attrs.frozen(kw_only=True)
class MineConfig(VitEncoderConfig):
    """An encoder of my own."""
'''

SAVE = """
import rpiae
{register}
model = rpiae.build(
    encoder={{"name": "mine", "width": 16, "depth": 1, "num_heads": 1}}, bridge="vb4",
    decoder={{"name": "vit", "width": 16, "depth": 1, "num_heads": 1, "mlp_hidden": 16}},
)
rpiae.save(model, "saved")
"""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


DECODE = ("reconstruct", "saved", "photo.png", "--out", "out.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (32, 32), (80, 90, 100)).save(tmp_path / "photo.png")
    return tmp_path


def test_a_modules_part_is_known_where_it_is_named(folder: Path) -> None:
    package = folder / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "encoder.py").write_text(MODULE)
    made = python(folder, "-c", SAVE.format(register="import my_package.encoder"))
    assert made.returncode == 0, made.stderr
    saved = json.loads((folder / "saved" / "config.json").read_text())
    assert saved["modules"] == {"encoder": "my_package.encoder"}
    _, refusal = rpiae(*DECODE, cwd=folder, code=1)
    assert "--import my_package.encoder" in refusal
    assert "pip install" not in refusal
    assert "this process" not in refusal
    rpiae_alone(*DECODE, "--import", "my_package.encoder", cwd=folder)


def test_a_scripts_part_has_to_become_a_modules(folder: Path) -> None:
    made = python(folder, "-c", SAVE.format(register=MODULE))
    assert made.returncode == 0, made.stderr
    _, refusal = rpiae(*DECODE, cwd=folder, code=1)
    assert "put it into a module" in refusal
    assert "__main__" not in refusal
    assert "pip install" not in refusal


def test_a_run_says_what_to_import_too(folder: Path) -> None:
    (folder / "run.toml").write_text(
        'encoder = "mine"\nimports = ["my_package.encoder"]\ndata = "sample"\n'
    )
    _, refusal = rpiae("build", "--config", "run.toml", "--dry-run", cwd=folder, code=2)
    assert "--import my_package.encoder" in refusal


@pytest.mark.parametrize("name", ["os; import x", "../x", "", "a-b", "a..b", "x" * 3 + "\n"])
def test_a_file_cannot_have_anything_said_or_imported(name: str) -> None:
    assert name not in import_hint([name]) or not name
    with pytest.raises(UsageError, match="write a module as in Python"):
        import_modules([name])


def test_modules_that_are_not_there_or_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no module 'not_there_at_all' here"):
        import_modules(["not_there_at_all"])
    (tmp_path / "fails_at_once.py").write_text("raise ValueError('no')")
    with pytest.raises(PluginError, match="--import fails_at_once: ValueError: no"):
        import_modules(["fails_at_once"])
