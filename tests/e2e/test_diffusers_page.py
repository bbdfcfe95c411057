"""docs/interop.md, diffusers: what it writes in Python works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text("utf-8")
SECTION = PAGE.partition("\n## diffusers\n")[2].partition("\n## ")[0]


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "diffusers", reason='diffusers is not installed: pip install "rpiae[interop]"'
    )
    (example,) = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
    here: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        exec(compile(example, "docs/interop.md", "exec"), here)
    assert here["images"].shape == (2, 3, 64, 48)
    assert len(here["pictures"]) == 2
    assert type(here["pipeline"].vae) is type(here["vae"])
