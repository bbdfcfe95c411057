"""Training on clips, with steps of single frames among them: resumed, and in several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rpiae.core.config.tree import Tree
from rpiae.core.model.contracts import StageSteps
from rpiae.core.training import events
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from tests.toys import CRITICS, toy_run

STEPS = 6
SHARE = 0.5
TERMS: list[Tree] = [
    {"loss": "l1", "reference": True},
    {"loss": "pivot", "weight": 0.1},
    {"loss": "kl", "weight": 1e-3},
    {"loss": {"name": "pivot-trajectory", "of": "decoded_features"}, "weight": 0.1},
    {"loss": "temporal-difference", "adaptive": {"layer": "decoder"}},
    {"loss": {"name": "flicker", "neighbourhood": 1}},
]
GAME: Tree = {
    "loss": {"name": "adversarial", "critic": CRITICS["patch"]},
    "weight": 0.1,
    "adaptive": {"layer": "decoder"},
}


def video_run(folder: Path, *terms: Tree, **recipe: Any) -> TrainerInputs:
    """All parts on clips of five frames, and on single frames in half of the steps."""
    stage = {
        "name": "all", "train": ["encoder", "bridge", "decoder"], "posterior": "sample",
        "noise": 0.1, "steps": STEPS, "batch_size": 3, "image_share": SHARE,
        "terms": [*TERMS, *terms],
    }  # fmt: skip
    tree = {"name": "toy", "stages": [stage], "evaluate_every": 0, "read_every": 1, **recipe}
    return toy_run(folder, "vit", "tvb4x4", "video-vit", tree, data="clips")


def ended(happened: Any) -> dict[str, str]:
    return dict(next(e for e in happened if isinstance(e, events.StageEnded)).digests)


def steps_of(inputs: TrainerInputs) -> list[events.StepDone]:
    return [event for event in train(inputs) if isinstance(event, events.StepDone)]


def test_some_steps_are_of_frames_and_their_terms_on_time_are_zero(tmp_path: Path) -> None:
    of_frames = [
        StageSteps(
            seed=0, stage="all", batch_size=3, start=0, steps=STEPS, image_share=SHARE
        ).of_frames(step)
        for step in range(STEPS)
    ]
    assert set(of_frames) == {True, False}
    for event, alone in zip(steps_of(video_run(tmp_path)), of_frames, strict=True):
        still = {
            event.terms[n] == 0 for n in ("pivot-trajectory", "temporal-difference", "flicker")
        }
        assert still == {alone}, event.step
        assert event.gradient_norms


def test_resume_is_exact_on_clips_with_a_critic(tmp_path: Path) -> None:
    whole = ended(train(video_run(tmp_path / "whole", GAME)))
    happened = train(video_run(tmp_path / "half", GAME, checkpoint_every=1))
    for event in happened:
        if isinstance(event, events.CheckpointSaved) and event.step == 3:
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    again = video_run(tmp_path / "half", GAME, checkpoint_every=1)
    assert ended(train(again, resume=True)) == whole
    assert set(whole) == {"weights", "ema", "optimiser", "critic"}


def test_accumulated_parts_of_clips_teach_what_a_whole_batch_does(tmp_path: Path) -> None:
    whole = steps_of(video_run(tmp_path / "1"))
    parts = steps_of(video_run(tmp_path / "2", accumulate=2))
    for one, other in zip(whole, parts, strict=True):
        assert other.terms == pytest.approx(one.terms, rel=1e-3, abs=1e-5)


SCRIPT = """
import json, sys
from pathlib import Path
from tests.unit.test_video_training import steps_of, video_run
inputs = video_run(Path(sys.argv[1]))
totals = [event.total for event in steps_of(inputs)]
if inputs.runtime.is_main:
    Path(sys.argv[1], "totals.json").write_text(json.dumps(totals))
inputs.runtime.close()
"""


def test_two_processes_learn_from_clips_and_frames_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    together = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=Path(__file__).parents[2],
            env={**os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    alone = [event.total for event in steps_of(video_run(tmp_path / "alone"))]
    assert json.loads((tmp_path / "totals.json").read_text()) == pytest.approx(alone, rel=1e-4)
