"""Losses that look through the frozen replica of the pivot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import StepContext
from rpiae.core.model.geometry import at_least_fp32, map_to_tokens


class PivotLoss:
    """Mean squared error over patch tokens between E(x), clean, and the replica of x.

    Source: L_piv of arXiv 2603.19206. No gradient passes to the replica.
    """

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        with torch.no_grad():
            anchor = context.replica.features(context.images).tokens
        return F.mse_loss(at_least_fp32(context.features.tokens), at_least_fp32(anchor))


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


class PivotCosineLoss:
    """Mean over tokens of relu(1 − margin − cos) between E(x), clean, and the replica of x.

    Args:
        margin: cosine distance that costs nothing.

    Source: the marginal cosine similarity of VA-VAE's VF loss (arXiv 2501.01423), there 0.5, on
    encoder tokens.
    """

    def __init__(self, *, margin: float) -> None:
        self._margin = margin

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        with torch.no_grad():
            anchor = context.replica.features(context.images).tokens
        tokens = at_least_fp32(context.features.tokens)
        likeness = F.cosine_similarity(tokens, at_least_fp32(anchor), dim=-1)
        return F.relu(1 - self._margin - likeness).mean()


class PivotRelationalLoss:
    """Mean of relu(|S − S*| − margin), S the cosine similarity of all pairs of tokens of an image, or
    of each frame of a clip.

    S* is that of the replica's tokens. Only relations are compared, so the two may have different
    channels: ``of = "latent"`` compares the latent's own tokens, as VA-VAE does.

    Args:
        of: whose tokens are compared with the replica's.
        margin: difference of similarity that costs nothing.

    Source: the marginal distance matrix similarity of VA-VAE's VF loss (arXiv 2501.01423), there
    0.25.

    Raises:
        UsageError: if the latent lies on another grid than the features.
    """

    def __init__(self, *, of: Literal["features", "latent"], margin: float) -> None:
        self._of = of
        self._margin = margin

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        with torch.no_grad():
            anchor, grid = context.replica.features(context.images)
        tokens = context.features.tokens
        if self._of == "latent":
            assert context.latent is not None
            tokens = map_to_tokens(context.latent)
        if tokens.shape[1] != anchor.shape[1]:
            raise UsageError(
                f"pivot-relational: the latent has {tokens.shape[1]} positions and the pivot "
                f"{anchor.shape[1]} tokens. Take a bridge without downsampling, in space and in time, "
                "or of = 'features'"
            )
        frames = [
            values.reshape(-1, math.prod(grid[1:]), values.shape[-1]) for values in (tokens, anchor)
        ]
        found, wanted = map(_similarities, frames)
        difference = (found - wanted).abs()
        return F.relu(difference - self._margin).mean()


class PivotNoisyLoss:
    """Mean over tokens of 1 − cos between the features decoded from a noised latent and the replica.

    The latent is moved along the path of flow matching, (1 − t)·latent + t·ε with ε ~ N(0, I) and
    one t ~ U(0, most) per sample, and expanded by the bridge: what a diffusion model sees on its way
    then carries the pivot's semantics.

    Args:
        most: largest t.

    Source: distillation along the flow of RecTok (arXiv 2512.13421); there a decoder of its own maps
    noisy latents to semantics, here the bridge's decoder does.
    """

    def __init__(self, *, most: float) -> None:
        self._most = most

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert context.latent is not None
        assert context.expand is not None
        with torch.no_grad():
            anchor = context.replica.features(context.images).tokens
        latent = at_least_fp32(context.latent)
        t = self._most * context.draws.uniform("pivot-noisy-time", latent.device).view(
            -1, 1, 1, 1, 1
        )
        noisy = (1 - t) * latent + t * context.draws.normal_like(latent, "pivot-noisy")
        tokens = at_least_fp32(context.expand(noisy).tokens)
        return (1 - F.cosine_similarity(tokens, at_least_fp32(anchor), dim=-1)).mean()


def spaced_layers(num_blocks: int) -> tuple[int, ...]:
    """Up to four block indices, evenly spaced, the last one included."""
    count = min(4, num_blocks)
    return tuple((i + 1) * num_blocks // count - 1 for i in range(count))


def _normed(tokens: Tensor) -> Tensor:
    return F.layer_norm(at_least_fp32(tokens), tokens.shape[-1:])


def _similarities(tokens: Tensor) -> Tensor:
    unit = F.normalize(at_least_fp32(tokens), dim=-1)
    return unit @ unit.transpose(1, 2)
