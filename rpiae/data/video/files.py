"""Frames of video files, decoded through PyAV."""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rpiae.core.errors import DataError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable
from rpiae.data.images import Pixels
from rpiae.data.video.contracts import Frame, LazyFrame, Video, VideoFacts
from rpiae.data.video.library import demuxed, packets, pyav
from rpiae.data.video.rendering import rendered

if TYPE_CHECKING:
    import av

__all__ = ["VIDEO_EXTENSIONS", "Frame", "Video", "VideoFacts", "VideoFile", "open_video"]

#: Endings of the names of files that may be videos.
VIDEO_EXTENSIONS = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".webm", ".wmv", ".y4m",
)  # fmt: skip

#: Containers that do not say when a frame is shown: frames are counted, always from the first one.
COUNTED = ("avi", "h264", "hevc", "m4v", "mpegvideo")

#: Containers in which a seek ends in the middle of a frame, or elsewhere where the file is cut: they are
#: decoded from the first one, too.
WITHOUT_SEEK = ("mpeg", "mxf")

#: Containers that say too short a duration: their frames are counted.
WITHOUT_DURATION = ("mpeg",)

#: Frames per second where nobody says.
USUAL_RATE = Fraction(25)

#: Seconds before a time at which reading begins, until that is at a frame before the time.
_BEFORE = (0, 1, 4, 16, 64)

#: How far behind a frame's time one that stands for it may lie, as a share of it.
_ROUNDING = 1e-12


def open_video(content: Path | bytes | IO[bytes], *, name: str = "") -> VideoFile:
    """Open a video file.

    Args:
        content: its path, its bytes, or an open file, which is closed with the video.
        name: what messages call it; the path where not given.

    Raises:
        DataError: if it cannot be read, has no video stream, or none of its frames can be decoded.
        MissingExtraError: if PyAV is not installed.
    """
    return VideoFile(content, name=name)


class VideoFile(Video):
    """A video file, in one of many containers and codecs.

    Of several video streams the first is taken; the cover of an audio file is none. Frames are shown
    as ``rendered`` says. A file that ends too early, or has damage in it, gives what can be decoded,
    and ``problem`` tells what is missing.

    Args, Raises: as ``open_video``.
    """

    def __init__(self, content: Path | bytes | IO[bytes], *, name: str = "") -> None:
        self._av = pyav()
        self.name = printable(name or (str(content) if isinstance(content, Path) else "video"))
        self._container: av.container.InputContainer | None = None
        self._reading = 0
        self._undecoded = self._damaged = 0
        self._end = 0.0
        self._file = self._opened(content)
        try:
            self._open()
            self._first = self._first_frame()
            height, width = self._pixels(self._first).shape[:2]
            self.facts = self._facts(height, width)
        except BaseException:
            self.close()
            raise

    def _opened(self, content: Path | bytes | IO[bytes]) -> Any:
        if isinstance(content, bytes):
            return io.BytesIO(content)
        if not isinstance(content, Path):
            return content
        try:
            return open_regular(content)
        except OSError as error:
            raise DataError(f"{self.name}: {error.strerror}") from None

    def _open(self) -> None:
        """Have the container stand at its beginning."""
        if self._container is not None:
            self._container.close()
        if not self._file.seek(0, os.SEEK_END):
            raise DataError(f"{self.name}: the file is empty")
        self._file.seek(0)
        try:
            self._container = demuxed(self._file)
        except (self._av.FFmpegError, OSError, ValueError):
            raise DataError(
                f"{self.name}: it is damaged, or no video of a known format "
                f"({', '.join(ending[1:] for ending in VIDEO_EXTENSIONS)})"
            ) from None
        self._stream = self._video_stream()
        self._base = Fraction(self._stream.time_base or Fraction(1, self._av.time_base))
        self._rate = self._stream.average_rate or self._stream.guessed_rate or USUAL_RATE
        self._counted = self._container.format.name in COUNTED

    def _video_stream(self) -> av.VideoStream:
        assert self._container is not None
        for stream in self._container.streams.video:
            if not stream.disposition & self._av.stream.Disposition.attached_pic:
                stream.thread_count = 1
                return stream
        raise DataError(f"{self.name}: it has no video stream")

    def _first_frame(self) -> av.VideoFrame:
        for _, frame in self._decoded():
            self._counted = self._counted or frame.pts is None
            return frame
        raise DataError(f"{self.name}: none of its frames can be decoded")

    def _facts(self, height: int, width: int) -> VideoFacts:
        assert self._container is not None
        return VideoFacts(
            frames=self._stream.frames or None,
            height=height,
            width=width,
            rate=self._rate,
            seconds=self._seconds(),
            audio=bool(self._container.streams.audio),
        )

    def _seconds(self) -> float | None:
        assert self._container is not None
        if self._container.format.name in WITHOUT_DURATION:
            return None
        if self._stream.duration is not None:
            return float(self._stream.duration * self._base)
        tag = re.match(r"(\d+):(\d+):(\d+\.?\d*)", self._stream.metadata.get("DURATION", ""))
        if tag is not None:  # the time of the end, on a clock on which the first frame may be late
            end = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
            return end - float((self._first.pts or 0) * self._base)
        if self._container.duration is not None:
            return float(Fraction(self._container.duration, self._av.time_base))
        return None

    def frames(self, start: float = 0.0) -> Iterator[Frame]:
        return (Frame(frame.render(), frame.seconds) for frame in self.lazy_frames(start))

    def lazy_frames(self, start: float = 0.0) -> Iterator[LazyFrame]:
        self._reading += 1
        return self._frames(start, self._reading)

    def _frames(self, start: float, reading: int) -> Iterator[LazyFrame]:
        self._in_turn(reading)
        self._undecoded = self._damaged = 0
        self._end = 0.0
        step = self._base if not self._counted else 1 / self._rate
        wanted = math.ceil(Fraction(start * (1 - _ROUNDING)) / step)
        frames = self._counted_from_first() if self._counted else self._from(wanted)
        asked = False
        for when, frame in frames:
            seconds = float(when * step)
            lasting = float((frame.duration or 0) * self._base) or float(1 / self._rate)
            self._end = max(self._end, seconds + lasting)
            asked = asked or when >= wanted
            if not asked:
                self._undecoded = 0  # what lies before is nobody's problem
                continue
            self._damaged += frame.is_corrupt
            yield LazyFrame(seconds, partial(self._of_one_size, frame, seconds))
        self._say_what_is_missing()

    def _of_one_size(self, frame: av.VideoFrame, seconds: float) -> Pixels:
        pixels = self._pixels(frame)
        if pixels.shape[:2] != (self.facts.height, self.facts.width):
            raise DataError(
                f"{self.name}: its frames are {self.facts.height}×{self.facts.width} pixels at "
                f"first and {pixels.shape[0]}×{pixels.shape[1]} at {seconds:.3g} s; cut it there"
            )
        return pixels

    def _counted_from_first(self) -> Iterator[tuple[int, av.VideoFrame]]:
        self._open()
        self._counted = True
        for number, (_, frame) in enumerate(self._decoded()):
            yield number, frame

    def _from(self, wanted: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their times in steps of the stream's base, from one at or before a time on."""
        assert self._container is not None
        zero = self._first.pts or 0
        for before in _BEFORE if self._container.format.name not in WITHOUT_SEEK else ():
            target = wanted - int(before / self._base)
            if target <= 0:
                break
            try:
                self._container.seek(target + zero, stream=self._stream)
            except (self._av.FFmpegError, OSError):  # there is no index
                break
            frames = self._timed()
            first = next(frames, None)
            # Neither may the packet that decoding begins with lie behind the time: frames before it
            # may need others that were not decoded.
            if first is not None and first[0] <= wanted and self._began - zero <= wanted:
                yield first
                yield from frames
                return
        self._open()
        yield from self._timed()

    def _timed(self) -> Iterator[tuple[int, av.VideoFrame]]:
        zero, when = self._first.pts or 0, 0
        for began, frame in self._decoded():
            self._began = began
            # A frame without a time follows the one before it at the usual distance.
            when = (
                when + round(1 / (self._rate * self._base))
                if frame.pts is None
                else frame.pts - zero
            )
            yield when, frame

    def _decoded(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames from where the container stands, from a packet that needs no other on, with the time
        of that packet."""
        assert self._container is not None
        began: int | None = None
        reading = self._reading
        found = packets(self._container, self._stream)
        while True:
            self._in_turn(reading)
            try:
                packet = next(found)
            except StopIteration:
                return
            except (self._av.FFmpegError, OSError):
                self._undecoded += 1
                return
            if began is None:
                if not packet.is_keyframe:
                    continue
                began = packet.pts or 0
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                self._undecoded += 1
                continue
            for frame in frames:
                yield began, frame

    def _in_turn(self, reading: int) -> None:
        """PyAV would read on in a container that stands elsewhere, or is closed."""
        assert reading == self._reading, "one iterator over a video at a time, while it is open"

    def _pixels(self, frame: av.VideoFrame) -> Pixels:
        try:
            return rendered(frame, aspect=self._stream.sample_aspect_ratio or Fraction(1))
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from None
        except (self._av.FFmpegError, MemoryError, ValueError) as error:
            raise DataError(f"{self.name}: a frame cannot be converted to RGB ({error})") from None

    def _say_what_is_missing(self) -> None:
        found = []
        if self.facts.seconds is not None and self._end + 1.5 / self._rate < self.facts.seconds:
            found.append(f"it ends at {self._end:.2f} s of {self.facts.seconds:.2f} s")
        if self._undecoded:
            found.append(f"packets that cannot be decoded: {self._undecoded}")
        if self._damaged:
            found.append(f"damaged frames: {self._damaged}")
        if found:
            self.problem = f"{self.name}: {'; '.join(found)}"

    def close(self) -> None:
        self._reading += 1
        if self._container is not None:
            self._container.close()
            self._container = None
        self._file.close()
