"""Training a generator: the velocity from latents to noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rpiae.core.config.recipe import StageConfig
from rpiae.core.model.generator_folders import save_generator
from rpiae.core.model.latent_generator import LatentGenerator, labels_or_none
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.player import MicroBatch
from rpiae.core.training.task import Passed, Task
from rpiae.tasks.generator.flow import flow_step, without_some_labels
from rpiae.tasks.generator.recipes import HELD_OUT_LOSS

#: Held-out metrics of a generator as it stands.
Evaluate = Callable[[LatentGenerator], Mapping[str, float]]


class GeneratorTask(Task):
    """A generator in training.

    Batches hold latents, or images where there is a tokenizer to encode them.

    Args:
        model: starts as the run's initialisation.
        evaluate: held-out metrics; all processes call it and get the same.
        tokenizer: encodes images on the way, frozen; None where batches hold latents.
        flip: whether half of these images are mirrored.
    """

    def __init__(
        self,
        model: LatentGenerator,
        *,
        evaluate: Evaluate = lambda _: {},
        tokenizer: RPiAE | None = None,
        flip: bool = False,
    ) -> None:
        self.module = self.model = model
        self.measure = evaluate
        self.tokenizer = tokenizer
        self.flip = flip

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        """The model alone."""
        return self.model.roles

    def forward(self, stage: StageConfig, batch: MicroBatch, *, cut: bool) -> Passed:
        """Latents noised to some time; the velocity from there."""
        latents = self.model.normalised(self.encoded(batch))
        labels = labels_or_none(batch.labels, len(latents), self.model.num_classes)
        labels = without_some_labels(
            labels.to(latents.device), self.model.num_classes, self.model.flow.label_dropout,
            batch.draws,
        )  # fmt: skip
        return Passed(flow_step(self.model, latents, labels, batch.draws))

    def encoded(self, batch: MicroBatch) -> Tensor:
        """A batch's latents: its inputs, or these encoded to the posterior's mode, in fp32."""
        images = batch.inputs
        if self.tokenizer is None:
            return images
        if self.flip:
            mirrored = batch.draws.uniform("flip", images.device) < 0.5
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.tokenizer.encode(images).mode()

    def evaluate(self, stage: StageConfig, runtime: Runtime) -> Mapping[str, float]:
        """Held-out metrics."""
        return dict(self.measure(self.model))

    def criterion(self, stage: StageConfig) -> str:
        """The held-out loss, where nothing is said."""
        return stage.best or f"-{HELD_OUT_LOSS}"

    def save(self, folder: Path) -> None:
        """As a generator's folder."""
        save_generator(self.model, folder)
