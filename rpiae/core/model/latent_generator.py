"""A generator with all that it takes to sample from it: what it predicts, of which latents, and of whose."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import torch
from attrs import frozen
from jaxtyping import Float, Int
from torch import Tensor, nn

from rpiae.core.config.fields import refused
from rpiae.core.config.generation import FlowConfig, GeneratorConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.generation import Generator
from rpiae.core.model.geometry import at_least_fp32


@frozen(kw_only=True)
class LatentFacts:
    """What a generator was trained on.

    Attributes:
        shape: (C, h, w) of the latents.
        tokenizer: folder of the tokenizer that made them, as it was named.
        tokenizer_sha256: its fingerprint, see ``rpiae.latents.encoding.tokenizer_digest``.
        num_classes: classes; 0 where there were no labels.
        label_names: name of every class, by its number; empty where unknown.
    """

    shape: tuple[int, int, int]
    tokenizer: str
    tokenizer_sha256: str
    num_classes: int = 0
    label_names: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.label_names and len(self.label_names) != self.num_classes:
            raise refused(
                "label_names",
                f"there are {self.num_classes} classes and {len(self.label_names)} names for them",
            )


class LatentGenerator(nn.Module):
    """A generator of latents (b, C, h, w), and of images through its tokenizer.

    Composition only. ``t = 0`` is data and ``t = 1`` noise, everywhere; inside, latents are as
    ``normalised`` gives them.

    Args:
        generator: the model.
        flow: what it learns.
        facts: what it learns it from.
        mean, std: of the latents, (C, 1, 1) or (C, h, w), where they are normalised.
        config: of the model, by which it is saved; None where it was put together by hand.

    Attributes:
        shift: s of the shift of time.
    """

    latent_mean: Tensor | None
    latent_std: Tensor | None

    def __init__(
        self,
        *,
        generator: nn.Module,
        flow: FlowConfig,
        facts: LatentFacts,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        config: GeneratorConfig | None = None,
    ) -> None:
        super().__init__()
        assert isinstance(generator, Generator)
        if generator.latent_channels != facts.shape[0]:
            raise UsageError(
                f"the generator is of {generator.latent_channels} channels, the latents have "
                f"{facts.shape[0]}"
            )
        self.generator: Generator = generator
        self.flow = flow
        self.facts = facts
        self.config = config
        self.shift = flow.shift_of(math.prod(facts.shape))
        self.register_buffer("latent_mean", mean)
        self.register_buffer("latent_std", std)

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        """What its stages can train."""
        assert isinstance(self.generator, nn.Module)
        return {"generator": self.generator}

    @property
    def num_classes(self) -> int:
        """Classes it can be asked for; the number itself stands for none of them."""
        return self.generator.num_classes

    def velocity(
        self,
        latents: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """ε − x₁ as the model has it, in fp32 at least.

        A model of half precision is computed under autocast: what adds up in it stays in fp32.

        Args:
            latents: x_t, normalised.
            time: t in [0, 1], shifted.
            labels: 0 to ``num_classes``, which stands for no class.
        """
        weight = next(self.roles["generator"].parameters(), latents)
        half = weight.dtype in (torch.bfloat16, torch.float16)
        given = latents if half else latents.to(weight.dtype)
        with (
            torch.autocast(latents.device.type, weight.dtype) if half else contextlib.nullcontext()
        ):
            predicted = at_least_fp32(self.generator(given, time, labels))
        if self.flow.prediction == "v":
            return predicted
        return (at_least_fp32(latents) - predicted) / self.divisor(time, latents.ndim)

    def divisor(self, time: Float[Tensor, " b"], ndim: int) -> Float[Tensor, "b ..."]:
        """What a difference from the data is divided by to be a velocity, with ``ndim`` dimensions."""
        return time.clamp_min(self.flow.least_time).view(-1, *(1,) * (ndim - 1))

    def shifted(self, time: Tensor) -> Tensor:
        """t ← s·t/(1 + (s − 1)·t); 0 and 1 stay what they are."""
        return self.shift * time / (1 + (self.shift - 1) * time)

    def normalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents as the model sees them, in fp32 at least.

        Raises:
            UsageError: if they are of another size than statistics by position.
        """
        if self.latent_mean is None or self.latent_std is None:
            return at_least_fp32(latents)
        self._check_size(latents)
        return (at_least_fp32(latents) - self.latent_mean) / self.latent_std

    def denormalised(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Latents as the tokenizer decodes them: inverse of ``normalised``."""
        if self.latent_mean is None or self.latent_std is None:
            return latents
        self._check_size(latents)
        return latents * self.latent_std + self.latent_mean

    def _check_size(self, latents: Tensor) -> None:
        assert self.latent_mean is not None
        sides = tuple(self.latent_mean.shape[-2:])
        if sides not in ((1, 1), tuple(latents.shape[-2:])):
            raise UsageError(
                f"the generator's latents are normalised by position, {sides[0]}×{sides[1]}, so it has "
                f"none of {latents.shape[-2]}×{latents.shape[-1]}"
            )


def labels_or_none(labels: Tensor | None, count: int, num_classes: int) -> Int[Tensor, " b"]:
    """Labels as a generator takes them: missing ones (−1, or None for all) stand for no class.

    Args:
        labels: (b,), or None.
        count: b.
        num_classes: of the generator.
    """
    if labels is None or num_classes == 0:
        device = None if labels is None else labels.device
        return torch.full((count,), num_classes, device=device)
    return torch.where(labels < 0, num_classes, labels)
