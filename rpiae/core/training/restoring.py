"""Whether a saved training state is one that the run's stage can go on from, before it is used.

What is taken over unchecked can do more than fail: moments of another shape, or that lie in memory
otherwise than their parameter, have the fused optimiser write beyond its memory. So everything is compared with what the stage itself would save.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from attrs import fields
from torch import Tensor, nn

from rpiae.core.config.recipe import RecipeConfig, stage_length
from rpiae.core.errors import CheckpointError
from rpiae.core.model.state import check_state, check_values_are_there
from rpiae.core.training import events
from rpiae.core.training.checkpoint import SavedState, place
from rpiae.core.training.freeze import apply_stage, trained_parameters
from rpiae.core.training.task import Task

#: What AdamW keeps for a parameter; all but the step count are of the parameter's shape and dtype.
_MOMENTS = ("exp_avg", "exp_avg_sq")

#: Of every state, and of one within a stage.
_ALWAYS = {
    "stage": int,
    "step": int,
    "num_images": int,
    "model": dict,
    "ema": dict,
    "history": dict,
}
_WITHIN = {
    "optimiser": dict, "balance": dict, "players": dict, "more": dict, "seconds": float, "skipped": int,
    "best": float, "guard": dict,
}  # fmt: skip


def check_saved(saved: SavedState, *, task: Task, recipe: RecipeConfig) -> None:
    """Refuse a state that a run cannot go on from.

    Args:
        saved: the state.
        task: the run's task; which of its parameters are trained is set as the stage has it.
        recipe: the run's recipe.

    Raises:
        CheckpointError: if anything in it is of another kind, shape or dtype than the stage's own.
    """
    state, source = saved.state, str(saved.path)
    _check_types(state, _ALWAYS, source)
    stage, step = state["stage"], state["step"]
    if (stage, step) != place(saved.path):
        raise CheckpointError(
            f"{source} holds step {step} of stage {stage}, not what its name says"
        )
    if stage > len(recipe.stages) or (stage == len(recipe.stages) and step):
        raise CheckpointError(
            f"{source} is of stage {stage + 1}, and the recipe has {len(recipe.stages)}"
        )
    check_state(
        task.module, _tensors(state["model"], f"{source}: model"), source=source, exact=True
    )
    skipped = [apply_stage(task.roles, each.train).skipped for each in recipe.stages[:stage]]
    ended = [each.name for each, none in zip(recipe.stages, skipped, strict=False) if not none]
    _check_history(state["history"], ended, source)
    if not step:
        _check_average(state["ema"], dict(task.module.named_parameters()), source)
        return
    config = recipe.stages[stage]
    if step > (length := stage_length(config, recipe, state["num_images"]).steps):
        raise CheckpointError(f"{source} is of step {step} of {length} of stage {config.name}")
    for name in ("balance", "players", "more"):  # which earlier versions did not have
        state.setdefault(name, {})
    state.setdefault("guard", {"retries": 0, "losses": []})
    _check_types(state, _WITHIN, source)
    _check_types(state["guard"], {"retries": int, "losses": list}, f"{source}: guard")
    apply_stage(task.roles, config.train)
    trained = dict(trained_parameters(task.roles))
    _check_average(state["ema"], trained, source)
    if state["ema"].keys() != {"values", "step"} or state["ema"]["step"] != step:
        raise CheckpointError(f"{source}: its moving average is not of step {step}")
    for average in (state["ema"], *state["more"].values()):
        _check_whole_average(average, trained, step, source)
    check_optimiser(state["optimiser"], list(trained.values()), steps=step, source=source)
    check_ratios(state["balance"], source=source)


def check_stage_end(state: Mapping[str, Any], *, source: str) -> None:
    """Refuse a state that is not the end of a stage; how its tensors fit a run is looked at later.

    Raises:
        CheckpointError: if it is not.
    """
    _check_types(state, _ALWAYS, source)
    if state["step"] or not state["stage"]:
        raise CheckpointError(f"{source} is within a stage, not at the end of one")
    _tensors(state["model"], f"{source}: model")


def check_player(
    saved: Any,
    module: nn.Module,
    parameters: Sequence[nn.Parameter],
    *,
    name: str,
    steps: int,
    source: str,
) -> None:
    """Refuse a state that a player besides the model cannot go on from.

    Args:
        saved: what the checkpoint has of it.
        module: the stage's own.
        parameters: those that it trains.
        name: the player's.
        steps: that it can have made.
        source: the checkpoint, for messages.

    Raises:
        CheckpointError: if it is of another one, or missing.
    """
    if not isinstance(saved, dict):
        raise CheckpointError(
            f"{source} holds no {name}, and its stage has one: it is damaged, or from an earlier "
            "version. Remove it, and the run goes on from the one before"
        )
    source = f"{source}: {name}"
    _check_types(saved, {"weights": dict, "optimiser": dict, "balance": dict}, source)
    check_state(module, _tensors(saved["weights"], source), source=source, exact=True)
    check_optimiser(saved["optimiser"], parameters, steps=steps, source=source)
    check_ratios(saved["balance"], source=source)


def check_ratios(saved: Mapping[Any, Any], *, source: str) -> None:
    """Refuse adaptive weights that are no finite numbers.

    Raises:
        CheckpointError: if there are any.
    """
    for label, ratio in _tensors(saved, f"{source}: balance").items():
        _check_like(ratio, torch.zeros(()), f"{source}: the adaptive weight of {label}")
        if not 0 <= float(ratio) < math.inf:
            raise CheckpointError(f"{source}: the adaptive weight of {label} is {float(ratio)}")


def check_optimiser(
    saved: Mapping[str, Any], parameters: Sequence[nn.Parameter], *, steps: int, source: str
) -> None:
    """Refuse a state of AdamW that is of other parameters.

    Raises:
        CheckpointError: if not.
    """
    kept, groups = saved.get("state"), saved.get("param_groups")
    numbers = list(range(len(parameters)))
    group = groups[0] if isinstance(groups, list) and len(groups) == 1 else None
    of_these = isinstance(group, dict) and group.get("params") == numbers
    if not isinstance(kept, dict) or not of_these:
        raise CheckpointError(
            f"{source}: the optimiser's state is not of {len(numbers)} parameters"
        )
    for number, moments in kept.items():
        what = f"{source}: the optimiser's state of parameter {number!r}"
        if not isinstance(number, int) or number not in numbers:
            raise CheckpointError(f"{what} is of none that the stage trains")
        if not isinstance(moments, dict) or moments.keys() != {"step", *_MOMENTS}:
            raise CheckpointError(f"{what} is not that of AdamW")
        for name in _MOMENTS:
            _check_like(moments[name], parameters[number], f"{what}, {name},")
        _check_like(moments["step"], torch.zeros(()), f"{what}, step,")
        if not 0 < float(moments["step"]) <= steps or float(moments["step"]) % 1:
            raise CheckpointError(f"{what} is after {float(moments['step'])} steps, not {steps}")


def _check_average(saved: Any, parameters: Mapping[str, nn.Parameter], source: str) -> None:
    values = _tensors(saved.get("values"), f"{source}: ema")
    for name, value in values.items():
        if name not in parameters:
            raise CheckpointError(
                f"{source}: there is a moving average of {name}, not trained here"
            )
        _check_like(value, parameters[name], f"{source}: the moving average of {name}")


def _check_whole_average(
    saved: Any, trained: Mapping[str, nn.Parameter], step: int, source: str
) -> None:
    """Refuse an average that is not of all that a stage trains."""
    if not isinstance(saved, dict) or saved.keys() != {"values", "step"}:
        raise CheckpointError(f"{source} holds a moving average without values or step")
    _check_average(saved, trained, source)
    _check_types(saved, {"step": int}, source)
    if saved["step"] > step:
        raise CheckpointError(f"{source}: a moving average is of step {saved['step']}, not {step}")
    if missing := trained.keys() - saved["values"].keys():
        raise CheckpointError(f"{source}: there is no moving average of {min(missing)}")


def _check_history(history: Mapping[Any, Any], ended: Iterable[str], source: str) -> None:
    """Refuse a history from which the stages that have ended cannot be told again."""
    for name in ended:
        told = history.get(name)
        expected = {field.name for field in fields(events.StageEnded)}
        if not isinstance(told, dict) or told.keys() != expected:
            raise CheckpointError(f"{source} does not say how stage {name} ended")
        _check_types(
            told,
            {
                "stage": str, "index": int, "steps": int, "trained": int, "seconds": float,
                "images_per_second": float, "metrics": dict, "digests": dict,
            },
            f"{source}: history of {name}",
        )  # fmt: skip


def _check_types(state: Mapping[str, Any], expected: Mapping[str, type], source: str) -> None:
    if missing := expected.keys() - state.keys():
        raise CheckpointError(f"{source} is no training state of this version: no {min(missing)}")
    for name, kind in expected.items():
        value = state[name]
        number = kind in (int, float) and type(value) in (int, kind)
        if number and (value < 0 or math.isnan(value)) and name != "best":
            raise CheckpointError(f"{source}: {name} is {value}")
        if not number and (kind in (int, float) or not isinstance(value, kind)):
            found = type(value).__name__
            raise CheckpointError(f"{source}: {name} is of type {found}, not {kind.__name__}")


def _check_like(value: Any, wanted: Tensor, what: str) -> None:
    if not isinstance(value, Tensor):
        raise CheckpointError(f"{what} is of type {type(value).__name__}, not a tensor")
    if (value.shape, value.dtype, value.layout) != (wanted.shape, wanted.dtype, wanted.layout):
        raise CheckpointError(
            f"{what} is {value.dtype} {tuple(value.shape)}, not {wanted.dtype} {tuple(wanted.shape)}"
        )
    check_values_are_there(value, what)
    if _strides(value) != (own := _strides(torch.empty_like(wanted, device="meta"))):
        raise CheckpointError(f"{what} lies in memory with strides {_strides(value)}, not {own}")


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """How a tensor's values lie in memory; sides of one value are free to have any stride."""
    sides = zip(tensor.stride(), tensor.shape, strict=True)
    return tuple(stride for stride, side in sides if side > 1)


def _tensors(saved: Any, what: str) -> dict[str, Tensor]:
    if not isinstance(saved, dict):
        raise CheckpointError(f"{what} is of type {type(saved).__name__}, not a table of tensors")
    for name, value in saved.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{what}: {name!r} is of type {type(value).__name__}, not a tensor"
            )
    return dict(saved)
