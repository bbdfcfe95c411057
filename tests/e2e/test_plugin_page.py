"""docs/write-a-plugin.md, followed word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from rpiae import runs
from rpiae.core.config.tree import read_toml
from rpiae.core.errors import CheckpointError, UnknownNameError
from rpiae.core.model.folders import load_tokenizer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "write-a-plugin.md"
_FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced code block: its language, what follows it (a file name or ``output``), its text."""

    language: str
    what: str
    text: str


BLOCKS = [Block(*match) for match in _FENCE.findall(PAGE.read_text(encoding="utf-8"))]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A virtual environment of its own, which sees what this one has and this checkout.

    The commands are the page's. What pip would fetch is here already, so it is kept off the network.
    """
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    seen = dict.fromkeys([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "seen.pth").write_text("\n".join(seen) + "\n")
    for command, call in (
        ("pip", "pip._internal.cli.main:main"), ("pytest", "pytest:console_main"),
        ("rpiae", "rpiae.cli:main"),
    ):  # fmt: skip
        module, _, function = call.partition(":")
        script = folder / "bin" / command
        script.write_text(
            f"#!{folder}/bin/python\nimport sys\nfrom {module} import {function}\n"
            f"sys.exit({function}())\n"
        )
        script.chmod(0o755)
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return inherited | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the negated option: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "COLUMNS": "120",
    }


def test_the_page_has_what_it_needs() -> None:
    assert {block.language for block in BLOCKS} == {"bash", "python", "text"}
    assert all(block.what for block in BLOCKS if block.language == "python")
    assert sum(block.what == "output" for block in BLOCKS) >= 3


def test_the_page_word_for_word(tmp_path: Path, environment: dict[str, str]) -> None:
    here, printed = tmp_path / "work", ""
    here.mkdir()
    for block in BLOCKS:
        if block.language == "bash":
            where, printed = run(block.text, here, environment)
            here = where
        elif block.what == "output":
            assert trimmed(printed) == trimmed(block.text)
        else:
            (here / block.what).write_text(block.text, encoding="utf-8")
    assert here.name == "rpiae-squeeze"
    made = here / "runs" / "first"
    assert (made / "summary.json").is_file()
    assert read_toml(made / "config.toml")["requires"] == ["rpiae-squeeze"]
    # This process does not see the plugin.
    with pytest.raises(UnknownNameError, match="requires rpiae-squeeze: pip install rpiae-squeeze"):
        runs.resumed_config(made)
    with pytest.raises(CheckpointError, match="pip install rpiae-squeeze"):
        load_tokenizer(made)


def run(commands: str, folder: Path, environment: dict[str, str]) -> tuple[Path, str]:
    """Run commands in a shell that stops at the first that fails; where it ends, and its output."""
    end = folder / ".end"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'trap \'pwd > "{end}"\' EXIT\n{commands}'],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
    where = Path(end.read_text().strip())
    end.unlink()
    return where, done.stdout


def trimmed(text: str) -> list[str]:
    """Lines without the blanks at their ends."""
    return [line.rstrip() for line in text.strip().splitlines()]
