"""A stage whose loss leaps, or is not finite, goes back once; further averages are kept beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from rpiae.core.config.recipe import SpikeGuardConfig, StageConfig
from rpiae.core.errors import ConfigError, TrainingError
from rpiae.core.training import events
from rpiae.core.training.guard import FEWEST, SpikeGuard
from rpiae.core.training.player import MicroBatch
from rpiae.core.training.task import Passed, TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.runs.recording import EventLog
from rpiae.runs.resolving import resolve
from tests.unit.test_task import ScoredLine, Waiting, run_of


class Leaping(ScoredLine):
    """A line whose loss is multiplied at some steps of its first passes through them.

    Args:
        leaps: how often, by step, and by what.
    """

    def __init__(self, leaps: dict[int, tuple[int, float]]) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.left = {step: times for step, (times, _) in leaps.items()}
        self.factors = {step: factor for step, (_, factor) in leaps.items()}
        self.steps: list[int] = []

    def forward(self, stage: StageConfig, batch: MicroBatch, *, cut: bool) -> Passed:
        found, wanted = super().forward(stage, batch, cut=cut).context
        step = batch.draws._labels[1]
        assert isinstance(step, int)
        self.steps.append(step)
        if self.left.get(step, 0):
            self.left[step] -= 1
            found = wanted + self.factors[step] * (found - wanted)
        return Passed((found, wanted))


def guarded(
    folder: Path, task: Leaping, *, steps: int = 40, factor: float | None = 5.0, **recipe: Any
) -> TrainerInputs:
    guard = None if factor is None else SpikeGuardConfig(factor=factor, every=8)
    inputs = run_of(folder, task=task, spike_guard=guard, **({"checkpoint_every": 6} | recipe))
    stage = evolve(
        inputs.recipe.stages[0], steps=steps,
        optimiser=evolve(inputs.recipe.stages[0].optimiser, learning_rate=1e-3),
    )  # fmt: skip
    return evolve(inputs, recipe=evolve(inputs.recipe, stages=(stage,)))


def digests(seen: list[events.Event]) -> Any:
    return [dict(e.digests) for e in seen if isinstance(e, events.StageEnded)]


@pytest.mark.parametrize("factor", [30.0, float("nan"), float("inf")])
def test_a_stage_goes_back_once_and_says_so(tmp_path: Path, factor: float) -> None:
    task = Leaping({30: (1, factor)})
    seen = list(train(guarded(tmp_path, task)))
    [back] = [e for e in seen if isinstance(e, events.TakenBack)]
    assert (back.stage, back.step, back.to) == ("first", 31 if factor == 30 else 30, 24)
    assert ("usual" if factor == 30 else "not finite") in back.reason
    assert task.steps[31:38] == list(range(24, 31))
    assert isinstance(seen[-1], events.StageEnded)
    assert all(value.isfinite().all() for value in task.module.state_dict().values())


def test_after_that_it_draws_otherwise_and_every_time_the_same(tmp_path: Path) -> None:
    leaping = [
        digests(list(train(guarded(tmp_path / name, Leaping({30: (1, 30.0)})))))
        for name in ("one", "other")
    ]
    plain = digests(list(train(guarded(tmp_path / "plain", Leaping({})))))
    assert leaping[0] == leaping[1]
    assert leaping[0] != plain


@pytest.mark.parametrize("at", [12, 24, 30])
def test_a_run_that_goes_back_resumes_to_the_bit(tmp_path: Path, at: int) -> None:
    """Broken before it goes back, and after."""

    def leaps() -> dict[int, tuple[int, float]]:
        return {30: (1, 30.0)}

    whole = digests(list(train(guarded(tmp_path / "whole", Leaping(leaps())))))
    folder = tmp_path / "broken"
    happened = train(guarded(folder, first := Leaping(leaps())))
    back = False
    for event in happened:
        back |= isinstance(event, events.TakenBack)
        if isinstance(event, events.CheckpointSaved) and event.step == at and (back or at < 30):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    later = Leaping(leaps())
    later.left = dict(first.left)
    seen = list(train(guarded(folder, later), resume=True))
    assert any(isinstance(e, events.TakenBack) for e in seen) == (at < 30)
    assert digests(seen) == whole


@pytest.mark.parametrize(
    "recipe", [{"checkpoint_every": 5}, {"keep_checkpoints": 1}, {"read_every": 4}, {"checkpoint_every": 0}]
)  # fmt: skip
def test_it_does_not_depend_on_what_else_is_saved_or_looked_at(
    tmp_path: Path, recipe: dict[str, int]
) -> None:
    """The state that it goes back to is the guard's own."""
    found = [
        digests(list(train(guarded(tmp_path / str(len(more)), Leaping({30: (1, 30.0)}), **more))))
        for more in ({}, recipe)
    ]
    assert found[0] == found[1]


def test_a_leap_between_two_looks_is_seen(tmp_path: Path) -> None:
    inputs = guarded(tmp_path, Leaping({26: (1, 30.0)}), read_every=10)
    inputs = evolve(inputs, runtime=Waiting(device="cpu", precision="fp32"))
    [back] = [e for e in train(inputs) if isinstance(e, events.TakenBack)]
    assert (back.step, back.to) == (30, 24)


def test_before_anything_else_is_saved_it_goes_back_to_the_beginning(tmp_path: Path) -> None:
    seen = list(train(guarded(tmp_path, Leaping({4: (1, float("nan"))}))))
    [back] = [e for e in seen if isinstance(e, events.TakenBack)]
    assert (back.step, back.to) == (4, 0)
    assert not (tmp_path / "checkpoints" / "guard").exists()


def test_a_state_that_is_lost_ends_the_run(tmp_path: Path) -> None:
    happened = train(guarded(tmp_path, Leaping({30: (1, 30.0)})))
    for event in happened:
        if isinstance(event, events.CheckpointSaved) and event.step == 24:
            shutil.rmtree(tmp_path / "checkpoints" / "guard")
            break
    with pytest.raises(TrainingError, match=r"to go back to is lost.*lower learning rate"):
        list(happened)


def test_terms_that_begin_late_are_refused_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no term can begin late"):
        resolve(
            {"recipe": "quick"},
            overrides=(
                "recipe.spike_guard={factor=5.0}",
                "recipe.stages[0].terms[0].start_steps=3",
            ),
        )


def test_the_second_time_ends_the_run_where_nothing_is_finite(tmp_path: Path) -> None:
    inputs = guarded(tmp_path, Leaping({30: (2, float("nan"))}))
    with pytest.raises(TrainingError, match=r"step 30: not finite .* go on from it with --resume"):
        list(train(inputs))


def test_without_a_guard_nothing_goes_back(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        list(train(guarded(tmp_path / "b", Leaping({30: (1, float("nan"))}), factor=None)))
    seen = list(train(guarded(tmp_path / "c", Leaping({30: (1, 30.0)}), factor=None)))
    assert not any(isinstance(e, events.TakenBack) for e in seen)


def test_the_usual_loss_is_a_median(tmp_path: Path) -> None:
    guard = SpikeGuard(config=SpikeGuardConfig(factor=3.0), folder=tmp_path, stage=0)
    assert not guard.problems([9.0, *[1.0] * (FEWEST - 1)])
    assert not guard.problems([2.9])
    assert guard.problems([1.0, 3.1]) == ["its loss is 3.1, where 1 is usual"]


def test_the_log_is_as_if_the_steps_before_had_not_been(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", resume=False)
    for event in train(guarded(tmp_path, Leaping({30: (1, float("nan"))}))):
        log.write(event)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "StepDone"] == list(range(1, 41))
    [back] = [row for row in rows if row["event"] == "TakenBack"]
    assert back["to"] == 24


def test_further_averages_are_saved_and_resume(tmp_path: Path) -> None:
    def inputs(folder: Path) -> TrainerInputs:
        torch.manual_seed(0)
        found = run_of(folder, task=ScoredLine(), checkpoint_every=2)
        stage = evolve(found.recipe.stages[0], more_ema=(0.0, 0.5, 0.9))
        return evolve(found, recipe=evolve(found.recipe, stages=(stage,)))

    def saved(folder: Path) -> dict[str, float]:
        below = folder / "averages" / "first"
        return {p.name: json.loads((p / "slope.json").read_text()) for p in below.iterdir()}

    whole = inputs(tmp_path / "whole")
    list(train(whole))
    found = saved(tmp_path / "whole")
    assert found.keys() == {"0.0", "0.5", "0.9"}
    state = torch.load(
        tmp_path / "whole" / "checkpoints" / "stage1-step00000000.pt", weights_only=True
    )
    assert found["0.0"] == float(state["model"]["line.weight"])
    assert found["0.5"] == float(state["ema"]["values"]["line.weight"])  # the stage's own decay
    assert len(set(found.values())) == 3
    happened = train(inputs(tmp_path / "broken"))
    for event in happened:
        if isinstance(event, events.CheckpointSaved) and event.step == 4:
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    list(train(inputs(tmp_path / "broken"), resume=True))
    assert saved(tmp_path / "broken") == found


def test_an_average_that_a_checkpoint_lacks_begins_there(tmp_path: Path) -> None:
    first = run_of(tmp_path, task=ScoredLine(), checkpoint_every=4)
    happened = train(first)
    for event in happened:
        if isinstance(event, events.CheckpointSaved):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    later = run_of(tmp_path, task=ScoredLine(), checkpoint_every=4)
    stage = evolve(later.recipe.stages[0], more_ema=(0.999,))
    later = evolve(later, recipe=evolve(later.recipe, stages=(stage,)))
    begun: list[Tensor] = []
    for event in train(later, resume=True):
        if isinstance(event, events.StageStarted):
            begun.append(later.task.module.line.weight.detach().clone())
    kept = json.loads((tmp_path / "averages" / "first" / "0.999" / "slope.json").read_text())
    assert kept == pytest.approx(float(begun[0]), abs=2e-2)
    assert kept != float(later.task.module.line.weight)
