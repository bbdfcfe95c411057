"""Signals that ask a run to end: it saves, and says how to go on."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from rich.console import Console

from rpiae.cli import following
from rpiae.core.errors import DataError
from rpiae.core.model.contracts import Batch, StageSteps
from rpiae.core.runtime import signals
from rpiae.core.runtime.signals import STOP_SIGNALS, StopSignal
from rpiae.core.training import events
from rpiae.core.training.checkpoint import progress
from rpiae.core.training.trainer import train
from rpiae.testing import SyntheticImages
from tests.toys import toy_run

SHORT = ("recipe.max_steps=4", "recipe.batch_size=2")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[int]]:
    """Signals that nobody remembers end up in a list."""
    seen: list[int] = []
    before = {n: signal.signal(n, lambda n, _: seen.append(n)) for n in STOP_SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_signal_that_asks_to_end_saves_the_state(tmp_path: Path, number: int) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "quick", *SHORT)
    seen = []
    for event in train(inputs):
        seen.append(event)
        if isinstance(event, events.StepDone) and event.step == 3:
            os.kill(os.getpid(), number)
    last = seen[-1]
    assert isinstance(last, events.Interrupted)
    assert last.signal == signal.Signals(number).name
    assert progress(tmp_path / "checkpoints") == (0, 3)


def test_one_signal_told_twice_is_one_and_a_later_one_ends_the_process(
    handlers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == "SIGTERM"
        assert handlers == []
        monkeypatch.setattr(signals, "SAME", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        assert handlers == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGTERM)
        assert handlers == [signal.SIGINT, signal.SIGTERM]


def test_what_a_process_was_started_to_ignore_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == ""
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


class EndingWithTheGroup(SyntheticImages):
    """Images whose loading processes end by the signal that the training process gets too."""

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        for number, batch in enumerate(super().batches(steps)):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                raise DataError("a process that loads images ended")
            yield batch


def test_loading_processes_that_end_with_the_signal_are_no_failure(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "quick", *SHORT)
    seen = list(train(evolve(inputs, data=EndingWithTheGroup(32))))
    assert isinstance(seen[-1], events.Interrupted)
    assert progress(tmp_path / "checkpoints") == (0, 2)
    rest = list(train(toy_run(tmp_path, "vit", "vb4", "vit", "quick", *SHORT), resume=True))
    assert next(e for e in rest if isinstance(e, events.StepDone)).step == 3


def test_a_signal_in_the_very_last_evaluation_is_heard(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "quick", *SHORT)
    calls = []

    def interrupted(*_: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return {"psnr": 0.0}

    inputs.task.measure = interrupted
    seen = list(train(inputs))
    assert isinstance(seen[-1], events.Interrupted)
    assert progress(tmp_path / "checkpoints") == (3, 0)


def test_the_command_to_go_on_with_is_one_line_and_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(following, "stderr", screen)
    folder = Path("runs") / ("a long name " * 9)
    code = following.follow(iter([events.Interrupted(path=folder, signal="SIGHUP")]))
    assert code == 130
    assert f"\n  rpiae build --resume '{folder}'\n" in screen.file.getvalue()
