"""The staged trainer: runs any recipe of any task, and knows no role, part, stage, metric or task by
name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

from rpiae.core.config.recipe import (
    StageConfig,
)
from rpiae.core.errors import CheckpointError, ConfigError
from rpiae.core.runtime.signals import StopSignal
from rpiae.core.training import events
from rpiae.core.training.checkpoint import (
    SavedState,
    load_checkpoint,
)
from rpiae.core.training.freeze import FreezeReport, apply_stage, wants_averages
from rpiae.core.training.restoring import check_saved
from rpiae.core.training.stage import StageAtWork
from rpiae.core.training.task import Task, TrainerInputs


def train(inputs: TrainerInputs, *, resume: bool = False) -> Iterator[events.Event]:
    """Run all stages; yields events. The task ends with the last stage's averaged weights.

    Args:
        inputs: the run.
        resume: continue from the newest checkpoint in the run's folder; the stages that had ended
            are told again.

    Raises:
        ConfigError: if a stage's patterns match nothing.
        TrainingError: if a loss is not finite, or another process is gone; the last good checkpoint
            stays.
        DataError: if no sample can be read any more; the state is saved before.
        CheckpointError: if a checkpoint cannot be read or written.
    """
    task, runtime = inputs.task, inputs.runtime
    task.module.to(runtime.device)
    saved = _load(inputs) if resume else None
    first = saved.state["stage"] if saved else 0
    history: dict[str, dict[str, Any]] = saved.state["history"] if saved else {}
    for text in saved.notices if saved else ():
        yield events.Notice(text=text)
    surroundings: dict[str, Any] = {"data": inputs.data, "runtime": runtime, "seed": inputs.seed}
    with StopSignal() as stop:
        for index, stage in enumerate(inputs.recipe.stages):
            report = _apply(task, stage, index)
            if report.skipped:
                trains = ", ".join(stage.train)
                reason = f"{trains} has no parameters" if stage.train else "it trains nothing"
                yield events.StageSkipped(stage=stage.name, index=index, reason=reason)
            elif index < first:
                yield events.StageEnded(**history[stage.name])
            else:
                yield from task.before(stage, **surroundings)
                state = saved if index == first else None
                if not (
                    yield from StageAtWork.open(inputs, index, report, history, state).run(stop)
                ):
                    return
        yield from task.before(None, **surroundings)
        if runtime.any(bool(stop.received)):
            yield events.Interrupted(path=inputs.folder, signal=stop.received or "a peer")


def _load(inputs: TrainerInputs) -> SavedState | None:
    """The newest state that the run can go on from; its weights are the task's then."""
    task, recipe = inputs.task, inputs.recipe
    latest = load_checkpoint(
        inputs.folder / "checkpoints",
        check=functools.partial(check_saved, task=task, recipe=recipe),
    )
    if latest is None:
        return None
    path, state, _ = latest
    if state["num_images"] != inputs.data.num_images:
        raise CheckpointError(
            f"{path} was trained on {state['num_images']} images and the data now have "
            f"{inputs.data.num_images}, so its epochs cannot go on: bring back the data, or start "
            f"another run from its weights with --init"
        )
    task.module.load_state_dict(state["model"])
    if state["step"] == 0 and wants_averages(task.roles, recipe.stages[state["stage"] :]):
        names = dict(task.module.named_parameters())
        with torch.no_grad():
            for name, average in state["ema"]["values"].items():
                names[name].copy_(average)
    return latest


def _apply(task: Task, stage: StageConfig, index: int) -> FreezeReport:
    try:
        return apply_stage(task.roles, stage.train)
    except ConfigError as error:
        problems = [f"recipe.stages[{index}].{problem}" for problem in error.problems]
        raise ConfigError("the recipe", problems) from None
