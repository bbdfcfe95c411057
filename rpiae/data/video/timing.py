"""Which frames clips are made of, and which of a video's are held out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from attrs import evolve, frozen

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

    Held out is the last share of every video, wherever that holds a clip; nothing of it is trained on,
    held clip or not, as long as what comes before has a clip. So the cut does not depend on clips, and
    what is trained on with clips of one length is never measured on with those of another.

    Where no video's share holds a clip, the last clip of each that has two is held out. Where none has
    two, the share of the videos is held out as a whole, drawn once and for all. A single one is both.
    All of this is said.

    Args:
        lengths: of the videos that are long enough for a clip, by their index; not empty.
        timing: of the clips.
        held_out: the share, at most a half.
        location: what messages call the source.
    """
    span = timing.span
    wholes = [_whole(video, length) for video, length in lengths.items()]
    divided = [_divided(whole, math.ceil(held_out * whole.positions)) for whole in wholes]
    pairs = [(one, last) for one, last in divided if min(one.positions, last.positions) >= span]
    if pairs:
        training = [
            one if one.positions >= span else whole
            for whole, (one, _) in zip(wholes, divided, strict=True)
        ]
        held = [last for _, last in pairs]
        short = len(wholes) - len(held)
        text = (
            f"{location}: of {short} of {len(wholes)} videos no clip is held out, as their last "
            f"{held_out:g} or what comes before it is shorter than a clip ({span} frames)"
        )
        return Parted(wholes, training, held, (text,) if short else ())
    if any(whole.positions >= 2 * span for whole in wholes):
        return _by_last_clips(wholes, span, held_out, location)
    return _by_videos(wholes, span, held_out, location)


def _by_last_clips(wholes: list[Part], span: int, share: float, location: str) -> Parted:
    training: list[Part] = []
    held: list[Part] = []
    for whole in wholes:
        if whole.positions < 2 * span:
            training.append(whole)
            continue
        before, last = _divided(whole, span)
        training.append(before)
        held.append(last)
    text = (
        f"{location}: the last {share:g} of no video holds a clip ({span} frames), so the last clip of "
        f"{len(held)} of {len(wholes)} videos is held out, and longer clips would reach beyond it; "
        "a larger data.held_out holds one"
    )
    return Parted(wholes, training, held, (text,))


def _by_videos(wholes: list[Part], span: int, share: float, location: str) -> Parted:
    if len(wholes) == 1:
        return Parted(wholes, wholes, wholes, (trained_on_itself(location, "video"),))
    number = most_held_out(len(wholes), math.ceil(share * len(wholes)))
    drawn = sampled(len(wholes), number, "held-out")
    return Parted(
        wholes,
        [whole for place, whole in enumerate(wholes) if place not in drawn],
        [wholes[place] for place in drawn],
        (
            f"{location}: no video has two clips ({2 * span} frames), so {number} of {len(wholes)} "
            "videos are held out as a whole",
        ),
    )


def _whole(video: int, length: Length) -> Part:
    number = length.positions
    return Part(video=video, first=0, positions=number, rate=length.rate, whole=number)


def _divided(whole: Part, last: int) -> tuple[Part, Part]:
    """A video without its last positions, and these."""
    first = whole.positions - last
    return evolve(whole, positions=first), evolve(whole, first=first, positions=last)


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
