"""Whether the frames of a video are shown at one rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

from rpiae.data.video.contracts import Frame

#: Frames that one may be shown early or late, at the rate of all, before the rate is said to vary:
#: containers round times, and an average rate is rounded too.
TOLERATED = 1.5


class ShownTimes:
    """Watches when frames are shown, against frames that come at one rate.

    Args:
        rate: frames per second that whatever is made of them has.
    """

    def __init__(self, rate: Fraction) -> None:
        self._rate = rate
        self._worst = 0.0

    def watched(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """Frames as they are, once."""
        first: float | None = None
        for number, frame in enumerate(frames):
            first = frame.seconds if first is None else first
            due = first + float(number / self._rate)
            self._worst = max(self._worst, abs(frame.seconds - due))
            yield frame

    def varying(self) -> str:
        """What is to be said of the frames that were watched; empty where they came at one rate."""
        if self._worst <= TOLERATED / self._rate:
            return ""
        return (
            f"the frame rate varies; every frame is kept, at {float(self._rate):.4g} frames/s, up to "
            f"{self._worst:.2g} s from when it was shown"
        )
