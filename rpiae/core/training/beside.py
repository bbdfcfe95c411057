"""Where a stage keeps what is beside the run's result: its best weights, and further averages."""

from __future__ import annotations

from pathlib import Path

from rpiae.core.runtime.files import plain_name


def best_folder(run: Path, stage: str) -> Path:
    """Where the best evaluated weights of a stage are, in a run's folder."""
    return run / "best" / plain_name(stage)


def averages_folder(run: Path, stage: str, decay: str) -> Path:
    """Where the further average of a stage with this decay is, in a run's folder."""
    return run / "averages" / plain_name(stage) / decay
