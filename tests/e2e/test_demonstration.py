"""``rpiae diffuse`` without arguments: from scans to samples that are read."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rpiae.core.training.checkpoint import list_checkpoints
from rpiae.runs.demonstration import Read, demonstrate
from rpiae.sampling.loaded import load_generator
from tests.commands import rpiae, rpiae_alone

SHORT: dict[str, Any] = {
    "device": "cpu", "precision": "fp32", "per_digit": 2,
    "tokenizer": ("recipe.max_steps=2", "recipe.checkpoint_every=1", "data.held_out=10"),
    "generator": (
        "recipe.max_steps=6", "recipe.checkpoint_every=1", "generator.width=16", "generator.depth=1",
        "generator.num_heads=1",
    ),
}  # fmt: skip

#: Goes on with a short demonstration until it is killed, or done.
SCRIPT = f"""
import sys
from rpiae.runs.demonstration import demonstrate
for step in demonstrate(sys.argv[1], **{SHORT!r}):
    for event in step.events:
        pass
"""


def go_through(out: Path, **changes: Any) -> tuple[list[str], Read]:
    """The names of the steps that something was done in, and what was read in the end."""
    done, last = [], None
    for step in demonstrate(out, **SHORT | changes):
        seen = list(step.events)
        assert bool(seen) != step.kept
        done += [] if step.kept else [step.name]
        last = seen[-1] if seen else None
    assert isinstance(last, Read)
    return done, last


def test_all_lies_in_one_folder_that_may_be_moved(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    done, read = go_through(out)
    assert done == ["tokenizer", "latents", "generator", "samples", "samples", "reading"]
    assert read.count == 20
    assert read.scans > 0.97
    for share in (read.guided, read.unguided, read.reconstructions, *read.digits):
        assert 0 <= share <= 1
    written = json.loads((out / "reading.json").read_text())
    assert (written["scans"], written["picture"]) == (read.scans, "samples.png")
    with Image.open(read.picture) as picture:
        assert picture.height > 10 * load_generator(out).tokenizer.trained_size
    wanted = load_generator(out).sample([3, 7], steps=2)
    moved = out.rename(tmp_path / "moved")
    found = load_generator(moved)
    assert torch.equal(found.sample([3, 7], steps=2), wanted)
    assert found.model.facts.label_names == tuple("0123456789")
    assert go_through(moved) == (["reading"], evolved(read, moved))
    out, _ = rpiae(
        "sample", "moved", "--classes", "3,7", "--steps", "2", "--out", "s", cwd=tmp_path
    )
    assert "16 samples, classes: 2" in out


def evolved(read: Read, folder: Path) -> Read:
    """What is read of the same samples in another folder."""
    from attrs import evolve

    return evolve(read, picture=folder / read.picture.name)


def kill(out: Path, when: Callable[[], bool]) -> None:
    """Start, or go on, and kill as soon as something is so."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out)], cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not when():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_in_every_step_it_goes_on_to_the_same_samples(tmp_path: Path) -> None:
    out = tmp_path / "killed"
    begun = (
        lambda: len(list_checkpoints(out / "tokenizer" / "checkpoints")) > 0,
        lambda: (out / "latents" / "index.json").exists(),
        lambda: len(list_checkpoints(out / "checkpoints")) > 0,
        lambda: (out / "samples" / "guided.npz").exists(),
    )
    for when in begun:
        kill(out, when)
        kept = (
            (out / "tokenizer" / "summary.json").stat().st_mtime_ns if when is not begun[0] else 0
        )
    done, read = go_through(out)
    assert set(done) <= {"samples", "reading"}
    assert (out / "tokenizer" / "summary.json").stat().st_mtime_ns == kept
    _, straight = go_through(tmp_path / "straight")
    assert evolved(read, tmp_path / "straight") == straight
    for name in ("guided", "unguided"):
        one, other = (
            (folder / "samples" / f"{name}.npz").read_bytes()
            for folder in (out, tmp_path / "straight")
        )
        assert one == other


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "rpiae", "diffuse", "--out", "d", "--device", "cpu"], cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("tune 1/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "the state is saved. Go on with:\n  rpiae diffuse --out d --device cpu" in rest


@pytest.mark.slow
def test_nine_of_ten_guided_samples_are_read_rightly(tmp_path: Path) -> None:
    out, _ = rpiae_alone("diffuse", cwd=tmp_path)
    guided, unguided, scans, reconstructions = map(float, re.findall(r"(\d+\.\d)%", out)[-4:])
    assert guided >= 90
    assert unguided <= guided
    assert scans >= 97
    assert reconstructions >= 95
    assert "rpiae sample runs/digits --classes 0-9" in out
    digits = json.loads((tmp_path / "runs" / "digits" / "reading.json").read_text())["digits"]
    assert min(digits) >= 0.5
