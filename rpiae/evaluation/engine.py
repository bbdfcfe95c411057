"""The engine behind every measurement: images through a tokenizer, past metrics, over all processes.

What is measured while a run trains, at its end, and by ``rpiae eval`` is measured here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from attrs import field, frozen

from rpiae.core.model.contracts import Replica
from rpiae.core.model.geometry import Rounding
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Precision, Runtime
from rpiae.evaluation.accumulators import Faults, merge
from rpiae.evaluation.examination import Examination
from rpiae.evaluation.images import Loaded
from rpiae.evaluation.panel import Panel
from rpiae.evaluation.walk import Progress, Walk


@frozen(kw_only=True)
class Examiner:
    """A tokenizer on one path, as its weights stand, and how it is run.

    Attributes:
        model: the tokenizer, in eval mode and on the runtime's device.
        runtime: device, precision and processes.
        replica: its pivot; None where it has none.
        use_bridge: whether the bridge is in the path.
        rounding: how decoded images are brought to 8 bits.
        faults: what was not finite so far.
        frame_rate: of clips, in frames per second; None where it is not known.
    """

    model: RPiAE
    runtime: Runtime
    replica: Replica | None = None
    use_bridge: bool = True
    rounding: Rounding = "nearest"
    faults: Faults = field(factory=Faults)
    frame_rate: float | None = None

    def __call__(self, loaded: Loaded) -> Examination:
        """Some images or clips, to be looked at by metrics."""
        return Examination(
            self.model, loaded.images, labels=loaded.labels,
            positions=torch.tensor(loaded.positions), replica=self.replica,
            use_bridge=self.use_bridge, pictures=loaded.pictures, autocast=self.runtime.autocast,
            rounding=self.rounding, faults=self.faults, frame_rate=self.frame_rate,
        )  # fmt: skip


def measure(
    panel: Panel,
    examiner: Examiner,
    images: Walk,
    *,
    training: Walk | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Have metrics see all images, each process its share; what they gathered is merged then.

    Every process calls this. Metrics add up on the device, in float64 where sums need it, so the
    numbers do not depend on batches or processes beyond rounding, and no batch waits for another's
    result.

    Args:
        panel: the metrics.
        examiner: the tokenizer; what was not finite is told by its ``faults``.
        images: what is measured on.
        training: images that metrics learn from, before these.
        progress: is told after every batch.

    Raises:
        DataError: if no training image can be used.
    """
    if training is not None:
        for loaded in training.batches("training", progress):
            panel.update_training(examiner(loaded))
        panel.merge_training()
        training.protocol()  # refuses images of which none can be used
    for loaded in images.batches("images", progress):
        panel.update(examiner(loaded))
    panel.merge()
    merge([examiner.faults], examiner.runtime)


def alone(runtime: Runtime, *, precision: Precision | None = None) -> Runtime:
    """A runtime of one process, for what the first one measures by itself.

    Args:
        runtime: of all processes.
        precision: to measure in; the runtime's own where not given.
    """
    single = copy.copy(runtime)
    single.rank, single.num_processes = 0, 1
    single.precision = precision or runtime.precision
    return single
