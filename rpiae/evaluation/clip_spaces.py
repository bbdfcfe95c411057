"""Feature spaces of clips: a vector per clip, for Fréchet video distances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation.examination import Examination
from rpiae.evaluation.spaces import EncoderSpace, FeatureSpace


@runtime_checkable
class ClipSpace(Protocol):
    """Turns clips into vectors; a vector does not depend on the other clips of its batch.

    Attributes:
        name, dimensions, facts: as of ``FeatureSpace``.
        least_frames: that a clip needs.
    """

    name: str
    dimensions: int
    facts: Mapping[str, Any]
    least_frames: int

    def described(self, seen: Examination, which: str) -> Float[Tensor, "b d"]:
        """Vectors of the ``images`` or the ``reconstruction`` of an examination of clips, in fp32.

        Raises:
            UsageError: if they have too few frames.
        """


def clip_space(space: FeatureSpace) -> ClipSpace:
    """The space of clips that comes with a feature space: an encoder of clips sees them whole, every
    other space frame by frame."""
    if isinstance(space, EncoderSpace) and space.frames > 1:
        return WholeClips(space)
    return FeaturesOverTime(space)


class FeaturesOverTime:
    """Vectors of frames in a space of images, over time: their mean over the frames of a clip, and the
    mean of the absolute difference of each frame's and the one's before it; both next to each other.

    The first half says what is to be seen, the second how much it changes: a clip that flickers or
    stands still differs in it from one that moves.

    Args:
        space: of images.
    """

    def __init__(self, space: FeatureSpace) -> None:
        self._space = space
        self.name = space.name
        self.dimensions = 2 * space.dimensions
        self.least_frames = 2
        self.facts: Mapping[str, Any] = {
            **space.facts,
            "over_time": (
                "mean over frames, and mean absolute difference of neighbouring frames, "
                f"{self.dimensions} values"
            ),
        }

    def described(self, seen: Examination, which: str) -> Float[Tensor, "b d"]:
        """Vectors of clips; the frames' own are shared with the metrics of images.

        Raises:
            UsageError: if they have one frame.
        """
        check_frames(self, seen)
        frames = seen.frames.described(self._space, which)
        by_clip = frames.reshape(-1, seen.num_frames, frames.shape[-1])
        return torch.cat([by_clip.mean(1), by_clip.diff(dim=1).abs().mean(1)], dim=1)


class WholeClips:
    """Mean over the tokens of an encoder of clips.

    Args:
        space: the encoder's.
    """

    def __init__(self, space: EncoderSpace) -> None:
        self._space = space
        self.name = space.name
        self.dimensions = space.dimensions
        self.least_frames = space.frames
        self.facts: Mapping[str, Any] = {
            **space.facts,
            "over_time": f"clips as they are, {space.frames} frames per token",
        }

    def described(self, seen: Examination, which: str) -> Float[Tensor, "b d"]:
        """Vectors of clips.

        Raises:
            UsageError: if they have fewer frames than a token has.
        """
        check_frames(self, seen)
        return seen.described(self._space, which)


def check_frames(space: ClipSpace, seen: Examination) -> None:
    """Refuse clips that are too short for a space.

    Raises:
        UsageError: with the least number of frames.
    """
    if seen.num_frames < space.least_frames:
        frames = "1 frame is" if seen.num_frames == 1 else f"{seen.num_frames} frames are"
        raise UsageError(
            f"{frames} too few for the clip space {space.name!r}, which needs at least "
            f"{space.least_frames} per clip"
        )
