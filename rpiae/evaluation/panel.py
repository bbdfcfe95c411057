"""Metrics that see the same images, of which one that fails costs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from rpiae.core.errors import UsageError
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.examination import Examination, Measured, Metric, TrainedMetric
from rpiae.evaluation.images import merge

T = TypeVar("T")


class Panel:
    """Metrics side by side, over all processes.

    A metric that raises a UsageError cannot be measured on these images: it is left out from there
    on, in every process.

    Args:
        modules: the metrics by name, in one order in all processes.
        runtime: the processes.

    Attributes:
        modules: as given.
    """

    def __init__(self, modules: Mapping[str, Metric], runtime: Runtime) -> None:
        self.modules = modules
        self._runtime = runtime
        self._failed: dict[str, str] = {}

    def update_training(self, seen: Examination) -> None:
        """Have those that learn take in some of the training images."""
        for name, metric in self._trained().items():
            self._attempt(name, partial(metric.update_training, seen))

    def merge_training(self) -> None:
        """Merge what was learned over processes; all of them call this."""
        self._agree()
        for metric in self._trained().values():
            merge(metric.training_accumulators(), self._runtime)

    def update(self, seen: Examination) -> None:
        """Have all take in some images."""
        for name, metric in self._working().items():
            self._attempt(name, partial(metric.update, seen))

    def merge(self) -> None:
        """Merge what was gathered over processes; all of them call this."""
        self._agree()
        for metric in self._working().values():
            merge(metric.accumulators(), self._runtime)

    def compute(self) -> dict[str, Measured]:
        """What was found, by metric."""
        found = {
            name: self._attempt(name, metric.compute) for name, metric in self._working().items()
        }
        return {name: each for name, each in found.items() if each is not None}

    def leave_out(self, name: str, reason: str) -> None:
        """Have a metric count as not measured."""
        self._failed[name] = reason

    def failures(self) -> list[str]:
        """What could not be measured, and why."""
        return [f"{name} was not measured: {reason}" for name, reason in self._failed.items()]

    def _working(self) -> dict[str, Metric]:
        return {k: metric for k, metric in self.modules.items() if k not in self._failed}

    def _trained(self) -> dict[str, TrainedMetric]:
        working = self._working().items()
        return {k: metric for k, metric in working if isinstance(metric, TrainedMetric)}

    def _attempt(self, name: str, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except UsageError as error:
            self.leave_out(name, str(error))
            return None

    def _agree(self) -> None:
        """Have every process leave out what failed in any of them."""
        for failed in self._runtime.gather(self._failed):
            self._failed = failed | self._failed
