"""What a generator must offer, and what the terms that train one are shown. Types only.

Time runs from data to noise: t = 0 is data, t = 1 is noise, x_t = (1 − t)·x₁ + t·ε, and a velocity is
ε − x₁.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.runtime.draws import StepRandomness


@runtime_checkable
class Generator(Protocol):
    """A model of latents.

    Attributes:
        latent_channels: channels C of the latents.
        num_classes: classes it can be asked for; as a label, this number stands for none of them. 0 for
            a generator that takes no classes, whose labels are all 0.
        patch: (ph, pw); the sides of latents must be multiples of it.

    Every trainable parameter must receive a gradient from the prediction.
    """

    latent_channels: int
    num_classes: int
    patch: tuple[int, int]

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """What is predicted of noised latents: velocity or data, as it is trained to.

        Args:
            latents: x_t.
            time: t in [0, 1], as shifted, of each.
            labels: class of each, 0 to ``num_classes``.
        """

    def __call__(
        self,
        latents: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]: ...


class FlowContext(NamedTuple):
    """What a forward pass of a generator produced; what its loss terms may look at.

    Attributes:
        latents: x₁, as normalised, (b, C, h, w).
        noise: ε.
        time: t of each, (b,), shifted.
        noised: x_t.
        labels: as the model saw them, some taken away, (b,).
        predicted: the velocity that follows from the prediction.
        velocity: the true one, that ``predicted`` is compared with.
        draws: the step's random draws.
    """

    latents: Tensor
    noise: Tensor
    time: Tensor
    noised: Tensor
    labels: Tensor
    predicted: Tensor
    velocity: Tensor
    draws: StepRandomness
