"""The loss of a generator on what it was not trained on, with draws that are always the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rpiae.core.model.latent_generator import LatentGenerator, labels_or_none
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.runtime.processes import Runtime
from rpiae.losses.flow import FlowLoss
from rpiae.runs.generating.learning_from import TOGETHER, LearnedFrom
from rpiae.tasks.generator.flow import flow_step
from rpiae.tasks.generator.task import HELD_OUT_LOSS, Evaluate


def held_out_loss(found: LearnedFrom, runtime: Runtime, seed: int) -> Evaluate:
    """What measures a generator: the loss of its velocity on held-out latents, with their labels.

    Gives nothing where nothing is held out.
    """
    latents, labels = _held_out(found, runtime)

    def measure(model: LatentGenerator) -> Mapping[str, float]:
        if latents is None:
            return {}
        total = 0.0
        for start in range(0, len(latents), TOGETHER):
            rows = slice(start, start + TOGETHER)
            part = latents[rows].to(runtime.device)
            samples = range(len(latents))[rows]
            draws = StepRandomness(seed, "held-out", 0, samples)
            seen = labels_or_none(
                None if labels is None else labels[rows], len(part), model.num_classes
            )
            with runtime.autocast():
                context = flow_step(model, model.normalised(part), seen.to(part.device), draws)
            total += float(FlowLoss()(context)) * len(part)
        return {HELD_OUT_LOSS: total / len(latents)}

    return measure


@torch.no_grad()
def _held_out(found: LearnedFrom, runtime: Runtime) -> tuple[Tensor | None, Tensor | None]:
    """Latents that are not trained on, and their labels where they are known."""
    if found.stored is not None:
        chosen = found.stored.held_out
        if not chosen:
            return None, None
        return torch.stack([found.stored.stored(i) for i in chosen]), found.stored.labels[chosen]
    assert found.tokenizer is not None
    tokenizer = found.tokenizer.to(runtime.device)
    images: Tensor = found.source.held_out().images  # type: ignore[attr-defined]  # a dataset of images
    parts = [
        tokenizer.encode(part.to(runtime.device)).mode().cpu() for part in torch.split(images, 64)
    ]
    return torch.cat(parts), None
