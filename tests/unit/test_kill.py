"""A run that is killed at any moment ends as the unbroken one, to the bit."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.short_run import (
    FORKS,
    digests,
    quietly,
    short_generator_run,
    short_run,
    short_video_run,
    stage_names,
    train_to_the_end,
    write_images,
    write_latents,
    write_videos,
)


def started(tree: dict[str, Any]) -> Any:
    log = Path(f"{tree['out']}.log")
    process = FORKS.Process(target=quietly, args=(log, train_to_the_end, tree))
    process.start()
    return process


def killed_at_random(folder: Path, run: Callable[[Path], dict[str, Any]], *, kills: int) -> None:
    """Kill runs until it was done so often; every one of them ends as a whole one.

    Args:
        folder: of the runs.
        run: its config, from the folder that it goes to.
        kills: how many.
    """
    warm = FORKS.Process(target=int)
    warm.start()
    warm.join()
    began = time.perf_counter()
    whole = started(run(folder / "whole"))
    whole.join()
    assert whole.exitcode == 0, (folder / "whole.log").read_text()
    length = time.perf_counter() - began
    expected = digests(folder / "whole")
    assert list(expected) == stage_names(run(folder))

    draws = random.Random(0)
    number = done = 0
    while done < kills:
        out = folder / f"broken{number}"
        while not (out / "digests.json").exists():
            process = started(run(out))
            if done < kills:
                process.join(draws.uniform(0.0, 0.5) * length)
                if process.exitcode is None:
                    process.kill()
                    done += 1
            process.join()
            assert process.exitcode in (0, -9), Path(f"{out}.log").read_text()
        assert digests(out) == expected
        number += 1


def test_sigkill_at_random_moments_changes_nothing(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    killed_at_random(tmp_path, functools.partial(short_run, images), kills=20)


def test_sigkill_of_a_video_run_changes_nothing(tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "videos")
    killed_at_random(tmp_path, functools.partial(short_video_run, videos), kills=3)


def test_sigkill_of_a_generators_run_changes_nothing(tmp_path: Path) -> None:
    latents = write_latents(tmp_path / "data")
    killed_at_random(tmp_path, functools.partial(short_generator_run, latents), kills=5)


@pytest.mark.slow
def test_sigkill_at_many_random_moments_changes_nothing(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    killed_at_random(tmp_path, functools.partial(short_run, images), kills=50)
