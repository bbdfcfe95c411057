"""Losses on what changes from one frame to the next; of single images they are zero.

Every clip counts alike, whatever else is in its batch, and a zero is still part of the graph, so that
single images and clips can be mixed over steps and processes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import Features, StepContext
from rpiae.core.model.geometry import at_least_fp32

#: Shortest motion whose direction is looked at, as a norm over channels.
STILL = 1e-3


class TemporalDifferenceLoss:
    """Mean |Δx̂ − Δx|, Δ the difference of neighbouring frames in [0, 1].

    An error that all frames share costs nothing.
    """

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert context.reconstruction is not None
        error = _motion(context.reconstruction) - _motion(context.images)
        return _mean(error.abs().flatten(1))


class FlickerLoss:
    """Mean |Δx̂| where nothing moves in the true clip, see ``static_regions``; 0 for a clip without
    such places.

    Args:
        threshold, neighbourhood: see ``static_regions``.

    Source: ours.
    """

    def __init__(self, *, threshold: float, neighbourhood: int) -> None:
        self._threshold = threshold
        self._neighbourhood = neighbourhood

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert context.reconstruction is not None
        static = static_regions(
            as_clip(context.images), threshold=self._threshold, neighbourhood=self._neighbourhood
        )
        change = _motion(context.reconstruction).abs().mean(1)
        return _mean(change.flatten(1), weight=static.flatten(1).to(change.dtype))


class PivotTrajectoryLoss:
    """How far the features' motion, token by token, is from that of the replica's features.

    With z the features, z* the replica's, and Δ the difference of neighbouring steps in time:

    - ``squared``: mean (Δz − Δz*)² over tokens and channels, on the scale of ``pivot``. With errors
      e = z − z* it is mean (Δe)²: an error that stays as it is over time costs nothing, one that is
      independent from step to step costs twice what ``pivot`` takes for it.
    - ``cosine``: mean of 1 − cos(Δz, Δz*), weighted by the length of Δz*, as what stands still has no
      direction.

    Args:
        of: whose motion: the encoder's ``features``, or the ``decoded_features`` behind the bridge.
        distance: which of the two.

    Source: ours.
    """

    def __init__(
        self,
        *,
        of: Literal["features", "decoded_features"],
        distance: Literal["squared", "cosine"],
    ) -> None:
        self._of = of
        self._cosine = distance == "cosine"

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        with torch.no_grad():
            wanted = _token_motion(context.replica.features(context.images))
        features = context.features if self._of == "features" else context.decoded_features
        assert features is not None
        found = _token_motion(features)
        if not self._cosine:
            return _mean((found - wanted).square().flatten(1))
        likeness = F.cosine_similarity(found, wanted, dim=-1, eps=STILL)
        return _mean((1 - likeness).flatten(1), weight=wanted.norm(dim=-1).flatten(1))


def static_regions(
    clip: Float[Tensor, "b 3 t h w"], *, threshold: float, neighbourhood: int
) -> Bool[Tensor, "b t-1 h w"]:
    """Where nothing moves from each frame to the next: no channel of any pixel around changes by
    ``threshold`` or more.

    Args:
        clip: the true one, in [0, 1]; what is static is not to depend on a reconstruction.
        threshold: in units of [0, 1]; above the noise of cameras and codecs.
        neighbourhood: side of the square around a pixel that has to be still, in pixels; odd.
    """
    change = _motion(clip).abs().amax(1)
    if not change.numel():
        return change.bool()
    largest = F.max_pool2d(change, neighbourhood, stride=1, padding=neighbourhood // 2)
    return largest < threshold


def _motion(images: Float[Tensor, "b 3 ..."]) -> Float[Tensor, "b 3 t-1 h w"]:
    return at_least_fp32(as_clip(images)).diff(dim=2)


def _token_motion(features: Features) -> Float[Tensor, "b t-1 n d"]:
    tokens, (t, h, w) = features
    return at_least_fp32(tokens).view(len(tokens), t, h * w, -1).diff(dim=1)


def _mean(
    values: Float[Tensor, "b n"], weight: Float[Tensor, "b n"] | None = None
) -> Float[Tensor, ""]:
    """Mean over clips of each one's weighted mean; a clip without weight counts as zero."""
    weight = torch.ones_like(values) if weight is None else weight
    total = weight.sum(1)
    return ((values * weight).sum(1) / torch.where(total > 0, total, 1)).mean()
