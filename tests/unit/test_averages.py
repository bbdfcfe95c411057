"""The moving average at a stage's end: what the next stage and the finished tokenizer take over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rpiae.core.training import events
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from tests.toys import toy_run

State = dict[str, Tensor]
FIRST: dict[str, Any] = {
    "name": "first", "train": ["encoder", "decoder"], "use_bridge": False, "steps": 3,
    "terms": [{"loss": "l1", "reference": True}], "ema": 0.5, "ema_warmup": False,
    "optimiser": {"learning_rate": 1e-2},
}  # fmt: skip
SECOND = FIRST | {"name": "second", "train": ["decoder"], "steps": 2}
GOES_ON = SECOND | {"start_from": "ema"}
COMPRESS = SECOND | {"name": "compress", "train": ["bridge"], "use_bridge": True}


def run_of(folder: Path, *stages: dict[str, Any], bridge: str = "vb4") -> TrainerInputs:
    recipe = {"name": "averages", "stages": list(stages)}
    return toy_run(
        folder, "vit", bridge, "vit", recipe, "recipe.batch_size=2", "recipe.checkpoint_every=1",
        "recipe.keep_checkpoints=20",
    )  # fmt: skip


def state(inputs: TrainerInputs) -> State:
    return {name: value.clone() for name, value in inputs.task.model.state_dict().items()}


def equal(one: State, other: State) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def starts(inputs: TrainerInputs, *, resume: bool = False) -> dict[str, State]:
    """Weights with which each stage begins or goes on, and those at the run's end."""
    found = {}
    for event in train(inputs, resume=resume):
        if isinstance(event, events.StageStarted):
            found[event.stage] = state(inputs)
    return found | {"end": state(inputs)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    """The first stage on its own: its last weights, and their averages."""
    inputs = run_of(tmp_path_factory.mktemp("alone"), FIRST)
    for event in train(inputs):
        if isinstance(event, events.StepDone):
            weights = state(inputs)
    return {"weights": weights, "ema": state(inputs)}


def test_the_last_stage_leaves_its_averages_of_what_it_trained(alone: dict[str, State]) -> None:
    weights, averages = alone["weights"], alone["ema"]
    differ = {n.partition(".")[0] for n in weights if not torch.equal(weights[n], averages[n])}
    assert differ == {"encoder", "decoder"}


@pytest.mark.parametrize("start_from", ["weights", "ema"])
def test_a_stage_begins_with_what_it_says(
    alone: dict[str, State], tmp_path: Path, start_from: str
) -> None:
    found = starts(run_of(tmp_path, FIRST, SECOND | {"start_from": start_from}))
    assert equal(found["second"], alone[start_from])


@pytest.mark.parametrize("start_from", ["weights", "ema"])
def test_a_stage_that_trains_nothing_takes_nothing_over(
    alone: dict[str, State], tmp_path: Path, start_from: str
) -> None:
    """Without parameters in the bridge its stage is left out, whatever it would have started from."""
    other = {"weights": "ema", "ema": "weights"}[start_from]
    stages = (FIRST, COMPRESS | {"start_from": other}, SECOND | {"start_from": start_from})
    found = starts(run_of(tmp_path, *stages, bridge="identity"))
    assert found.keys() == {"first", "second", "end"}
    encoder = {n: t for n, t in alone[start_from].items() if n.startswith("encoder.")}
    assert equal(encoder, found["second"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    """A run of both stages that nothing broke off."""
    return starts(run_of(tmp_path_factory.mktemp("whole"), FIRST, GOES_ON))


@pytest.mark.parametrize("stop_after", [2, 3, 4, 5])
def test_a_run_that_is_resumed_around_the_boundary_has_the_unbroken_ones_bits(
    whole: dict[str, State], tmp_path: Path, stop_after: int
) -> None:
    happened = train(run_of(tmp_path, FIRST, GOES_ON))
    steps = 0
    for event in happened:
        steps += isinstance(event, events.StepDone)
        if steps == stop_after and isinstance(event, (events.CheckpointSaved, events.StageEnded)):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    resumed = starts(run_of(tmp_path, FIRST, GOES_ON), resume=True)
    assert resumed.keys() == {
        name for name, last in (("first", 2), ("second", 4), ("end", 5)) if stop_after <= last
    }
    assert equal(resumed["end"], whole["end"])
    if stop_after <= 3:
        assert equal(resumed["second"], whole["second"])
