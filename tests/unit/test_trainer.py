"""The staged trainer: skips, caps, resume, signals, NaN, checkpoints."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from attrs import evolve, frozen

from rpiae.core.errors import CheckpointError, ConfigError, TrainingError
from rpiae.core.model.contracts import StepContext
from rpiae.core.training import events
from rpiae.core.training.beside import best_folder
from rpiae.core.training.checkpoint import list_checkpoints, load_checkpoint
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.losses.pixels import L1Loss
from tests.toys import toy_run

SHORT = ("recipe.max_steps=4", "recipe.batch_size=2", "recipe.checkpoint_every=1")


def quick(folder: Path, *overrides: str) -> TrainerInputs:
    return toy_run(folder, "vit", "vb4", "vit", "quick", *SHORT, *overrides)


@frozen(kw_only=True)
class Ended:
    """A run that went to its end: its folder, what it told and the weights it ended with."""

    folder: Path
    seen: list[events.Event]
    state: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    inputs = quick(tmp_path_factory.mktemp("unbroken"))
    seen = list(train(inputs))
    return Ended(folder=inputs.folder, seen=seen, state=state(inputs))


def copied(run: Ended, folder: Path) -> Path:
    return Path(shutil.copytree(run.folder, folder, dirs_exist_ok=True))


def state(inputs: TrainerInputs) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in inputs.task.model.state_dict().items()}


def test_identity_bridge_skips_its_stage(tmp_path: Path) -> None:
    seen = list(train(toy_run(tmp_path, "vit", "identity", "vit", "rpiae", *SHORT)))
    assert [e.stage for e in seen if isinstance(e, events.StageSkipped)] == ["compress"]
    assert [e.stage for e in seen if isinstance(e, events.StageEnded)] == ["tune", "polish"]


def test_max_steps_shortens_every_stage_and_its_schedule(unbroken: Ended) -> None:
    steps = [e for e in unbroken.seen if isinstance(e, events.StepDone)]
    assert len(steps) == 12
    for stage in ("tune", "compress", "polish"):
        rates = [e.learning_rate for e in steps if e.stage == stage]
        assert len(rates) == 4
        assert rates[0] == max(rates)
        assert rates[-1] < 0.5 * rates[0]


@pytest.mark.parametrize("stop_after", [2, 4, 5, 9])
def test_resume_ends_with_the_unbroken_runs_weights(
    unbroken: Ended, tmp_path: Path, stop_after: int
) -> None:
    run = train(quick(tmp_path))
    count = 0
    for event in run:
        count += isinstance(event, events.StepDone)
        if count == stop_after and isinstance(event, (events.CheckpointSaved, events.StageEnded)):
            break
    run.close()
    resumed = quick(tmp_path)
    rest = list(train(resumed, resume=True))
    assert sum(isinstance(e, events.StepDone) for e in rest) == 12 - stop_after
    for name, value in state(resumed).items():
        assert torch.equal(value, unbroken.state[name]), name


def test_a_finished_run_resumes_to_itself(unbroken: Ended, tmp_path: Path) -> None:
    again = quick(copied(unbroken, tmp_path))
    assert [e for e in train(again, resume=True) if isinstance(e, events.StepDone)] == []
    assert all(torch.equal(v, unbroken.state[n]) for n, v in state(again).items())


def test_accumulation_gives_the_same_weights(unbroken: Ended, tmp_path: Path) -> None:
    parts = quick(tmp_path, "recipe.accumulate=2")
    list(train(parts))
    found = state(parts)
    for name, value in unbroken.state.items():
        one, other = found[name], value
        if name.endswith("qkv.bias"):
            # Softmax does not see the keys' bias: its gradient is rounding alone, which AdamW
            # makes steps of full length from.
            one, other = (torch.cat([b.chunk(3)[0], b.chunk(3)[2]]) for b in (one, other))
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)


def test_a_signal_saves_at_the_step_boundary(tmp_path: Path) -> None:
    inputs = toy_run(
        tmp_path, "vit", "vb4", "vit", "quick", "recipe.max_steps=50", "recipe.batch_size=2"
    )
    seen = []
    for event in train(inputs):
        seen.append(event)
        if isinstance(event, events.StepDone) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
    last = seen[-1]
    assert isinstance(last, events.Interrupted)
    assert last.signal == "SIGTERM"
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert (found[1]["stage"], found[1]["step"]) == (0, 3)


def test_nan_stops_names_the_term_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = L1Loss.__call__

    def poisoned(self: L1Loss, context: StepContext) -> torch.Tensor:
        calls.append(1)
        return real(self, context) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(L1Loss, "__call__", poisoned)
    inputs = quick(tmp_path)
    with pytest.raises(TrainingError, match=r"stage tune, step 2: .*l1 = nan"):
        list(train(inputs))
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert found[1]["step"] == 2
    assert all(t.isfinite().all() for t in found[1]["model"].values())


def test_a_pattern_that_matches_nothing_is_named_with_its_path(tmp_path: Path) -> None:
    inputs = quick(tmp_path)
    stages = list(inputs.recipe.stages)
    stages[1] = evolve(stages[1], train=("bridge.encodr.*",))
    broken = evolve(inputs, recipe=evolve(inputs.recipe, stages=tuple(stages)))
    with pytest.raises(ConfigError, match=r"recipe\.stages\[1\]\.train\[0\]: 'bridge\.encodr"):
        list(train(broken))


def test_only_the_last_checkpoints_are_kept_and_damaged_ones_are_passed_over(
    tmp_path: Path,
) -> None:
    inputs = quick(tmp_path, "recipe.keep_checkpoints=2")
    list(train(inputs))
    folder = tmp_path / "checkpoints"
    older, newest = list_checkpoints(folder)
    newest.write_bytes(newest.read_bytes()[:100])
    found = load_checkpoint(folder)
    assert found is not None
    assert found[0] == older
    older.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        load_checkpoint(folder)


def test_a_checkpoint_of_another_architecture_is_refused(unbroken: Ended, tmp_path: Path) -> None:
    other = toy_run(copied(unbroken, tmp_path), "timm", "vb4", "vit", "quick", *SHORT)
    with pytest.raises(CheckpointError, match="another architecture"):
        list(train(other, resume=True))


def test_training_is_a_function_of_the_seed(unbroken: Ended, tmp_path: Path) -> None:
    same, other = quick(tmp_path / "same"), evolve(quick(tmp_path / "other"), seed=1)
    ended = [e.digests for e in unbroken.seen if isinstance(e, events.StageEnded)]
    assert len(ended) == 3
    assert [e.digests for e in train(same) if isinstance(e, events.StageEnded)] == ended
    list(train(other))
    found = state(other)
    assert any(not torch.equal(v, found[n]) for n, v in unbroken.state.items())


def test_a_stages_name_leads_nowhere(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "run"
    inputs = quick(run)
    names = ("../../victim/tokenizer", "/tmp/x", "[/red]")
    stages = tuple(evolve(s, name=n) for s, n in zip(inputs.recipe.stages, names, strict=True))
    list(train(evolve(inputs, recipe=evolve(inputs.recipe, stages=stages))))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert [path.name for path in run.parent.iterdir()] == ["run"]
    assert {path.name for path in run.iterdir()} == {"best", "checkpoints"}
    assert set((run / "best").iterdir()) == {best_folder(run, n) for n in names}
    again = quick(run)
    seen = list(train(evolve(again, recipe=evolve(inputs.recipe, stages=stages)), resume=True))
    assert [e.stage for e in seen if isinstance(e, events.StageEnded)] == list(names)
