"""Losses that look through the frozen replica of the pivot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.contracts import StepContext


class PivotLoss:
    """Mean squared error over patch tokens between E(x), clean, and the replica of x.

    Source: L_piv of arXiv 2603.19206. No gradient passes to the replica.
    """

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        with torch.no_grad():
            anchor = context.replica.features(context.images).tokens
        return F.mse_loss(context.features.tokens, anchor)


class PivotPerceptualLoss:
    """Mean squared distance of x̂ and x in the replica's block outputs.

    The tokens of each block are layer-normalised without affine, so every block counts alike. The
    gradient reaches whatever made x̂, through the frozen replica.

    Args:
        layers: block indices; empty takes up to four, evenly spaced, the last one included.
    """

    def __init__(self, *, layers: Sequence[int] = ()) -> None:
        self._layers = tuple(layers)

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert context.reconstruction is not None
        layers = self._layers or spaced_layers(context.replica.num_blocks)
        found = context.replica.blocks(context.reconstruction, layers).tokens
        with torch.no_grad():
            wanted = context.replica.blocks(context.images, layers).tokens
        distances = [F.mse_loss(_normed(a), _normed(b)) for a, b in zip(found, wanted, strict=True)]
        return torch.stack(distances).mean()


def spaced_layers(num_blocks: int) -> tuple[int, ...]:
    """Up to four block indices, evenly spaced, the last one included."""
    count = min(4, num_blocks)
    return tuple((i + 1) * num_blocks // count - 1 for i in range(count))


def _normed(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens.float(), tokens.shape[-1:])
