"""The plugin in ``plugins/rpiae-vjepa2``: its own tests, listings and plans of it, its wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.plugins.installing import ROOT, installed, run_own_tests

PLUGIN = ROOT / "plugins" / "rpiae-vjepa2"


def rpiae(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A verb of rpiae where the plugin is installed."""
    return subprocess.run(
        [sys.executable, "-m", "rpiae", *arguments], capture_output=True, text=True, cwd=folder,
        env=os.environ | {"PYTHONPATH": installed(PLUGIN, folder / "site"), "COLUMNS": "160"},
    )  # fmt: skip


def test_the_plugins_own_tests(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers has V-JEPA 2; it is not installed")
    run_own_tests(PLUGIN, tmp_path)


def test_listings_say_how_many_frames_a_token_is(tmp_path: Path) -> None:
    listed = rpiae(tmp_path, "list", "encoders")
    assert listed.returncode == 0, listed.stderr
    line = next(line for line in listed.stdout.splitlines() if line.startswith("vjepa2-l"))
    assert "2 frames per token" in line
    assert "rpiae-vjepa2" in line


def test_the_wheel_holds_the_package_its_licence_and_its_entry_point(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; it is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        capture_output=True, text=True, cwd=PLUGIN,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "rpiae-vjepa2 = rpiae_vjepa2:MANIFEST" in archive.read(points).decode()
    assert {f"rpiae_vjepa2/{name}.py" for name in ("__init__", "configs", "encoder")} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
