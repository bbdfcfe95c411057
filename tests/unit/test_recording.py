"""Where events go."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from rpiae import runs
from rpiae.core import events
from rpiae.core.errors import MissingExtraError
from tests.short_run import short_run, write_images


def part_of_a_run(tree: dict[str, Any]) -> None:
    happened = runs.run(tree)
    for event in happened:
        if isinstance(event, events.StepDone) and event.step == 4:
            break
    happened.close()


def test_wandb_gets_every_scalar_and_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, float]] = []
    calls: dict[str, Any] = {}

    def init(**arguments: Any) -> Any:
        calls.update(arguments)
        return types.SimpleNamespace(log=logged.append, finish=lambda: calls.update(finished=True))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    images = write_images(tmp_path / "images")
    part_of_a_run(short_run(images, tmp_path / "run") | {"wandb_project": "mine"})
    assert calls["project"] == "mine"
    assert calls["config"]["seed"] == 3
    assert calls["finished"]
    assert [row["tune/step"] for row in logged if "tune/total" in row] == [1, 2, 3, 4]
    rows = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    totals = [row["total"] for row in rows if row["event"] == "StepDone"]
    assert [row["tune/total"] for row in logged if "tune/total" in row] == totals
    assert any("tune/gradient-norm/encoder" in row for row in logged)


def test_wandb_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    images = write_images(tmp_path / "images")
    with pytest.raises(MissingExtraError, match=r"rpiae\[wandb\]"):
        part_of_a_run(short_run(images, tmp_path / "run") | {"wandb_project": "mine"})


def test_a_torn_line_and_repeated_steps_are_dropped_on_resume(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    out = tmp_path / "run"
    part_of_a_run(short_run(images, out, max_steps=8, checkpoint_every=3))
    log = out / "events.jsonl"
    log.write_text(log.read_text() + '{"event": "StepDo')
    resumed = runs.resume(out)
    for event in resumed:
        if isinstance(event, events.StageEnded):
            break
    resumed.close()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "StepDone"] == list(range(1, 9))
