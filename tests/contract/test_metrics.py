"""The kit's check of metrics, on the built-in ones and on broken ones."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from attrs import frozen

from rpiae.core.config.parts import MetricConfig
from rpiae.core.model.resolve import part_config
from rpiae.core.registry.registry import registry
from rpiae.evaluation.accumulators import Mean
from rpiae.evaluation.examination import Examination, Measured
from rpiae.evaluation.seen import Seen
from rpiae.testing import check_metric

#: Metrics that load weights which nobody ships; tests/unit has them.
DOWNLOADING = {"inception-score", "lpips", "rfid"}
BUILT_IN = [
    entry.name
    for entry in registry("metrics").entries()
    if entry.distribution == "rpiae" and entry.name not in DOWNLOADING
]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in(name: str) -> None:
    config = part_config("metrics", name)
    assert isinstance(config, MetricConfig)
    check_metric(config)


class Brightness:
    """Mean of the images: a metric in order."""

    def __init__(self) -> None:
        self._mean = Mean()

    def update(self, seen: Examination) -> None:
        self._mean.add(seen.images.flatten(1).mean(1))

    def accumulators(self) -> list[Any]:
        return [self._mean]

    def compute(self) -> Measured:
        return Measured(values={"brightness": self._mean.value})


class LastBatch(Brightness):
    """Forgets all but the last batch."""

    def update(self, seen: Examination) -> None:
        self._mean = Mean()
        super().update(seen)


class Alone(Brightness):
    """Does not say what it gathers."""

    def accumulators(self) -> list[Any]:
        return []


class Untrained(Brightness):
    """Says that it learns, and does not."""


@frozen(kw_only=True)
class BrightnessConfig(MetricConfig):
    """Of one of the metrics above."""

    module: ClassVar[str] = "tests.contract.test_metrics:Brightness"


@frozen(kw_only=True)
class LastBatchConfig(BrightnessConfig):
    module: ClassVar[str] = "tests.contract.test_metrics:LastBatch"


@frozen(kw_only=True)
class AloneConfig(BrightnessConfig):
    module: ClassVar[str] = "tests.contract.test_metrics:Alone"


@frozen(kw_only=True)
class UntrainedConfig(BrightnessConfig):
    module: ClassVar[str] = "tests.contract.test_metrics:Untrained"
    needs: ClassVar[frozenset[str]] = frozenset({"training"})


@frozen(kw_only=True)
class GreedyConfig(BrightnessConfig):
    needs: ClassVar[frozenset[str]] = frozenset({"money"})


@frozen(kw_only=True)
class SampleBrightnessConfig(BrightnessConfig):
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})


@frozen(kw_only=True)
class UncomparedConfig(BrightnessConfig):
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "real"})


class Compared(Brightness):
    """Brightness of samples less that of real images, without saying what it gathers of these."""

    def __init__(self) -> None:
        super().__init__()
        self._real = Mean()

    def update_real(self, seen: Seen) -> None:
        self._real.add(seen.images.flatten(1).mean(1))

    def real_accumulators(self) -> list[Any]:
        return []

    def compute(self) -> Measured:
        return Measured(values={"difference": self._mean.value - self._real.value})


@frozen(kw_only=True)
class ForgetfulConfig(BrightnessConfig):
    module: ClassVar[str] = "tests.contract.test_metrics:Compared"
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "real"})


@frozen(kw_only=True)
class RealAloneConfig(ForgetfulConfig):
    needs: ClassVar[frozenset[str]] = frozenset({"real"})


@pytest.mark.parametrize("config", [BrightnessConfig(), SampleBrightnessConfig()])
def test_one_in_order(config: MetricConfig) -> None:
    check_metric(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LastBatchConfig(), "in batches"),
        (AloneConfig(), "in two processes"),
        (UntrainedConfig(), "update_training"),
        (UncomparedConfig(), "update_real"),
        (ForgetfulConfig(), "in two processes"),
        (RealAloneConfig(), 'needs "samples" too'),
        (GreedyConfig(), r"'money'\], which nobody offers"),
    ],
)
def test_broken_ones(config: MetricConfig, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_metric(config)
