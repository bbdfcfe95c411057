"""``rpiae list plugins``: what each brings, what is broken and why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.test_discovery import BROKEN, EMPTY, GOOD, REPLACING, install

RECIPE = "Preset(name='odd', values={'stages': [{'terms': [{'loss': 'l3'}], 'stepz': 1}]})"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(folder, "rpiae-bad", "print('noise')\n" + BROKEN)
    install(folder, "rpiae-chatty", "print('noise')\n" + EMPTY.format(f", recipes=({RECIPE},)"))
    install(folder, "rpiae-good", GOOD)
    install(folder, "rpiae-replacing", REPLACING, point="replacing")
    install(folder, "rpiae-wrong", GOOD.replace('"mine', '"other').replace("Vit", "Wit"))
    return folder


def rpiae(*arguments: str, site: Path) -> tuple[str, str]:
    """Output of a command that ends well."""
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "rpiae", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "160"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def rows(*arguments: str, site: Path) -> dict[str, dict[str, Any]]:
    out, _ = rpiae("list", "plugins", "--json", *arguments, site=site)
    return {row["label"]: row for row in json.loads(out)}


def test_json_tells_what_each_brings_and_what_is_wrong(site: Path) -> None:
    found = rows(site=site)
    assert list(found) == sorted(found)
    good = found["rpiae-good"]
    assert good["version"] == "1.0"
    assert good["parts"] == {"encoders": ["mine"]}
    assert good["presets"] == {"encoders": ["mine-s"]}
    assert good["error"] == ""
    assert "problems" not in good
    assert found["rpiae-bad"]["error"] == "RuntimeError: no luck"
    assert found["rpiae-chatty"]["presets"] == {"recipes": ["odd"]}
    replacing = found["replacing of rpiae-replacing"]
    assert "already registered by rpiae " in replacing["error"]
    assert replacing["parts"] == {"encoders": ["timm"]}


def test_check_loads_what_is_named(site: Path) -> None:
    found = rows("--check", site=site)
    assert found["rpiae-good"]["problems"] == []
    (problem,) = (p for p in found["rpiae-wrong"]["problems"] if p.startswith("'other'"))
    assert "cannot be loaded: AttributeError" in problem
    problems = found["rpiae-chatty"]["problems"]
    assert any("stages[0].terms[0].loss: no loss named 'l3'" in p for p in problems)
    assert any("stepz: no such field in StageConfig, did you mean 'steps'" in p for p in problems)


def test_the_table(site: Path) -> None:
    out, err = rpiae("list", "plugins", site=site)
    lines = out.splitlines()
    assert any(line.startswith("rpiae-good ") and "mine, mine-s" in line for line in lines)
    assert any(line.startswith("rpiae-bad") and "BROKEN: RuntimeError" in line for line in lines)
    assert err == "noise\nnoise\n"


def test_a_listing_tells_on_stderr_what_it_lacks(site: Path) -> None:
    out, err = rpiae("list", "encoders", "--json", site=site)
    assert "mine-s" in {row["name"] for row in json.loads(out)["encoders"]}
    told = [line for line in err.splitlines() if line.startswith("plugin ")]
    assert len(told) == 2
    assert "plugin rpiae-bad is broken: RuntimeError: no luck (rpiae list plugins)" in told
    assert any("replacing of rpiae-replacing is broken: encoder 'timm'" in t for t in told)


def test_none_are_installed(tmp_path: Path) -> None:
    out, _ = rpiae("list", "plugins", site=tmp_path)
    if "rpiae plugins new" not in out:
        pytest.skip("plugins are installed here")
    assert out == "no plugins are installed; start one with: rpiae plugins new NAME\n"
