"""Guidance: away from what a generator says without a class, or from a weaker generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.sampling.configs import SamplingConfig
from rpiae.sampling.samplers import Velocity

#: ε − x₁ of latents (b, C, h, w) at times (b,), on the CPU, for labels (b,).
LabelledVelocity: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


def check_guidable(config: SamplingConfig, labels: Sequence[int], model: LatentGenerator) -> None:
    """Refuse guidance away from samples without a class where none has one, or the model was never
    trained without.

    Raises:
        UsageError: if that is asked for.
    """
    if config.guidance == 1 or config.guide:
        return
    ways = "name a weaker generator as guide, or leave guidance at 1"
    if all(label == model.num_classes for label in labels):
        raise UsageError(
            f"guidance {config.guidance:g} is away from samples without a class, and these have none: "
            f"ask for classes, {ways}"
        )
    if not model.flow.label_dropout:
        raise UsageError(
            f"guidance {config.guidance:g} is away from samples without a class, and this generator was "
            f"trained with the class of every sample (label_dropout 0): {ways}"
        )


def guided(
    main: LabelledVelocity,
    labels: Int[Tensor, " b"],
    config: SamplingConfig,
    *,
    num_classes: int,
    guide: LabelledVelocity | None = None,
) -> Velocity:
    """The velocity that samples follow: v_weak + w·(v_main − v_weak) at times inside the interval, and
    v_main outside.

    All channels are guided. v_weak is the guide's with the same labels or, without a guide, the main
    one's without a class, which is computed in one batch with it.

    Args:
        main: the generator's.
        labels: class of each sample.
        config: w and the interval.
        num_classes: the label that stands for no class.
        guide: the weaker generator's.
    """

    def plain(latents: Tensor, time: Tensor) -> Tensor:
        return main(latents, time, labels)

    if config.guidance == 1:
        return plain
    no_class = torch.full_like(labels, num_classes)

    def both(latents: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        if guide is not None:
            return plain(latents, time), guide(latents, time, labels)
        together = main(
            torch.cat([latents, latents]), torch.cat([time, time]), torch.cat([labels, no_class])
        )
        with_class, without = together.chunk(2)
        return with_class, without

    low, high = config.interval

    def velocity(latents: Float[Tensor, "b c h w"], time: Float[Tensor, " b"]) -> Tensor:
        inside = (time >= low) & (time <= high)
        if not inside.any():
            return plain(latents, time)
        strong, weak = both(latents, time)
        found = weak + config.guidance * (strong - weak)
        if inside.all():
            return found
        return torch.where(inside.to(found.device).view(-1, 1, 1, 1), found, strong)

    return velocity
