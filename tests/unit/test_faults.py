"""Faults, caused for real: what is saved stays, and the message says what to do."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from rpiae import runs
from rpiae.core.errors import CheckpointError, DataError, TrainingError, UsageError
from rpiae.core.training import events
from rpiae.core.training.checkpoint import load_checkpoint, progress
from rpiae.core.training.trainer import train
from tests.short_run import FORKS, quietly, short_run, write_images
from tests.toys import toy_run

SHORT = ("recipe.max_steps=4", "recipe.batch_size=2", "recipe.checkpoint_every=1")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def until(happened: Any, stage: str, step: int) -> Any:
    """Let a run go on until a step is done; the generator, and what it yielded."""
    seen = []
    for event in happened:
        seen.append(event)
        if isinstance(event, events.StepDone) and (event.stage, event.step) == (stage, step):
            return seen
    raise AssertionError("the run ended before")


def test_gradients_that_are_not_finite_stop_the_run_before_the_optimiser(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "quick", *SHORT)
    calls = []

    def poisoned(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * (float("nan") if len(calls) == 3 else 1.0)

    happened = train(inputs)
    next(happened)
    inputs.task.model.decoder.last_weight.register_hook(poisoned)
    with pytest.raises(TrainingError, match=r"tune, step 2: .*gradient norm of decoder = nan"):
        list(happened)
    found = load_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert all(t.isfinite().all() for t in found[1]["model"].values())
    assert all(t.isfinite().all() for t in inputs.task.model.state_dict().values())


def test_nan_before_the_first_checkpoint_says_that_there_is_none(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "quick", "recipe.max_steps=4")
    inputs.task.model.decoder.last_weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="No checkpoint was due yet"):
        list(train(inputs))


def test_a_killed_loading_process_saves_the_state_and_the_run_resumes(
    tmp_path: Path, images: Path
) -> None:
    tree = short_run(images, tmp_path / "run", checkpoint_every=2, max_steps=30)
    happened = runs.run(tree)
    until(happened, "tune", 2)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"loads images ended .*Lower data.workers.*--resume"):
        list(happened)
    stage, step = progress(tmp_path / "run" / "checkpoints")
    assert (stage, step) >= (0, 2)
    resumed = runs.resume(tmp_path / "run")
    started = next(e for e in resumed if isinstance(e, events.StageStarted))
    assert started.step == step
    resumed.close()


def test_files_that_vanish_are_replaced_and_reported(tmp_path: Path, images: Path) -> None:
    tree = short_run(images, tmp_path / "run", max_steps=12)
    tree["data"]["workers"] = 0
    happened = runs.run(tree)
    until(happened, "tune", 1)
    files = sorted(images.iterdir())
    for file in files[:6]:
        file.unlink()
    seen = until(happened, "tune", 12)
    skipped = [e for e in seen if isinstance(e, events.ImagesSkipped)]
    assert any("No such file" in text for e in skipped for text in e.images)
    for file in files[6:]:
        file.unlink()
    with pytest.raises(DataError, match=r"none of \d+ images .*cannot be read.*--resume"):
        list(happened)
    assert progress(tmp_path / "run" / "checkpoints") >= (1, 0)


def test_half_of_the_images_damaged(tmp_path: Path, images: Path) -> None:
    data = runs.resolve(short_run(images, tmp_path / "run")).config.data
    assert data is not None
    held_out = {Path(name).name for name in data.build().held_out().groups}
    trained = [file for file in sorted(images.iterdir()) if file.name not in held_out]
    for file in trained[::2]:
        file.write_bytes(file.read_bytes()[:50])
    happened = runs.run(short_run(images, tmp_path / "run"))
    seen = until(happened, "tune", 6)
    last = [e for e in seen if isinstance(e, events.ImagesSkipped)][-1]
    assert 3 <= last.total <= 8
    happened.close()


def test_two_runs_in_one_folder(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpiae.runs.folder.PATIENCE", 0.1)
    tree = short_run(images, tmp_path / "run")
    first = runs.run(tree)
    until(first, "tune", 1)
    with pytest.raises(UsageError, match="another run is at work"):
        list(runs.resume(tmp_path / "run"))
    with pytest.raises(UsageError, match="another run is at work"):
        list(runs.run(tree))
    until(first, "tune", 2)
    first.close()
    resumed = runs.resume(tmp_path / "run")
    until(resumed, "tune", 3)
    resumed.close()


def full_disk(tree: dict[str, Any], report: Path) -> None:
    """Files stop growing after step 3 of the first stage; and at its end they may again."""
    import resource

    told = []
    happened = runs.run(tree)
    for event in happened:
        if isinstance(event, events.StepDone) and event.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        if isinstance(event, events.Notice) and "checkpoint" in event.text:
            told.append(event.text)
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
        if isinstance(event, events.StageEnded):
            break
    happened.close()
    report.write_text("\n".join(told))


def disk_full_for_good(tree: dict[str, Any], report: Path) -> None:
    import resource

    happened = runs.run(tree)
    until(happened, "tune", 3)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    try:
        list(happened)
    except CheckpointError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        report.write_text(str(error))


@pytest.mark.parametrize("scenario", [full_disk, disk_full_for_good])
def test_a_full_disk(tmp_path: Path, images: Path, scenario: Any) -> None:
    out, report = tmp_path / "run", tmp_path / "report"
    tree = short_run(images, out, checkpoint_every=2, evaluate_every=0)
    log = tmp_path / "log"
    process = FORKS.Process(target=quietly, args=(log, scenario, tree, report))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()
    assert "cannot write checkpoint" in report.read_text()
    assert "File too large" in report.read_text()
    assert "Earlier checkpoints are untouched" in report.read_text()
    assert not list((out / "checkpoints").glob("*.part"))
    found = load_checkpoint(out / "checkpoints")
    assert found is not None
    assert (found[1]["stage"], found[1]["step"]) == ((1, 0) if scenario is full_disk else (0, 2))


def test_data_of_another_size_are_refused_on_resume(tmp_path: Path, images: Path) -> None:
    happened = runs.run(short_run(images, tmp_path / "run"))
    until(happened, "tune", 3)
    happened.close()
    (images / "new.png").write_bytes((images / "00.png").read_bytes())
    with pytest.raises(CheckpointError, match="12 images and the data now have 13"):
        list(runs.resume(tmp_path / "run"))


def test_resume_names_what_changed_and_refuses_what_would_change_the_past(
    tmp_path: Path, images: Path
) -> None:
    out = tmp_path / "run"
    happened = runs.run(short_run(images, out))
    until(happened, "tune", 3)
    happened.close()
    with pytest.raises(UsageError) as caught:
        list(
            runs.resume(
                out, changes={"seed": 4},
                overrides=("recipe.stages[0].noise=0.5", "recipe.evaluate_every=2"),
            )
        )  # fmt: skip
    assert "recipe.stages[0].noise 0.05 → 0.5 · seed 3 → 4: what is" in str(caught.value)
    assert "evaluate_every" not in str(caught.value)
    resumed = runs.resume(out, overrides=("recipe.stages[1].noise=0.5", "recipe.evaluate_every=2"))
    told = [e.text for e in until(resumed, "tune", 4) if isinstance(e, events.Notice)]
    resumed.close()
    assert "changed since the run began: recipe.evaluate_every 4 → 2" in told
    assert "changed since the run began: recipe.stages[1].noise 0.05 → 0.5" in told


def test_a_signal_in_the_last_evaluation_of_a_stage_does_not_end_the_run_as_done(
    tmp_path: Path,
) -> None:
    inputs = toy_run(tmp_path, "vit", "vb4", "vit", "quick", *SHORT)
    calls = []

    def interrupted(*_: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return {"psnr": 0.0}

    inputs.task.measure = interrupted
    seen = list(train(inputs))
    assert isinstance(seen[-1], events.Interrupted)
    assert progress(tmp_path / "checkpoints") == (1, 1)
