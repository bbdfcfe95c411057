"""Several processes give one process's numbers, and hand runs over to one another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rpiae import runs
from rpiae.core.config.tree import dump_toml
from rpiae.core.registry.registry import registry
from rpiae.core.training import events
from rpiae.core.training.checkpoint import progress
from tests.short_run import ADAPTIVE, short_run, short_video_run, write_images, write_videos

STAGES = ("tune", "compress")
Curve = dict[tuple[str, int], float]
LENGTHS = tuple(f"recipe.stages[{i}].steps={n}" for i, n in enumerate((30, 30, 1)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("processes") / "images")


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """The curve of a run in one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    whole = runs.run(runs.resolve(tree(images, out), overrides=(ADAPTIVE, *LENGTHS)))
    stop_at(whole, ("compress", 30))
    found = curve(out)
    assert len(found) == 60
    return found


def check_alike(found: Curve, expected: Curve) -> None:
    assert found.keys() == expected.keys()
    for place, total in expected.items():
        assert found[place] == pytest.approx(total, abs=1e-4), place


def tree(images: Path, out: Path) -> dict[str, Any]:
    made = short_run(images, out, batch_size=5, evaluate_every=0, checkpoint_every=5)
    del made["recipe"]["max_steps"]
    return made


def curve(out: Path) -> Curve:
    rows = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return {
        (row["stage"], row["step"]): row["total"]
        for row in rows
        if row["event"] == "StepDone" and row["stage"] in STAGES
    }


def go_on(out: Path, *, until: tuple[str, int]) -> None:
    happened = runs.resume(out)
    stop_at(happened, until)


def stop_at(happened: Any, until: tuple[str, int]) -> None:
    for event in happened:
        if isinstance(event, events.StepDone) and (event.stage, event.step) == until:
            break
    happened.close()


def launched(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rpiae", "build", "--processes", "2", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_two_processes_one_killed_and_one_process_goes_on(
    tmp_path: Path, images: Path, alone: Curve
) -> None:
    out = tmp_path / "two"
    begun = runs.resolve(tree(images, out), overrides=(ADAPTIVE, *LENGTHS))
    config = tmp_path / "run.toml"
    config.write_text(dump_toml(begun.config))
    process = launched("--config", str(config))
    log = out / "events.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count('"compress", "step"') >= 8):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = {
        child.environ().get("RANK"): child
        for child in psutil.Process(process.pid).children()
        if "rpiae" in child.cmdline()
    }
    ranks["1"].kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "process 1 was ended by signal 9" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors

    go_on(out, until=("compress", 30))
    check_alike(curve(out), alone)


def test_one_process_begins_and_two_finish(tmp_path: Path, images: Path, alone: Curve) -> None:
    out = tmp_path / "run"
    begun = runs.resolve(tree(images, out), overrides=(ADAPTIVE, *LENGTHS))
    stop_at(runs.run(begun), ("tune", 17))
    process = launched("--resume", str(out))
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "in 2 processes" in errors
    summary = json.loads((out / "summary.json").read_text())
    assert [stage["steps"] for stage in summary["stages"]] == [30, 30, 1]
    check_alike(curve(out), alone)


def test_the_critic_learns_alike_in_two_processes(tmp_path: Path, images: Path) -> None:
    made = tree(images, tmp_path / "one")
    game = {"name": "adversarial", "critic": {"name": "patch", "width": 4, "halvings": 1}}
    adversarial = {"loss": game, "start_steps": 2, "adaptive": {"layer": "decoder"}}
    stage = {
        "name": "polish", "train": ["encoder", "bridge", "decoder"], "steps": 5, "batch_size": 5,
        "terms": [{"loss": "l1", "reference": True}, adversarial],
    }  # fmt: skip
    made["recipe"] = {"name": "gan", "stages": [stage], "evaluate_every": 0}
    stop_at(runs.run(runs.resolve(made)), ("polish", 5))
    config = tmp_path / "run.toml"
    config.write_text(dump_toml(runs.resolve(made | {"out": str(tmp_path / "two")}).config))
    process = launched("--config", str(config))
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    alone, together = (critics(tmp_path / name) for name in ("one", "two"))
    assert len(alone) == len(together) == 5
    for one, two in zip(alone, together, strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4)


def test_clips_and_single_frames_teach_two_processes_what_they_teach_one(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos")
    stages = {s["name"]: s for s in registry("recipes").select("video").tree["stages"]}
    stage = stages["compress"] | {
        "train": ["encoder", "bridge", "decoder"], "steps": 6, "batch_size": 3,
        "image_share": 0.5,
    }  # fmt: skip

    def made(name: str) -> dict[str, Any]:
        recipe = {"name": "clips", "stages": [stage], "evaluate_every": 0}
        return short_video_run(videos, tmp_path / name) | {"recipe": recipe}

    stop_at(runs.run(runs.resolve(made("one"))), (stage["name"], 6))
    config = tmp_path / "run.toml"
    config.write_text(dump_toml(runs.resolve(made("two")).config))
    process = launched("--config", str(config))
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    alone, together = (totals(tmp_path / name) for name in ("one", "two"))
    assert len(alone) == 6
    assert together == pytest.approx(alone, rel=1e-3)


def totals(out: Path) -> list[float]:
    rows = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return [row["total"] for row in rows if row["event"] == "StepDone"]


def critics(out: Path) -> list[dict[str, float]]:
    rows = map(json.loads, (out / "events.jsonl").read_text().splitlines())
    return [row["others"].get("critic") for row in rows if row["event"] == "StepDone"]


def test_more_processes_than_images_in_a_step(tmp_path: Path, images: Path) -> None:
    made = tree(images, tmp_path / "run")
    made["recipe"]["batch_size"] = 1
    config = tmp_path / "run.toml"
    config.write_text(dump_toml(runs.resolve(made).config))
    process = launched("--config", str(config))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.count("fewer than the 2 processes") == 1
    assert "Traceback" not in errors


def begun(out: Path, config: Path) -> subprocess.Popen[str]:
    """A run in two processes that is at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rpiae", "build", "--processes", "2", "--config", str(config)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    log = out / "events.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and '"StepDone"' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def endless(images: Path, out: Path) -> Path:
    made = tree(images, out)
    made["recipe"]["max_steps"] = 100_000
    config = out.with_suffix(".toml")
    config.write_text(
        dump_toml(runs.resolve(made, overrides=("recipe.stages[0].steps=100000",)).config)
    )
    return config


@pytest.mark.parametrize("told", ["launcher", "group"])
def test_a_signal_to_several_processes_saves_the_state(
    tmp_path: Path, images: Path, told: str
) -> None:
    out = tmp_path / "run"
    process = begun(out, endless(images, out))
    if told == "launcher":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert errors.count(f"rpiae build --resume {out}\n") == 1, errors
    assert "Traceback" not in errors
    assert "unexpected" not in errors
    stage, step = progress(out / "checkpoints")
    assert stage == 0
    assert step > 0


def test_nobody_outlives_the_launcher(tmp_path: Path, images: Path) -> None:
    out = tmp_path / "run"
    process = begun(out, endless(images, out))
    others = psutil.Process(process.pid).children(recursive=True)
    assert len(others) >= 2
    process.kill()
    _, alive = psutil.wait_procs(others, timeout=100)
    process.communicate()
    assert alive == []
    assert progress(out / "checkpoints") > (0, 0)
