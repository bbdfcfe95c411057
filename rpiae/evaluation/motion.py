"""Metrics of clips: how frames change from one to the next. All values are in levels of 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import Features
from rpiae.evaluation.accumulators import Accumulator, ByFrame, Ratio
from rpiae.evaluation.examination import Examination, Measured
from rpiae.evaluation.interpolation import frames_per_token
from rpiae.losses.temporal import STILL, static_regions

#: Largest value of 8 bits: what differences of pixels in [0, 1] are told in.
LEVELS = 255


def changes(clips: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t-1 h w"]:
    """What changes from each frame to the next, in levels.

    Raises:
        UsageError: if there is no next frame.
    """
    if clips.shape[2] < 2:
        raise UsageError("clips of one frame do not change: it takes at least 2 frames")
    return (clips * LEVELS).diff(dim=2)


class TemporalError:
    """Error of frame differences: ``temporal`` is the root of the mean of (Δx̂ − Δx)² over all clips,
    frames, pixels and channels, Δ the difference of a frame and the one before it.

    ``temporal_true`` is the same of Δx: what a reconstruction in which nothing moves would have.
    """

    def __init__(self) -> None:
        self._errors = ByFrame()
        self._true = ByFrame()

    def update(self, seen: Examination) -> None:
        """Take in some clips.

        Raises:
            UsageError: if they have one frame.
        """
        true = changes(seen.images)
        self._errors.add(_squares(changes(seen.reconstruction) - true))
        self._true.add(_squares(true))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._errors, self._true

    def compute(self) -> Measured:
        """Both, in levels; details have one number per frame but the first."""
        values = {
            "temporal": self._errors.mean() ** 0.5,
            "temporal_true": self._true.mean() ** 0.5,
        }
        by_frame = self._errors.means.sqrt().tolist()
        return Measured(values=values, details={"temporal_by_frame": by_frame})


class Flicker:
    """Change over time where nothing moves in the true clip: ``flicker`` is the mean of |Δx̂| there over
    all clips, ``flicker_true`` that of |Δx|, and ``static_share`` how much of the clips that is.

    Args:
        threshold: change from which on a pixel moves, in units of [0, 1].
        neighbourhood: side of the square around a pixel that has to be still, in pixels; odd.
    """

    def __init__(self, *, threshold: float, neighbourhood: int) -> None:
        self._threshold = threshold
        self._neighbourhood = neighbourhood
        self._made = Ratio()
        self._true = Ratio()
        self._static = Ratio()

    def update(self, seen: Examination) -> None:
        """Take in some clips.

        Raises:
            UsageError: if they have one frame.
        """
        static = static_regions(
            seen.images, threshold=self._threshold, neighbourhood=self._neighbourhood
        )
        for ratio, clips in ((self._made, seen.reconstruction), (self._true, seen.images)):
            ratio.add(changes(clips).abs().mean(1) * static, static)
        self._static.add(static, torch.ones_like(static))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._made, self._true, self._static

    def compute(self) -> Measured:
        """The two changes in levels, and the share.

        Raises:
            UsageError: if no place is still.
        """
        if not self._static.value:
            raise UsageError(
                "nothing stands still in these clips: every place has a pixel around it that changes "
                f"by {self._threshold} or more from each frame to the next"
            )
        values = {
            "flicker": self._made.value,
            "flicker_true": self._true.value,
            "static_share": self._static.value,
        }
        facts = {"threshold": self._threshold, "neighbourhood": self._neighbourhood}
        return Measured(values=values, facts=facts)


class Trajectory:
    """How far the motion of the encoder's tokens is from that of the pivot's.

    ``trajectory`` is the mean of 1 − cos(Δz, Δp) over tokens and steps in time, each weighted by the
    length of Δp: what stands still has no direction.
    """

    def __init__(self) -> None:
        self._distance = Ratio()

    def update(self, seen: Examination) -> None:
        """Take in some clips.

        Raises:
            UsageError: if the encoder sees one step of them.
        """
        steps = -(-seen.num_frames // frames_per_token(seen.model))
        if steps < 2:
            raise UsageError(
                "the encoder sees one step of these clips, and motion takes at least 2"
            )
        ours, theirs = (_motion(each, steps) for each in (seen.features, seen.pivot_features))
        distances = 1 - F.cosine_similarity(ours, theirs, dim=-1, eps=STILL)
        lengths = theirs.norm(dim=-1)
        self._distance.add(distances * lengths, lengths)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return (self._distance,)

    def compute(self) -> Measured:
        """The mean, 0 to 2.

        Raises:
            UsageError: if the pivot's tokens do not move.
        """
        if not self._distance.weight:
            raise UsageError("the pivot's tokens do not change in these clips")
        return Measured(values={"trajectory": self._distance.value})


def _squares(values: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b t"]:
    """Mean square of every frame, float64."""
    return values.double().square().mean((1, 3, 4))


def _motion(features: Features, steps: int) -> Float[Tensor, "b t-1 n d"]:
    """Differences of tokens over the first ``steps``; later ones are of repeated frames."""
    tokens = features.tokens
    by_step = tokens.reshape(len(tokens), features.grid[0], -1, tokens.shape[-1])
    return by_step[:, :steps].diff(dim=1)
