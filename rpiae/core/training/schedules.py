"""Learning-rate and weight schedules as pure functions of progress through a stage."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    base: float,
    final: float,
    warmup_steps: int,
    decay_steps: int,
    shape: Literal["cosine", "linear", "constant"] = "cosine",
    warmup_from_zero: bool = True,
) -> float:
    """Learning rate of the optimiser step with index ``step``.

    Linear warm-up over ``warmup_steps`` ((step + 1) / warmup_steps of ``base``), then cosine or
    linear decay to ``final`` at ``decay_steps``, constant from there. A ``base`` of 0 stays 0.

    Source: arXiv 2603.19206, training details.
    """
    if not base:
        return 0.0
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps if warmup_from_zero else base
    if shape == "constant":
        return base
    if step >= decay_steps:
        return final
    progress = (step - warmup_steps) / (decay_steps - warmup_steps)
    remaining = 1 - progress if shape == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final + (base - final) * remaining


def term_weight(step: int, *, weight: float, start: int, ramp: int) -> float:
    """Weight of a loss term at ``step``: 0 before ``start``, then up to ``weight`` over ``ramp``."""
    if step < start:
        return 0.0
    if ramp == 0:
        return weight
    return weight * min(1.0, (step - start + 1) / ramp)


def ema_decay(step: int, *, decay: float) -> float:
    """EMA decay after ``step`` updates: min(decay, (1 + step) / (10 + step)).

    Without the warm-up a short stage would ship its initialisation.
    """
    return min(decay, (1 + step) / (10 + step))


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps, or never for 0, is due after a step."""
    return every > 0 and step % every == 0
