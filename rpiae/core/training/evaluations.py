"""The evaluations of a stage at work, and the best weights that they find."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from attrs import define, field

from rpiae.core.config.recipe import StageConfig
from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.ema import Ema
from rpiae.core.training.task import Task


@define(kw_only=True)
class Evaluations:
    """Measures a stage's averaged weights and keeps the best ones.

    Args:
        task: what is trained.
        runtime: where.
        config: the stage.
        ema: its average.
        folder: where the best weights go.

    Attributes:
        best: the best score so far; more is better.
        metrics: the last ones.
        at: step that they are of; −1 where there are none.
    """

    task: Task
    runtime: Runtime
    config: StageConfig
    ema: Ema
    folder: Path
    best: float = field(default=-math.inf, init=False)
    metrics: Mapping[str, float] = field(factory=dict, init=False)
    at: int = field(default=-1, init=False)

    def measure(self, step: int) -> tuple[bool, str]:
        """Measure the weights of a step: whether they are the best so far, and what kept them from
        being saved then."""
        self.at = step
        self.task.module.eval()
        with self.ema.swapped_in(), torch.no_grad():
            self.metrics = self.task.evaluate(self.config, self.runtime)
            score = self._score()
            if score is None or score <= self.best:
                return False, ""
            self.best = score
            return True, self.runtime.on_main(self._save)

    def _score(self) -> float | None:
        """How good the weights are, more is better; None where they were not measured for it."""
        criterion = self.task.criterion(self.config)
        value = self.metrics.get(criterion.removeprefix("-"))
        if value is None or math.isnan(value):
            return None
        return -value if criterion.startswith("-") else value

    def _save(self) -> str:
        """Save the best weights; what kept them from being saved."""
        try:
            self.task.save(self.folder)
        except CheckpointError as error:
            return f"the best weights so far are not saved: {error}"
        return ""
