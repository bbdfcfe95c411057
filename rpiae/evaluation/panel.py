"""Metrics that see the same images, of which one that fails costs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from rpiae.core.config.parts import MetricConfig
from rpiae.core.errors import FetchError, RunError, UsageError
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.accumulators import merge
from rpiae.evaluation.examination import ComparedMetric, Measured, Metric, TrainedMetric
from rpiae.evaluation.seen import Seen

T = TypeVar("T")


def metric_configs(metrics: Sequence[Any]) -> dict[str, MetricConfig]:
    """Metrics by what they were called.

    Args:
        metrics: names as in ``rpiae list metrics``, such as ``"psnr"`` or ``"rfd:tiny"``, or tables.

    Raises:
        UsageError: if one is unknown, malformed or named twice.
    """
    configs: dict[str, MetricConfig] = {}
    for each in metrics:
        config = part_config("metrics", each)
        assert isinstance(config, MetricConfig)
        name = each if isinstance(each, str) else json.dumps(each, sort_keys=True)
        if name in configs:
            raise UsageError(f"metric {name!r} is named twice")
        configs[name] = config
    return configs


def built(configs: Mapping[str, MetricConfig]) -> Iterator[tuple[str, Metric]]:
    """The metrics of configs."""
    for name, config in configs.items():
        module = config.build()
        assert isinstance(module, Metric)
        yield name, module


def needing(what: str, configs: Mapping[str, MetricConfig]) -> list[str]:
    """The metrics that need something, such as ``training``."""
    return [name for name, config in configs.items() if what in config.needed]


def check_subject(configs: Mapping[str, MetricConfig], *, generated: bool) -> None:
    """Refuse metrics of tokenizers for generated images, and those of generated images for tokenizers.

    Args:
        configs: the metrics.
        generated: what is measured.

    Raises:
        UsageError: with those that do not fit.
    """
    of_samples = needing("samples", configs)
    if generated and (others := [name for name in configs if name not in of_samples]):
        raise UsageError(
            f"{', '.join(others)} cannot be measured of generated images, only of a tokenizer: name "
            "metrics such as gfd:SPACE, precision, recall or class-accuracy (rpiae list metrics)"
        )
    if not generated and of_samples:
        raise UsageError(
            f"{', '.join(of_samples)} cannot be measured of a tokenizer, only of generated images: "
            "name a generator's run, a samples.npz or a folder of samples (rpiae eval)"
        )


def fetch_weights(metrics: Sequence[Any]) -> None:
    """Have all that metrics load at hand before anything is measured.

    Raises:
        UsageError: if a metric is unknown.
        FetchError: with all that cannot be had.
        CheckpointError: if it is one named file that is not there.
    """
    problems: dict[str, RunError] = {}
    for config in metric_configs(metrics).values():
        try:
            config.fetch()
        except RunError as error:
            problems.setdefault(str(error), error)
    if len(problems) == 1:
        raise next(iter(problems.values()))
    if problems:
        raise FetchError(f"metrics lack {len(problems)} files: {' · '.join(problems)}")


class Panel:
    """Metrics side by side, over all processes.

    A metric that raises a UsageError cannot be measured on these images: it is left out from there
    on, in every process.

    Clips are shown to the metrics of clips as they are, and to all others frame by frame.

    Args:
        modules: the metrics by name, in one order in all processes.
        runtime: the processes.
        of_clips: the names of those that need clips.

    Attributes:
        modules: as given.
    """

    def __init__(
        self, modules: Mapping[str, Metric], runtime: Runtime, *, of_clips: Collection[str] = ()
    ) -> None:
        self.modules = modules
        self._of_clips = frozenset(of_clips)
        self._runtime = runtime
        self._failed: dict[str, str] = {}

    def update_training(self, seen: Seen) -> None:
        """Have those that learn take in some of the training images."""
        for name, metric in self._trained().items():
            self._attempt(name, partial(metric.update_training, self._shown(name, seen)))

    @property
    def learns(self) -> tuple[str, ...]:
        """The metrics that go over training images where there are any."""
        return tuple(self._trained())

    def merge_training(self) -> None:
        """Merge what was learned over processes; all of them call this."""
        self._agree()
        for metric in self._trained().values():
            merge(metric.training_accumulators(), self._runtime)

    def update_real(self, seen: Seen) -> None:
        """Have those that compare take in some of the real images."""
        for name, metric in self._compared().items():
            self._attempt(name, partial(metric.update_real, seen))

    def merge_real(self) -> None:
        """Merge what was gathered of real images over processes; all of them call this."""
        self._agree()
        for metric in self._compared().values():
            merge(metric.real_accumulators(), self._runtime)

    def update(self, seen: Seen) -> None:
        """Have all take in some images."""
        for name, metric in self._working().items():
            self._attempt(name, partial(metric.update, self._shown(name, seen)))

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

    def _shown(self, name: str, seen: Seen) -> Any:
        return seen if name in self._of_clips else seen.frames

    def _working(self) -> dict[str, Metric]:
        return {k: metric for k, metric in self.modules.items() if k not in self._failed}

    def _trained(self) -> dict[str, TrainedMetric]:
        working = self._working().items()
        return {k: metric for k, metric in working if isinstance(metric, TrainedMetric)}

    def _compared(self) -> dict[str, ComparedMetric]:
        working = self._working().items()
        return {k: metric for k, metric in working if isinstance(metric, ComparedMetric)}

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


def numbers(found: Mapping[str, Measured]) -> dict[str, float]:
    """The numbers of metrics by name.

    Two metrics can give a number of one name, such as one space from two files: the second is told by
    its metric.
    """
    values: dict[str, float] = {}
    for metric, each in found.items():
        for name, value in each.values.items():
            values[name if name not in values else f"{name} ({metric})"] = value
    return values
