"""What a video is, wherever its frames lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import numpy as np
from attrs import frozen

from rpiae.data.images import Pixels


@frozen(kw_only=True)
class VideoFacts:
    """What is known of a video before its frames are decoded.

    Attributes:
        frames: how many there are, as the file's header says; None where it does not.
        height, width: of the frames as shown, in pixels.
        rate: frames per second, on average.
        seconds: how long it lasts; None where nobody says.
        audio: whether it has sound.
    """

    frames: int | None
    height: int
    width: int
    rate: Fraction
    seconds: float | None
    audio: bool


class Frame(NamedTuple):
    """One frame.

    Attributes:
        pixels: (h, w, 3), 8-bit RGB, as shown.
        seconds: when it is shown; the first frame of a video at 0.
    """

    pixels: Pixels
    seconds: float


class LazyFrame(NamedTuple):
    """One frame, whose pixels are made when they are asked for.

    Attributes:
        seconds: see ``Frame``.
        render: its pixels, see ``Frame``; raises DataError as ``Video.frames`` does, and has to be asked
            while the video is open.
    """

    seconds: float
    render: Callable[[], Pixels]


class Video(ABC):
    """An open video, as a context manager that closes it.

    Attributes:
        name: what messages call it.
        facts: what is known of it.
        problem: what was found to be wrong with it, such as a damaged end; empty where nothing
            was, so far as frames were read.
    """

    name: str
    facts: VideoFacts
    problem: str = ""

    @abstractmethod
    def frames(self, start: float = 0.0) -> Iterator[Frame]:
        """Its frames, in order, decoded one at a time.

        Starting in the middle gives the very frames that decoding from the beginning gives. One
        iterator at a time: a new one ends those before it.

        Args:
            start: seconds; the first frame that is shown at this time or later comes first.

        Raises:
            DataError: if frames change their size, or nothing can be decoded.
        """

    def lazy_frames(self, start: float = 0.0) -> Iterator[LazyFrame]:
        """As ``frames``, for who looks at the pixels of some."""
        for pixels, seconds in self.frames(start):
            yield LazyFrame(seconds, partial(np.asarray, pixels))

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
