"""Where reading stands in an open video, and the frames nearest to given times."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

from rpiae.core.errors import DataError
from rpiae.data.video.contracts import LazyFrame, Video
from rpiae.data.video.timing import Part

#: Seconds that are read on through an open video; to what lies further ahead, it is sought anew.
AHEAD = 1.0

#: Seconds by which a frame must be nearer than the one before it.
_NEARER = 1e-6


class EndsEarlyError(DataError):
    """A video that ends before its header says.

    Attributes:
        seconds: when its last frame is shown.
    """

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(
            f"{path}: it is damaged, and its last frame is at {seconds:.2f} s; what comes before is used"
        )
        self.seconds = seconds


def _is_missing(time: float, last: LazyFrame, video: Video) -> bool:
    """Whether more than a frame lies between a time and the last frame of a damaged video."""
    return bool(video.problem) and time - last.seconds > 1.5 / float(video.facts.rate)


class Cursor:
    """A video, and where in it reading stands.

    Args:
        video: it is closed with the cursor, or when nobody has that any more.
        path: what messages call it.
    """

    def __init__(self, video: Video, path: str) -> None:
        self.video = video
        self.close = weakref.finalize(self, video.close)
        self._path = path
        self._step = 1 / float(video.facts.rate)
        self._frames: Iterator[LazyFrame] = iter(())
        self._here: LazyFrame | None = None
        self._next: LazyFrame | None = None
        self._last: LazyFrame | None = None  # of a damaged one, once it was met

    def frames(self, times: Sequence[float], part: Part) -> Iterator[LazyFrame]:
        """The frames of a part that are shown nearest to these times, which ascend.

        Raises:
            EndsEarlyError: if the video ends before one of them.
            DataError: if it cannot be decoded.
        """
        if self._last is not None and _is_missing(times[-1], self._last, self.video):
            raise EndsEarlyError(self._path, self._last.seconds)
        self._go_to(times[0], part)
        for time in times:
            while self._next is not None and self._next.seconds < part.end:
                assert self._here is not None
                if self._nearness(self._next, time) >= self._nearness(self._here, time) - _NEARER:
                    break
                self._step_on()
            here = self._here
            if here is None:
                raise DataError(f"{self._path}: none of its frames can be decoded")
            if self._next is None and _is_missing(time, here, self.video):
                self._last = here
                raise EndsEarlyError(self._path, here.seconds)
            if here.seconds < part.begin:
                raise DataError(
                    f"{self._path}: no frame is shown between {part.begin:.2f} s and {part.end:.2f} s"
                )
            yield here

    def _go_to(self, time: float, part: Part) -> None:
        """Stand at the last frame that is not after a time, or the part's first one."""
        here = self._here
        if here is None or not here.seconds <= time <= here.seconds + AHEAD:
            self._seek(time)
        while self._next is not None and self._next.seconds < part.end:
            assert self._here is not None
            if self._next.seconds > time and self._here.seconds >= part.begin:
                break
            self._step_on()

    def _seek(self, time: float) -> None:
        """Read from a frame before a time on, where there is one."""
        back = self._step
        while True:
            start = max(0.0, time - back)
            self._frames = self.video.lazy_frames(start)
            self._here = next(self._frames, None)
            self._next = next(self._frames, None)
            if start == 0.0 or (self._here is not None and self._here.seconds <= time):
                return
            back *= 4

    def _step_on(self) -> None:
        self._here, self._next = self._next, next(self._frames, None)

    @staticmethod
    def _nearness(frame: LazyFrame, time: float) -> float:
        return abs(frame.seconds - time)
