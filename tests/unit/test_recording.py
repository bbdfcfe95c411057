"""Where events go."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from rpiae import runs
from rpiae.core.training import events
from rpiae.core.training.freeze import FreezeReport
from rpiae.runs.recording import Recorder, TensorBoardSink
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


def told(caplog: pytest.LogCaptureFixture, what: str) -> int:
    return sum(what in record.getMessage() for record in caplog.records)


def steps(out: Path) -> list[int]:
    rows = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["event"] == "StepDone"]


def fail(*_: Any, **__: Any) -> Any:
    raise Strange("no network")


class Strange(Exception):
    """What a service's client may raise: of no kind that anybody knows."""


WANDB: dict[str, Any] = {
    "not installed": None,
    "raising in init": types.SimpleNamespace(init=fail),
    "raising in log": types.SimpleNamespace(
        init=lambda **_: types.SimpleNamespace(log=fail, finish=fail)
    ),
    "raising in finish": types.SimpleNamespace(
        init=lambda **_: types.SimpleNamespace(log=lambda _: None, finish=fail)
    ),
    "giving nothing": types.SimpleNamespace(init=lambda **_: None),
    "exiting": types.SimpleNamespace(init=lambda **_: sys.exit(1)),
    "something else": types.SimpleNamespace(),
}


@pytest.mark.parametrize("module", WANDB.values(), ids=WANDB)
def test_wandb_failing_is_told_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, module: Any
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", module)
    images = write_images(tmp_path / "images")
    part_of_a_run(short_run(images, tmp_path / "run") | {"wandb_project": "mine"})
    assert told(caplog, "Weights & Biases is given up") == 1
    assert steps(tmp_path / "run") == [1, 2, 3, 4]
    if module is None:
        assert 'pip install "rpiae[wandb]"' in caplog.text


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "close"])
def test_tensorboard_failing_is_told_once_and_training_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    monkeypatch.setattr(SummaryWriter, method, fail)
    images = write_images(tmp_path / "images")
    part_of_a_run(short_run(images, tmp_path / "run"))
    assert told(caplog, "TensorBoard is given up (no network)") == 1
    assert steps(tmp_path / "run") == [1, 2, 3, 4]


def test_events_that_cannot_be_written_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = write_images(tmp_path / "images")
    out = tmp_path / "run"
    out.mkdir()
    os.mkfifo(out / "events.jsonl")
    part_of_a_run(short_run(images, out))
    assert told(caplog, "events.jsonl is given up (it is a FIFO") == 1


STAGES = ("tune", "compress", "polish")


def report() -> FreezeReport:
    return FreezeReport(roles={})


def begun(stage: str, step: int = 0) -> events.StageStarted:
    return events.StageStarted(
        stage=stage, index=0, steps=4, step=step, batch_size=1, report=report()
    )


def step(stage: str, number: int) -> events.StepDone:
    return events.StepDone(
        stage=stage, step=number, steps=4, total=1.0, terms={"l1": 1.0}, weights={},
        learning_rate=0.1, gradient_norms={}, others={}, images_per_second=1.0, data_seconds=0.0,
        remaining_seconds=0.0, memory=1,
    )  # fmt: skip


def ended(stage: str) -> events.StageEnded:
    return events.StageEnded(
        stage=stage, index=STAGES.index(stage), steps=4, seconds=1.0, images_per_second=1.0,
        trained=1, metrics={"psnr": 1.0}, digests={},
    )  # fmt: skip


def unbroken() -> list[events.Event]:
    whole: list[events.Event] = []
    for stage in STAGES:
        whole += [begun(stage), *(step(stage, n) for n in range(1, 5)), ended(stage)]
    return whole


def recorded_as(folder: Path, happened: list[events.Event], *, resume: bool) -> list[list[Any]]:
    recorder = Recorder(folder, resume=resume)
    for event in happened:
        recorder.record(event)
    recorder.close()
    rows = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [[row["event"], row["stage"], row.get("step")] for row in rows]


DAMAGE = {
    "nothing": lambda raw: raw,
    "a byte at the end": lambda raw: raw + b"\xff",
    "a torn line": lambda raw: raw + b'{"event": "StepDo',
    "another row": lambda raw: raw + b"[1, 2]\n3\nnull\n",
    "no event": lambda raw: raw + b'{"stage": "tune"}\n{"event": 3}\n',
    "depth": lambda raw: raw + b"[" * 100_000 + b"\n",
    "zeros": lambda raw: raw + bytes(4096),
    "digits": lambda raw: raw + b'{"event": ' + b"9" * 5000 + b"}\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("lost", [0, 1, 2, 5, 6, 9, 13, 17])
def test_a_run_that_goes_on_leaves_the_events_of_an_unbroken_one(
    tmp_path: Path, lost: int, damage: Any
) -> None:
    """Killed anywhere, gone on with from the checkpoint before: every second step, or a stage's end."""
    whole = unbroken()
    folder = tmp_path / "run"
    folder.mkdir()
    recorded_as(folder, whole[: len(whole) - lost], resume=False)
    log = folder / "events.jsonl"
    log.write_bytes(damage(log.read_bytes()))
    done = [
        e for e in whole[: len(whole) - lost] if isinstance(e, (events.StepDone, events.StageEnded))
    ]
    again: list[events.Event] = []
    for stage in STAGES:
        mine = [e for e in done if e.stage == stage]
        if any(isinstance(e, events.StageEnded) for e in mine):
            again.append(ended(stage))
            continue
        first = len(mine) // 2 * 2
        again += [begun(stage, first), *(step(stage, n) for n in range(first + 1, 5)), ended(stage)]
    found = recorded_as(folder, again, resume=True)
    assert found == [[type(e).__name__, e.stage, getattr(e, "step", None)] for e in whole]


def test_lines_that_cannot_be_read_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded_as(tmp_path, unbroken()[:9], resume=False)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b"\xff")
    recorded_as(tmp_path, [ended("tune"), begun("compress", 2)], resume=True)
    assert told(caplog, "1 damaged lines were left out") == 1


def test_steps_that_are_taken_once_more_count_once_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first in (0, 2):
        sink = TensorBoardSink(tmp_path)
        sink.write(begun("tune", first))
        for number in range(first + 1, 5):
            sink.write(step("tune", number))
        sink.write(begun("../polish"))
        sink.write(step("../polish", 1))
        sink.close()
    found = EventAccumulator(str(tmp_path / "tensorboard" / "tune"))
    found.Reload()
    assert [event.step for event in found.Scalars("tune/total")] == [1, 2, 3, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"tensorboard"}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2


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
