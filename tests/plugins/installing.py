"""A plugin's distribution as installed, without installing it; its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def installed(plugin: Path, folder: Path) -> str:
    """A search path on which a plugin's distribution is as installed, from its own metadata.

    Args:
        plugin: its folder in the checkout.
        folder: takes the metadata that an installation would have.
    """
    project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return os.pathsep.join(map(str, (folder, plugin / "src", ROOT)))


def run_own_tests(plugin: Path, folder: Path) -> None:
    """Run a plugin's own tests, in a process that finds it on its path; all pass, none is skipped."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(plugin)],
        capture_output=True, text=True, cwd=folder,
        env=os.environ
        | {"PYTHONPATH": installed(plugin, folder / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
