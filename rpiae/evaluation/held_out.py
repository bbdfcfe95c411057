"""What a run measures on its held-out images while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rpiae.core.config.parts import MetricConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import HeldOut, Replica
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.engine import Examiner, measure
from rpiae.evaluation.images import held_out_pictures
from rpiae.evaluation.panel import Panel, built, check_subject, metric_configs, needing, numbers
from rpiae.evaluation.walk import Walk
from rpiae.latents.encoding import batch_size_for

#: What is measured where nothing else is said.
METRICS = ("psnr", "ssim", "drift", "latents")


def held_out_metrics(metrics: Sequence[Any]) -> dict[str, MetricConfig]:
    """Metrics that can be measured while a run trains, by what they were called.

    Args:
        metrics: as in ``rpiae eval --metrics``.

    Raises:
        UsageError: if one is unknown, malformed, named twice, or learns from images or labels.
    """
    configs = metric_configs(metrics)
    check_subject(configs, generated=False)
    for what, lacking in (("training", "images to learn from"), ("labels", "labels")):
        for name in needing(what, configs):
            raise UsageError(
                f"metric {name!r} needs {lacking}, and a run measures on held-out images alone: "
                "leave it out of the recipe's metrics, and measure the finished run with rpiae eval"
            )
    return configs


class HeldOutEvaluation:
    """Measures a model on held-out images or clips, as its weights stand and on the path of a stage.

    Tiles of one photograph are put together first. A metric that has nothing to measure on a path, or
    on images of this size, is left out, and so are metrics of clips where these are images.

    Args:
        held_out: the images or clips.
        metrics: names as in ``rpiae list metrics``, or tables.
        replica: the pivot.
        runtime: device, precision and processes.

    Attributes:
        warnings: what is to be said of the latest numbers.

    Raises:
        UsageError: see ``held_out_metrics``.
    """

    def __init__(
        self, held_out: HeldOut, metrics: Sequence[Any], replica: Replica, runtime: Runtime
    ) -> None:
        self._images = held_out_pictures(held_out)
        self._configs = held_out_metrics(metrics)
        self._of_clips = needing("clips", self._configs)
        self._told: tuple[str, ...] = ()
        if self._of_clips and not self._images.frames:
            self._told = tuple(
                f"{name} is left out: it is of clips, and {self._images.location} are none"
                for name in self._of_clips
            )
            self._configs = {
                name: each for name, each in self._configs.items() if name not in self._of_clips
            }
        self._replica = replica
        self._runtime = runtime
        self.warnings: tuple[str, ...] = ()

    def __call__(self, model: RPiAE, *, use_bridge: bool = True) -> dict[str, float]:
        """The numbers by name, the same in every process; all of them call this.

        A number is not finite where the model's output is not.

        Args:
            model: in eval mode, with the weights that are to be measured.
            use_bridge: whether the bridge is in the path.
        """
        without = () if use_bridge else needing("latent", self._configs)
        configs = {name: each for name, each in self._configs.items() if name not in without}
        panel = Panel(dict(built(configs)), self._runtime, of_clips=self._of_clips)
        examiner = Examiner(
            model=model, runtime=self._runtime, replica=self._replica, use_bridge=use_bridge
        )
        size = batch_size_for(model, self._images.image_size, max(1, self._images.frames))
        walk = Walk(self._images, batch_size=size, runtime=self._runtime, recognised=False)
        measure(panel, examiner, walk)
        measured = panel.compute()
        told = [
            *self._told,
            *panel.failures(),
            *(text for each in measured.values() for text in each.warnings),
        ]
        self.warnings = tuple(told)
        return numbers(measured)
