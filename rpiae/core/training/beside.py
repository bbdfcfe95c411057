"""What a stage keeps beside the run's result: its best weights, and further averages."""

from __future__ import annotations

from pathlib import Path

import torch

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.files import plain_name
from rpiae.core.training.player import Player
from rpiae.core.training.task import Task


def best_folder(run: Path, stage: str) -> Path:
    """Where the best evaluated weights of a stage are, in a run's folder."""
    return run / "best" / plain_name(stage)


def averages_folder(run: Path, stage: str, decay: str) -> Path:
    """Where the further average of a stage with this decay is, in a run's folder."""
    return run / "averages" / plain_name(stage) / decay


def save_averages(task: Task, player: Player, run: Path, stage: str) -> list[str]:
    """Save a stage's further averages, each as the task would be with them; what kept some from that."""
    lost = []
    for decay, average in player.more.items():
        with average.swapped_in(), torch.no_grad():
            try:
                task.save(averages_folder(run, stage, decay))
            except CheckpointError as error:
                lost.append(f"the average of decay {decay} is not saved: {error}")
    return lost
