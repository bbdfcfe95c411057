"""A run that is killed at any moment ends as the unbroken one, to the bit."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.short_run import FORKS, digests, quietly, short_run, train_to_the_end, write_images


def started(tree: dict[str, Any]) -> Any:
    log = Path(f"{tree['out']}.log")
    process = FORKS.Process(target=quietly, args=(log, train_to_the_end, tree))
    process.start()
    return process


def killed_at_random(folder: Path, *, kills: int) -> None:
    images = write_images(folder / "images")
    warm = FORKS.Process(target=int)
    warm.start()
    warm.join()
    began = time.perf_counter()
    whole = started(short_run(images, folder / "whole"))
    whole.join()
    assert whole.exitcode == 0, (folder / "whole.log").read_text()
    length = time.perf_counter() - began
    expected = digests(folder / "whole")
    assert set(expected) == {"tune", "compress", "polish"}

    draws = random.Random(0)
    number = done = 0
    while done < kills:
        out = folder / f"broken{number}"
        while not (out / "digests.json").exists():
            process = started(short_run(images, out))
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
    killed_at_random(tmp_path, kills=20)


@pytest.mark.slow
def test_sigkill_at_many_random_moments_changes_nothing(tmp_path: Path) -> None:
    killed_at_random(tmp_path, kills=50)
