"""The GPU check rehearsed on a CPU: every part of it runs, and it says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_rehearsal_runs_every_check(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_gpu.py", "--toy", "--minutes", "30", "--out",
         tmp_path / "checked"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "checked" / "gpu.json").read_text())
    states = {name: each["state"] for name, each in figures.items()}
    assert states.pop("The claims, longer") == "skipped"  # CIFAR-10 was not named
    assert set(states.values()) == {"passed"}, states
    assert figures["Tests"]["failed"] == 0
    assert figures["Tests"]["passed"] > 20
    assert {row["operation"] for row in figures["Speed of the paper's model"]["rows"]} >= {
        "encode", "stage tune", "stage compress", "stage polish",
    }  # fmt: skip
    generator = figures["Speed of a generator"]["rows"]
    assert {(row["operation"], row["compiled"]) for row in generator} == {
        (operation, compiled)
        for operation in ("sampling step", "stage flow")
        for compiled in (False, True)
    }
    assert figures["Profile of a step"]["busy_ms"] > 0
    assert figures["The default build"]["summary"]["psnr"] > 0
    page = (tmp_path / "checked" / "gpu.md").read_text()
    assert page.strip() == done.stdout.strip()


def test_without_time_every_check_is_skipped_and_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "check_gpu.py", "--toy", "--minutes", "0", "--out",
         tmp_path / "checked"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "it needs" in done.stdout
    figures = json.loads((tmp_path / "checked" / "gpu.json").read_text())
    states = [each["state"] for name, each in figures.items() if name != "Machine"]
    assert states == ["skipped"] * 6
