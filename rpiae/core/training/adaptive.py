"""Adaptive weights: a term weighted by a ratio of gradient norms at one layer.

The ratio ‖∇ reference‖ / (‖∇ term‖ + eps) is always that of the whole batch over all processes.
Three ways lead to it, all to the same numbers:

* ``adaptive_ratio``: both gradients before the backward pass. Works for any term, and costs another
  pass through all that lies between the reference terms and the layer.
* ``Junction``: both gradients out of the backward pass itself. They meet at the encoder's output,
  the decoder's coming one way and the term's another, and are weighed there.
* ``SeparateGradients``: where a batch is accumulated from parts, no part knows the ratio; the term's
  gradients are kept apart until the last one is in.

Source: λ_piv and the GAN weight of arXiv 2603.19206; VQGAN (arXiv 2012.09841).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.contracts import Decoder, Encoder

#: Averages a tensor over processes.
Reduce = Callable[[Tensor], Tensor]


def unreduced(tensor: Tensor) -> Tensor:
    """The average over the one process there is."""
    return tensor


def adaptive_layers(encoder: Encoder, decoder: Decoder) -> dict[str, nn.Parameter]:
    """What the ``layer`` of an ``AdaptiveConfig`` stands for."""
    assert isinstance(encoder, nn.Module)
    return {
        "encoder": encoder.last_weight,
        "encoder-last": list(encoder.parameters())[-1],
        "decoder": decoder.last_weight,
    }


def norm_ratio(reference: Tensor, term: Tensor, *, eps: float, maximum: float) -> Float[Tensor, ""]:
    """clamp(‖reference‖ / (‖term‖ + eps), 0, maximum) of two gradients, in fp32."""
    ratio: Tensor = reference.float().norm() / (term.float().norm() + eps)
    return ratio.clamp(0, maximum).detach()


def adaptive_ratio(
    reference: Float[Tensor, ""],
    loss: Float[Tensor, ""],
    layer: nn.Parameter,
    *,
    eps: float,
    maximum: float,
    reduce: Reduce = unreduced,
) -> Float[Tensor, ""]:
    """The ratio of two losses at ``layer``, before the backward pass.

    Zero where ``layer`` does not take part in one of the two.
    """
    gradients = []
    for value in (reference, loss):
        (gradient,) = torch.autograd.grad(value, layer, retain_graph=True, allow_unused=True)
        if gradient is None:
            return reference.new_zeros(())
        gradients.append(reduce(gradient.float()))
    return norm_ratio(gradients[0], gradients[1], eps=eps, maximum=maximum)


@define(kw_only=True)
class Junction:
    """Weighs a term against what comes through the decoder, where their gradients meet.

    Args:
        layer: the weight that the ratio refers to; its influence passes the junction alone.
        weight: the factor on the ratio.
        eps, maximum: see ``norm_ratio``.
        reduce: averages a gradient over processes.

    Attributes:
        found: the term's weight, a scalar; known once the backward pass went through.
    """

    layer: nn.Parameter
    weight: float
    eps: float
    maximum: float
    reduce: Reduce = unreduced
    found: Tensor = field(factory=lambda: torch.zeros(()), init=False)
    _tokens: Tensor = field(init=False)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens twice: for the path to the reference terms, and for the weighted term."""
        self._tokens = tokens
        path, compared = _Split.apply(tokens, self)
        return path, compared

    def join(self, path: Tensor, compared: Tensor) -> Tensor:
        """The tokens' gradient out of those of their two uses; sets ``found``."""
        at_layer = [
            self.reduce(
                torch.autograd.grad(self._tokens, self.layer, gradient, retain_graph=True)[
                    0
                ].float()
            )
            for gradient in (path, compared)
        ]
        del self._tokens
        ratio = norm_ratio(at_layer[0], at_layer[1], eps=self.eps, maximum=self.maximum)
        self.found = self.weight * ratio
        return path + self.found * compared


class _Split(torch.autograd.Function):
    """Identity, twice; its backward pass is ``Junction.join``."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, junction: Junction) -> tuple[Tensor, Tensor]:
        ctx.junction = junction
        return tokens.view_as(tokens), tokens.view_as(tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.junction.join(*gradients), None


@frozen(kw_only=True)
class Pending:
    """An adaptive term of one part of a batch, waiting for the others.

    Attributes:
        value: the term, scaled by the part's share in the batch.
        reference: the sum of the reference terms, scaled likewise.
        layer, weight, eps, maximum: see ``Junction``.
    """

    value: Tensor
    reference: Tensor
    layer: nn.Parameter
    weight: float
    eps: float
    maximum: float


class SeparateGradients:
    """Gradients of adaptive terms, kept apart until a batch is accumulated from all its parts.

    Args:
        parameters: everything the stage trains.
        reduce: averages a gradient over processes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, reduce: Reduce = unreduced) -> None:
        self._parameters = list(parameters)
        self._reduce = reduce
        self._pending: dict[str, Pending] = {}
        self._gradients: dict[str, list[Tensor]] = {}
        self._references: dict[str, Tensor] = {}

    def add(self, pending: Mapping[str, Pending]) -> None:
        """Take in the terms of one part, before its other losses are back-propagated."""
        for label, term in pending.items():
            found = torch.autograd.grad(
                term.value, self._parameters, retain_graph=True, materialize_grads=True
            )
            (reference,) = torch.autograd.grad(
                term.reference, term.layer, retain_graph=True, materialize_grads=True
            )
            if label in self._gradients:
                torch._foreach_add_(self._gradients[label], list(found))
                self._references[label] += reference
            else:
                self._gradients[label] = list(found)
                self._references[label] = reference
            self._pending[label] = term

    def settle(self) -> dict[str, Tensor]:
        """Weigh the gradients and add them to the parameters'; the weights by label."""
        weights = {}
        for label, term in self._pending.items():
            gradients = [self._reduce(gradient) for gradient in self._gradients[label]]
            place = next(i for i, p in enumerate(self._parameters) if p is term.layer)
            reference = self._reduce(self._references[label])
            ratio = norm_ratio(reference, gradients[place], eps=term.eps, maximum=term.maximum)
            weights[label] = term.weight * ratio
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                gradient = weights[label] * gradient
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return weights
