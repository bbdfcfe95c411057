"""Draws of a flow's times, and the noised latents that a generator learns from."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.config.generation import FlowConfig
from rpiae.core.model.generation import FlowContext
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.core.runtime.draws import SampleDraws, StepRandomness

#: Greatest t before its shift, as in the released code.
LATEST = 0.999


def drawn_times(
    flow: FlowConfig, draws: SampleDraws, device: torch.device | str
) -> Float[Tensor, " b"]:
    """t of every sample before its shift, in [0, 0.999]; the same numbers on every device.

    Source: the released code draws it uniformly in [0, 0.999], or as the sigmoid of a normal number.
    """
    drawn = draws.uniform("time", "cpu").double()
    if flow.times == "logit-normal":
        normal = torch.special.ndtri(drawn)
        return torch.sigmoid(flow.mean + flow.std * normal).clamp(max=LATEST).float().to(device)
    return (LATEST * drawn).float().to(device)


def without_some_labels(
    labels: Int[Tensor, " b"], num_classes: int, dropout: float, draws: SampleDraws
) -> Int[Tensor, " b"]:
    """Labels of which a share is replaced by ``num_classes``, which stands for no class."""
    if not dropout or not num_classes:
        return labels
    dropped = draws.uniform("label", labels.device) < dropout
    return torch.where(dropped, num_classes, labels)


def flow_step(
    model: LatentGenerator,
    latents: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    draws: StepRandomness,
) -> FlowContext:
    """One pass of a generator over latents, noised to times that are drawn.

    Args:
        model: the generator.
        latents: x₁, normalised.
        labels: as the model is to see them.
        draws: of these samples.
    """
    noise = draws.normal_like(latents, "noise")
    time = model.shifted(drawn_times(model.flow, draws, latents.device))
    return flow_at(model, latents, labels, noise=noise, time=time, draws=draws)


def flow_at(
    model: LatentGenerator,
    latents: Float[Tensor, "b c h w"],
    labels: Int[Tensor, " b"],
    *,
    noise: Float[Tensor, "b c h w"],
    time: Float[Tensor, " b"],
    draws: StepRandomness,
) -> FlowContext:
    """One pass over latents with this noise, at these times, which are shifted already."""
    t = time.view(-1, *(1,) * (latents.ndim - 1))
    noised = (1 - t) * latents + t * noise
    velocity = noise - latents
    if model.flow.prediction == "x":
        # Near the data, where the divisor is held, the loss stays that of the data.
        velocity = (noised - latents) / model.divisor(time, latents.ndim)
    return FlowContext(
        latents=latents, noise=noise, time=time, noised=noised, labels=labels,
        predicted=model.velocity(noised, time, labels), velocity=velocity, draws=draws,
    )  # fmt: skip
