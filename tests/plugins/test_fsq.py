"""The plugin in ``plugins/rpiae-fsq``: its own tests, in a process that finds it on its path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.plugins.installing import ROOT, installed, run_own_tests

PLUGIN = ROOT / "plugins" / "rpiae-fsq"


def test_the_plugins_own_tests(tmp_path: Path) -> None:
    run_own_tests(PLUGIN, tmp_path)


def test_without_the_plugin_a_saved_tokenizer_says_what_to_install(tmp_path: Path) -> None:
    make = (
        "import rpiae\n"
        "rpiae.save(rpiae.build(encoder={'name': 'vit', 'width': 32, 'depth': 1, 'num_heads': 2}, "
        "bridge='fsq-1k', decoder={'name': 'vit', 'width': 32, 'depth': 1, 'num_heads': 2, "
        "'mlp_hidden': 32}, pretrained=False), 'tokenizer')\n"
    )
    load = "import rpiae\nrpiae.load('tokenizer')\n"
    with_plugin = {"PYTHONPATH": installed(PLUGIN, tmp_path / "site")}
    without = {"PYTHONPATH": str(ROOT)}
    outcomes = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
            env=os.environ | path,
        )
        for code, path in ((make, with_plugin), (load, with_plugin), (load, without))
    ]  # fmt: skip
    assert [done.returncode for done in outcomes[:2]] == [0, 0], outcomes[0].stderr
    assert outcomes[2].returncode != 0
    assert "'fsq' of rpiae-fsq 0.1.0" in outcomes[2].stderr
    assert "pip install rpiae-fsq" in outcomes[2].stderr


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
        assert "rpiae-fsq = rpiae_fsq:MANIFEST" in archive.read(points).decode()
    assert {"rpiae_fsq/__init__.py", "rpiae_fsq/bridge.py", "rpiae_fsq/configs.py"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
