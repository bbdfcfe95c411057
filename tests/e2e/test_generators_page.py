"""docs/generators.md: its table is true, and the generator that it writes works."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rpiae import GENERATORS
from rpiae.core.registry.registry import registry
from rpiae.generators.configs import DitConfig
from rpiae.runs.generating.speed import resolve_measured
from rpiae.runs.timing import multiply_adds
from rpiae.testing import check_generator_builds

PAGE = (Path(__file__).parents[2] / "docs" / "generators.md").read_text("utf-8")
(OWN,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def _presets() -> dict[str, dict[str, str]]:
    lines = PAGE.partition("## Presets")[2].partition("## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {row[0].strip("`"): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_the_page_has_every_preset_and_no_other() -> None:
    assert set(_presets()) == {preset.name for preset in registry("generators").presets()}


@pytest.mark.parametrize("name", _presets())
def test_a_presets_row_is_true(name: str) -> None:
    row, measured = _presets()[name], resolve_measured({"generator": name})
    config = measured.config.generator
    assert isinstance(config, DitConfig)
    assert [int(row[key]) for key in ("width", "blocks", "heads")] == [
        config.width, config.depth, config.num_heads,
    ]  # fmt: skip
    head = f"{config.head_depth} × {config.head_width}" if config.head_depth else "–"
    assert row["head"] == head
    model = measured.build("meta")
    assert row["parameters"] == f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"
    latents = torch.zeros(1, *measured.facts.shape, device="meta")
    given = (latents, torch.zeros(1, device="meta"), torch.zeros(1, device="meta").long())
    with torch.no_grad():
        cost = multiply_adds(lambda: model.velocity(*given))
    assert row["GMAC"] == f"{cost / 1e9:.1f}"
    preset = next(p for p in registry("generators").presets() if p.name == name)
    assert preset.paper in ("", row["paper"])


def test_the_fields_are_those_there_are() -> None:
    table = PAGE.partition("| field | default |")[2].partition("\n\n")[0]
    documented = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", table, flags=re.M)))
    )
    own = set(DitConfig.__annotations__) - {"module"}
    assert documented == own


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    module = types.ModuleType("a_notebook")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    before = dict(GENERATORS._entries)
    exec(compile(OWN, "a_notebook", "exec"), module.__dict__)
    yield module
    GENERATORS._entries = before


def test_the_generator_of_the_page_fits_its_contract_and_trains(notebook: types.ModuleType) -> None:
    check_generator_builds({"name": "mixer", "width": 8})
