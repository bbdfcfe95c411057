"""Which frames clips are made of, and which of a video's are held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attrs import frozen

from rpiae.core.errors import DataError
from rpiae.data.held_out import most_held_out, trained_on_itself
from rpiae.data.images import Shape
from rpiae.data.orders import sampled
from rpiae.data.video.contracts import Video


@frozen(kw_only=True)
class Timing:
    """When the frames of clips are shown.

    A video has positions, 1 / rate seconds apart from its first frame on, where the rate is
    ``frame_rate`` or else the video's own one. At a position stands the frame that is shown nearest in
    time, so a video of variable frame rate gives clips of a constant one. A clip takes every
    ``stride``-th position.

    Attributes:
        frames: of a clip.
        stride: positions from one frame of a clip to the next.
        frame_rate: positions per second; a video's own frames per second where not given.
    """

    frames: int
    stride: int = 1
    frame_rate: float | None = None

    @property
    def span(self) -> int:
        """Positions from a clip's first frame to its last one, both included."""
        return (self.frames - 1) * self.stride + 1

    def in_words(self) -> str:
        """How clips are taken."""
        text = f"{self.frames} frames"
        text += f", every {self.stride}th one" if self.stride > 1 else ""
        return text + (f" of {self.frame_rate:g} per second" if self.frame_rate else "")

    def length(self, video: Video) -> Length:
        """How long a video is; one whose header does not say is read through.

        Raises:
            DataError: if it cannot be read.
        """
        facts = video.facts
        rate = float(self.frame_rate or facts.rate)
        seconds = facts.seconds
        if seconds is None and facts.frames is not None:
            seconds = facts.frames / float(facts.rate)
        if seconds is None:
            last = max(frame.seconds for frame in video.lazy_frames())
            seconds = last + 1 / float(facts.rate)
        return Length(
            max(1, round(seconds * rate)), rate, max(1, round(seconds * float(facts.rate))),
            (facts.height, facts.width), video.problem,
        )  # fmt: skip


class Length(NamedTuple):
    """How long a video is.

    Attributes:
        positions: how many there are; see ``Timing``.
        rate: positions per second.
        frames: how many it has itself.
        shape: height and width of these, in pixels.
        problem: what is wrong with it at first sight, in words.
    """

    positions: int
    rate: float
    frames: int
    shape: Shape
    problem: str = ""


@frozen(kw_only=True)
class Part:
    """A part of a video that clips are taken from; no frame beyond it is touched.

    Attributes:
        video: index in the source.
        first: its first position; see ``Timing``.
        positions: how many it has.
        rate: positions per second.
        whole: positions of the whole video.
    """

    video: int
    first: int
    positions: int
    rate: float
    whole: int

    @property
    def begin(self) -> float:
        """Seconds from which on frames belong to the part."""
        return (self.first - 0.5) / self.rate if self.first else -math.inf

    @property
    def end(self) -> float:
        """Seconds from which on frames do not belong to the part any more."""
        after = self.first + self.positions
        return (after - 0.5) / self.rate if after < self.whole else math.inf

    def clips(self, span: int) -> int:
        """Clips one after the other that it has room for."""
        return self.positions // span

    def start(self, share: float, span: int) -> int:
        """The position in the video at which a clip begins.

        Args:
            share: in [0, 1): 0 for the first possible one; equal shares lead to each.
            span: positions of the clip; at most those of the part.
        """
        return self.first + int(share * (self.positions - span + 1))

    def cut_at(self, seconds: float) -> Part:
        """What is left of it where the video ends early, with a last frame at so many seconds."""
        left = int(seconds * self.rate + 0.5) + 1 - self.first
        return Part(
            video=self.video, first=self.first, positions=max(0, min(self.positions, left)),
            rate=self.rate, whole=self.whole,
        )  # fmt: skip


class Parted(NamedTuple):
    """The videos of a source that are long enough for clips, in parts.

    Attributes:
        wholes: the videos as they are.
        training: what is trained on.
        held_out: what is never trained on.
        notices: what is to be said of it.
    """

    wholes: list[Part]
    training: list[Part]
    held_out: list[Part]
    notices: tuple[str, ...]


def parted(
    lengths: Mapping[int, Length], timing: Timing, *, held_out: float, location: str
) -> Parted:
    """What of each video is trained on, and what is held out.

    Held out is the last share of every video, and at least a clip, wherever it has room for a second
    one to train on. The others are trained on as they are; where no video has that room, the same share
    of them is held out as a whole, drawn once and for all. A single one is both.

    Args:
        lengths: of the videos that are long enough for a clip, by their index; not empty.
        timing: of the clips.
        held_out: the share, at most a half.
        location: what messages call the source.
    """
    span = timing.span
    by_video = {video: _whole(video, length) for video, length in lengths.items()}
    wholes = list(by_video.values())
    roomy = [video for video, part in by_video.items() if part.positions >= 2 * span]
    if roomy:
        training, held = dict(by_video), []
        for video in roomy:
            training[video], last = _divided(by_video[video], held_out, span)
            held.append(last)
        return Parted(wholes, list(training.values()), held, ())
    videos = list(by_video)
    if len(videos) == 1:
        return Parted(wholes, wholes, wholes, (trained_on_itself(location, "video"),))
    number = most_held_out(len(videos), math.ceil(held_out * len(videos)))
    drawn = [videos[i] for i in sampled(len(videos), number, "held-out")]
    return Parted(
        wholes,
        [part for video, part in by_video.items() if video not in drawn],
        [by_video[video] for video in drawn],
        (
            f"{location}: no video has two clips ({2 * span} frames), so {number} of {len(videos)} "
            "videos are held out as a whole",
        ),
    )


def _whole(video: int, length: Length) -> Part:
    number = length.positions
    return Part(video=video, first=0, positions=number, rate=length.rate, whole=number)


def _divided(whole: Part, held_out: float, span: int) -> tuple[Part, Part]:
    last = max(span, math.ceil(held_out * whole.positions))
    first = whole.positions - last
    return (
        Part(video=whole.video, first=0, positions=first, rate=whole.rate, whole=whole.whole),
        Part(video=whole.video, first=first, positions=last, rate=whole.rate, whole=whole.whole),
    )


def too_short(length: Length, path: str, timing: Timing) -> DataError:
    """The error of a video that is shorter than a clip."""
    return DataError(
        f"{path}: {length.positions} frames are less than the {timing.span} that a clip goes over"
    )


def none_long_enough(lengths: Sequence[Length], timing: Timing, location: str) -> str:
    """Message for a source in which no video is long enough for a clip."""
    longest = max(length.positions for length in lengths)
    return (
        f"none of {len(lengths)} videos in {location} is as long as a clip, which goes over "
        f"{timing.span} frames; the longest has {longest}. Lower data.frames"
        + (", data.stride" if timing.stride > 1 else "")
        + (" or raise data.frame_rate" if timing.frame_rate else "")
    )
