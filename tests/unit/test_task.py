"""A third task, of its own data and terms, through the whole run loop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from rpiae.core.config.parts import LossConfig
from rpiae.core.config.recipe import OptimiserConfig, RecipeConfig, StageConfig, TermConfig
from rpiae.core.errors import CheckpointError, DataError, TrainingError
from rpiae.core.model.contracts import Batch, StageSteps
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.beside import best_folder
from rpiae.core.training.player import MicroBatch
from rpiae.core.training.task import Passed, Task, TrainerInputs
from rpiae.core.training.trainer import train


class Line(Task):
    """The task: a line through points."""

    def __init__(self) -> None:
        self.module = nn.Sequential(OrderedDict(line=nn.Linear(1, 1), untouched=nn.Linear(1, 1)))

    def forward(self, stage: StageConfig, batch: MicroBatch, *, cut: bool) -> Passed:
        x, y = batch.inputs.split(1, dim=1)
        noise = 0.01 * batch.draws.normal_like(x, "noise")
        return Passed((self.module.line(x + noise), y))


class ScoredLine(Line):
    """The same, with an evaluation, a criterion, and a folder of its own form."""

    def evaluate(self, stage: StageConfig, runtime: Runtime) -> Mapping[str, float]:
        return {"slope": float(self.module.line.weight)}

    def criterion(self, stage: StageConfig) -> str:
        return stage.best or "-slope"

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "slope.json").write_text(json.dumps(float(self.module.line.weight)))


@frozen(kw_only=True)
class DistanceConfig(LossConfig):
    """Config of ``Distance``."""

    module: ClassVar[str] = f"{__name__}:Distance"


class Distance:
    """Mean squared distance of two tensors."""

    def __call__(self, context: tuple[Tensor, Tensor]) -> Tensor:
        return (context[0] - context[1]).square().mean()


class Points:
    """Points of y = 3 x − 1."""

    num_images = 32
    image_size = 1
    notices = ()

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        for samples in steps:
            x = torch.tensor(samples).view(-1, 1) % 32 / 32
            yield Batch(torch.cat([x, 3 * x - 1], dim=1), samples)


def run_of(folder: Path, *, task: Task | None = None, **recipe: Any) -> TrainerInputs:
    stage = StageConfig(
        name="first", train=("line",), steps=8, batch_size=6, ema=0.5, ema_warmup=False,
        terms=(TermConfig(loss=DistanceConfig(name="distance")),),
        optimiser=OptimiserConfig(learning_rate=0.05, clip=0.5),
    )  # fmt: skip
    torch.manual_seed(0)
    return TrainerInputs(
        task=task or Line(), data=Points(), folder=folder, seed=0,
        recipe=RecipeConfig(
            name="line", stages=(stage, evolve(stage, name="second", start_from="ema")), **recipe
        ),
        runtime=Runtime(device="cpu", precision="fp32"),
    )  # fmt: skip


def told(inputs: TrainerInputs, *, resume: bool = False) -> dict[str, Any]:
    """Digests by stage."""
    ended = [e for e in train(inputs, resume=resume) if isinstance(e, events.StageEnded)]
    return {event.stage: dict(event.digests) for event in ended}


def test_it_trains_and_tells(tmp_path: Path) -> None:
    inputs = run_of(tmp_path)
    seen = list(train(inputs))
    steps = [e for e in seen if isinstance(e, events.StepDone)]
    assert len(steps) == 16
    assert steps[-1].total < 0.5 * steps[0].total
    assert all(step.terms.keys() == {"distance"} for step in steps)
    assert all(step.gradient_norms.keys() == {"line"} for step in steps)
    started = next(e for e in seen if isinstance(e, events.StageStarted))
    assert {role: row.trained for role, row in started.report.roles.items()} == {
        "line": 2, "untouched": 0,
    }  # fmt: skip
    assert not (tmp_path / "best").exists()


def test_it_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = told(run_of(tmp_path / "whole"))
    for step in (2, 6):
        folder = tmp_path / str(step)
        happened = train(run_of(folder, checkpoint_every=2))
        for event in happened:
            if isinstance(event, events.CheckpointSaved) and event.step == step:
                break
        happened.close()  # type: ignore[attr-defined]  # a generator
        assert told(run_of(folder, checkpoint_every=2), resume=True) == whole


def test_the_next_stage_begins_from_the_averages_and_the_end_is_averaged(tmp_path: Path) -> None:
    inputs = run_of(tmp_path, keep_checkpoints=9)
    averages: dict[str, Tensor] = {}
    for event in train(inputs):
        if isinstance(event, events.StageStarted) and event.stage == "second":
            state = torch.load(
                tmp_path / "checkpoints" / "stage1-step00000000.pt", weights_only=True
            )
            averages = state["ema"]["values"]
            for name, value in inputs.task.module.line.named_parameters():
                assert torch.equal(value, averages[f"line.{name}"])
                assert not torch.equal(value, state["model"][f"line.{name}"])
    assert averages
    last = torch.load(tmp_path / "checkpoints" / "stage2-step00000000.pt", weights_only=True)
    for name, value in inputs.task.module.line.named_parameters():
        assert torch.equal(value, last["ema"]["values"][f"line.{name}"])


def test_best_weights_are_chosen_by_the_tasks_criterion(tmp_path: Path) -> None:
    for best in ("", "slope"):
        inputs = run_of(tmp_path / f"x{best}", task=ScoredLine(), evaluate_every=1)
        stage = evolve(inputs.recipe.stages[0], best=best)
        inputs = evolve(inputs, recipe=evolve(inputs.recipe, stages=(stage,)))
        slopes = [e for e in train(inputs) if isinstance(e, events.Evaluated)]
        wanted = (max if best else min)(e.metrics["slope"] for e in slopes)
        kept = best_folder(inputs.folder, "first") / "slope.json"
        assert json.loads(kept.read_text()) == wanted
        assert [e for e in slopes if e.best][-1].metrics["slope"] == wanted


def test_numbers_are_read_every_few_steps(tmp_path: Path) -> None:
    every = [e for e in train(run_of(tmp_path / "1")) if isinstance(e, events.StepDone)]
    third = [
        e for e in train(run_of(tmp_path / "3", read_every=3)) if isinstance(e, events.StepDone)
    ]
    assert [(e.stage, e.step) for e in third] == [
        (stage, step) for stage in ("first", "second") for step in (3, 6, 8)
    ]
    by_step = {(e.stage, e.step): e for e in every}
    for event in third:
        assert event.terms == by_step[event.stage, event.step].terms


class Waiting(Runtime):
    """A runtime of a device that has to be waited for."""

    @property
    def read_every(self) -> int:
        return 4


def test_what_is_not_finite_is_caught_before_a_checkpoint(tmp_path: Path) -> None:
    inputs = run_of(tmp_path, checkpoint_every=4, keep_checkpoints=9)
    inputs = evolve(inputs, runtime=Waiting(device="cpu", precision="fp32"))
    calls = []

    def poisoned(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * (float("nan") if len(calls) == 6 else 1.0)

    inputs.task.module.line.weight.register_hook(poisoned)
    with pytest.raises(TrainingError, match=r"stage first, step 8: not finite"):
        list(train(inputs))
    saved = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert saved == ["stage0-step00000004.pt"]


class EndingPoints(Points):
    """Points that cannot be read any more from a step on."""

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        for number, batch in enumerate(super().batches(steps)):
            if number == 3:
                raise DataError("no point can be read")
            yield batch


@pytest.mark.parametrize("factor", [1.0, float("nan")])
def test_steps_that_nobody_looked_at_are_looked_at_before_they_are_saved(
    tmp_path: Path, factor: float
) -> None:
    inputs = evolve(
        run_of(tmp_path), data=EndingPoints(), runtime=Waiting(device="cpu", precision="fp32")
    )
    calls = []

    def spoilt(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * (factor if len(calls) == 2 else 1.0)

    inputs.task.module.line.weight.register_hook(spoilt)
    expected = DataError if factor == 1.0 else TrainingError
    with pytest.raises(expected):
        list(train(inputs))
    assert (tmp_path / "checkpoints" / "stage0-step00000003.pt").is_file() == (factor == 1.0)


def test_states_of_another_task_are_refused(tmp_path: Path) -> None:
    list(train(run_of(tmp_path)))
    other = run_of(tmp_path)
    other.task.module.add_module("more", nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match="another architecture"):
        list(train(other, resume=True))


SCRIPT = """
import json, sys
from pathlib import Path
from tests.unit.test_task import run_of
from rpiae.core.training import events
from rpiae.core.training.trainer import train
inputs = run_of(Path(sys.argv[1]), read_every=1)
steps = [e for e in train(inputs) if isinstance(e, events.StepDone)]
if inputs.runtime.is_main:
    Path(sys.argv[1], "totals.json").write_text(json.dumps([e.total for e in steps]))
inputs.runtime.close()
"""


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    together = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=Path(__file__).parents[2],
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    alone = [e.total for e in train(run_of(tmp_path / "alone")) if isinstance(e, events.StepDone)]
    assert json.loads((tmp_path / "totals.json").read_text()) == pytest.approx(alone, rel=1e-5)
