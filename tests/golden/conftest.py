"""Golden files: what the reference implementation gave for small random-weight checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[2].parent / "shared" / "golden"


@frozen
class Golden:
    """One golden file, its tensors by section without the section's name; ``states`` has every section
    that begins with ``state``."""

    facts: dict[str, Any]
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    states: dict[str, dict[str, Tensor]]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``pytest -m golden`` runs everything in this folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("golden")


Load = Callable[[str], Golden]


@pytest.fixture(scope="session")
def golden() -> Load:
    """Loads a golden by name; skips where the files are not beside the repository."""
    loaded: dict[str, Golden] = {}

    def load(name: str) -> Golden:
        if name not in loaded:
            path = FOLDER / f"{name}.safetensors"
            if not path.is_file():
                pytest.skip(f"the golden files are not here: {path} is missing")
            tensors = load_file(path)
            sections: dict[str, dict[str, Tensor]] = {"state": {}, "input": {}, "expected": {}}
            for full, value in tensors.items():
                section, _, rest = full.partition("/")
                sections.setdefault(section, {})[rest] = value
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            states = {k: v for k, v in sections.items() if k.startswith("state")}
            loaded[name] = Golden(
                facts, sections["state"], sections["input"], sections["expected"], states
            )
        return loaded[name]

    return load
