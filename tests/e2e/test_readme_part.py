"""README's part for a notebook passes the contract kit, and its plan is the printed one."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpiae import ENCODERS
from rpiae.cli import main
from rpiae.testing import check_builds, check_encoder

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
(NOTEBOOK,) = re.findall(
    r"```python\n([^`]*class MyEncoder\(nn.Module\).*?)```", README, flags=re.DOTALL
)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    module = types.ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    before = dict(ENCODERS._entries)
    exec(compile(NOTEBOOK, "a_notebook", "exec"), module.__dict__)
    yield module
    ENCODERS._entries = before


def test_the_notebooks_encoder_fits_its_contract_and_trains(notebook: types.ModuleType) -> None:
    check_encoder(notebook.MyEncoderConfig(width=32, depth=2))
    check_builds(encoder={"name": "mine", "width": 32, "depth": 2})


def test_readme_prints_the_plan_as_it_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "102")
    command = ["build", "--encoder", "dinov2-b", "--bridge", "vb64", "--dry-run"]
    assert main(command) == 0
    shown = README.partition("--dry-run` prints it:\n\n```\n")[2].partition("\n```")[0]
    assert _without_caches(shown) == _without_caches(capsys.readouterr().out)


def _without_caches(plan: str) -> list[str]:
    """Lines of a plan, but for where weights are on this machine."""
    lines = (line.rstrip() for line in plan.strip().splitlines())
    return [line.partition(":")[0] if line.startswith("loads ") else line for line in lines]
