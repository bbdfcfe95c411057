"""Weighted loss terms, adaptive weights and the pivot's frozen replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from attrs import frozen
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.contracts import BlockFeatures, Encoder, Features, StepContext, Term
from rpiae.core.errors import UsageError
from rpiae.core.recipe import AdaptiveConfig, StageLength, TermConfig
from rpiae.core.schedules import term_weight


@frozen(kw_only=True)
class Outcome:
    """Result of an objective.

    Attributes:
        total: the weighted sum; its gradient trains.
        terms: raw value of every active term by label.
        weights: the weight it had.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]


class Objective:
    """The loss terms of one stage.

    Args:
        terms: their configs.
        length: the stage's lengths, for starts and ramps.
        layers: role → the weight that adaptive ratios refer to.
        reduce: averages a gradient over processes before its norm is taken.

    Raises:
        UsageError: if an adaptive weight refers to a layer that the stage does not train.
    """

    def __init__(
        self,
        terms: Sequence[TermConfig],
        *,
        length: StageLength,
        layers: Mapping[str, nn.Parameter],
        reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> None:
        self._length = length
        self._layers = layers
        self._reduce = reduce
        self._terms: list[tuple[str, TermConfig, Term]] = []
        for config in terms:
            taken = [label for label, _, _ in self._terms]
            label, number = config.loss.label, 2
            while label in taken:
                label, number = f"{config.loss.label}-{number}", number + 1
            if config.adaptive and not layers[config.adaptive.layer].requires_grad:
                raise UsageError(
                    f"the adaptive weight of {label!r} refers to the {config.adaptive.layer}'s last "
                    "layer, which this stage does not train: remove `adaptive` from the term, or "
                    f"train the {config.adaptive.layer}"
                )
            self._terms.append((label, config, config.loss.build()))

    def __call__(self, context: StepContext, step: int) -> Outcome:
        """All active terms of a step, in fp32."""
        active = [
            (label, config, term(context).float(), self._scheduled(config, step))
            for label, config, term in self._terms
            if step >= self._length.start(config)
        ]
        references = [value * weight for _, config, value, weight in active if config.reference]
        reference = torch.stack(references).sum() if references else None
        weights = {}
        for label, config, value, weight in active:
            weights[label] = torch.as_tensor(weight, device=value.device)
            adaptive = config.adaptive
            if adaptive and reference is not None and step >= self._warmup(adaptive):
                ratio = adaptive_ratio(
                    reference, value, self._layers[adaptive.layer],
                    eps=adaptive.eps, maximum=adaptive.maximum, reduce=self._reduce,
                )  # fmt: skip
                weights[label] = weight * ratio
        # A stage may open with no active term (all of them start later): its total is then zero.
        total = context.images.new_zeros(())
        for label, _, value, _ in active:
            total = total + weights[label] * value
        return Outcome(
            total=total,
            terms={label: value.detach() for label, _, value, _ in active},
            weights=weights,
        )

    def _scheduled(self, config: TermConfig, step: int) -> float:
        ramp = round(config.ramp_steps * self._length.scale)
        start = self._length.start(config)
        return term_weight(step, weight=config.weight, start=start, ramp=ramp)

    def _warmup(self, adaptive: AdaptiveConfig) -> int:
        return round(adaptive.warmup_steps * self._length.scale)


def adaptive_ratio(
    reference: Float[Tensor, ""],
    loss: Float[Tensor, ""],
    layer: nn.Parameter,
    *,
    eps: float,
    maximum: float,
    reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> Float[Tensor, ""]:
    """clamp(‖∇ reference‖ / (‖∇ loss‖ + eps), 0, maximum) at ``layer``, detached.

    Zero where ``layer`` does not take part in one of the two.

    Source: λ_piv and the GAN weight of arXiv 2603.19206.
    """
    norms = []
    for value in (reference, loss):
        (gradient,) = torch.autograd.grad(value, layer, retain_graph=True, allow_unused=True)
        if gradient is None:
            return reference.new_zeros(())
        norms.append(reduce(gradient.float()).norm())
    ratio: Tensor = (norms[0] / (norms[1] + eps)).clamp(0, maximum).detach()
    return ratio


class PivotReplica:
    """The frozen copy of the pivot (PRE): no gradients of its own, always in eval mode.

    Args:
        encoder: an encoder of the same architecture that holds the pivot's weights.
        patch: the tokenizer's output patch, for the geometry.
    """

    def __init__(self, encoder: nn.Module, *, output_patch: int) -> None:
        assert isinstance(encoder, Encoder)
        encoder.requires_grad_(False).eval()
        self._encoder: Encoder = encoder
        self._scale = encoder.patch / output_patch
        device = next(encoder.parameters()).device
        self._mean = torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(encoder.std, device=device).view(1, 3, 1, 1)

    @property
    def num_blocks(self) -> int:
        """Blocks that ``blocks`` can be asked for."""
        return self._encoder.num_blocks

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """Tokens of images in [0, 1] whose sides are multiples of the output patch."""
        return self._encoder(self._prepared(images))

    def blocks(self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]) -> BlockFeatures:
        """Block outputs for images in [0, 1]."""
        return self._encoder.blocks(self._prepared(images), indices)

    def _prepared(self, images: Tensor) -> Tensor:
        size = [round(side * self._scale) for side in images.shape[-2:]]
        if list(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
        return (images - self._mean) / self._std
