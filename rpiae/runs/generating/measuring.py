"""The loss of a generator on what it was not trained on, with draws that are always the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rpiae.core.model.contracts import HeldOut
from rpiae.core.model.latent_generator import LatentGenerator, labels_or_none
from rpiae.core.runtime.draws import StepRandomness, generator
from rpiae.core.runtime.processes import Runtime
from rpiae.losses.flow import FlowLoss
from rpiae.runs.generating.learning_from import LearnedFrom
from rpiae.runs.generating.normalising import TOGETHER
from rpiae.tasks.generator.flow import flow_step
from rpiae.tasks.generator.recipes import HELD_OUT_LOSS
from rpiae.tasks.generator.task import Evaluate


def held_out_loss(found: LearnedFrom, runtime: Runtime, seed: int) -> Evaluate:
    """What measures a generator: the loss of its velocity on held-out latents, with their labels.

    Gives nothing where nothing is held out.
    """
    latents, labels = _held_out(found, runtime, seed)

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
def _held_out(
    found: LearnedFrom, runtime: Runtime, seed: int
) -> tuple[Tensor | None, Tensor | None]:
    """Latents that are not trained on, and their labels where they are known."""
    if found.stored is not None:
        chosen = found.stored.held_out
        if not chosen:
            return None, None
        drawn = [
            found.stored.drawn(i, flipped=False, draws=generator(seed, "held-out", i))
            for i in chosen
        ]
        return torch.stack(drawn), found.stored.labels[chosen]
    assert found.tokenizer is not None
    tokenizer = found.tokenizer.to(runtime.device)
    held_out: HeldOut = found.source.held_out()  # type: ignore[attr-defined]  # a dataset of images
    parts = torch.split(held_out.images, 64)
    latents = [tokenizer.encode(part.to(runtime.device)).mode().cpu() for part in parts]
    return torch.cat(latents), _labels(found, held_out.groups)


def _labels(found: LearnedFrom, names: Sequence[str]) -> Tensor | None:
    """Labels of held-out images by their names; None where there are none."""
    if found.listed is None or not found.facts.num_classes:
        return None
    numbers = {found.listed.name(i): i for i in range(len(found.listed))}
    return torch.tensor([found.listed.label(numbers[name]) for name in names])
