"""Frames of video files, decoded through PyAV."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpiae.core.errors import DataError, MissingExtraError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable
from rpiae.data.video.contracts import Frame, Video, VideoFacts

if TYPE_CHECKING:
    import av

__all__ = ["VIDEO_EXTENSIONS", "Frame", "Video", "VideoFacts", "VideoFile", "open_video"]

#: Endings of the names of files that may be videos.
VIDEO_EXTENSIONS = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".mxf", ".ogv", ".ts", ".webm", ".wmv", ".y4m",
)  # fmt: skip

#: Containers that are opened. FFmpeg's others are no videos, and some of them name further files.
CONTAINERS = (
    "asf", "avi", "flv", "gif", "h264", "hevc", "ivf", "matroska", "mov", "mpeg", "mpegts", "mpegvideo",
    "mxf", "ogg", "yuv4mpegpipe",
)  # fmt: skip

#: Seconds by which an attempt to begin before a time goes further back than the last one.
_FURTHER_BACK = (0, 1, 4, 16, 64)


def pyav() -> Any:
    """The module ``av``.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingExtraError(
            'videos need av, which is not installed: pip install "rpiae[video]"'
        ) from None
    return av


def open_video(content: Path | bytes, *, name: str = "") -> VideoFile:
    """Open a video file.

    Args:
        content: its path, or its bytes.
        name: what messages call it; the path where not given.

    Raises:
        DataError: if it cannot be read, has no video stream, or none of its frames can be decoded.
        MissingExtraError: if PyAV is not installed.
    """
    return VideoFile(content, name=name)


class VideoFile(Video):
    """A video file, in one of many containers and codecs.

    Args, Raises: as ``open_video``.
    """

    def __init__(self, content: Path | bytes, *, name: str = "") -> None:
        self._av = pyav()
        self.name = printable(name or ("video" if isinstance(content, bytes) else str(content)))
        self._file = self._opened(content)
        try:
            self._container = self._demuxed()
            self._stream = self._video_stream()
            self._first = self._first_frame()
            self.facts = self._facts()
        except BaseException:
            self.close()
            raise

    def _opened(self, content: Path | bytes) -> Any:
        if isinstance(content, bytes):
            return io.BytesIO(content)
        try:
            return open_regular(content)
        except OSError as error:
            raise DataError(f"{self.name}: {error.strerror}") from None

    def _demuxed(self) -> av.container.InputContainer:
        if not self._file.seek(0, os.SEEK_END):
            raise DataError(f"{self.name}: the file is empty")
        self._file.seek(0)
        try:
            opened: av.container.InputContainer = self._av.open(
                self._file, container_options={"format_whitelist": ",".join(CONTAINERS)}
            )
        except (self._av.FFmpegError, ValueError) as error:
            raise DataError(f"{self.name}: not a video that can be read ({error})") from None
        return opened

    def _video_stream(self) -> av.VideoStream:
        for stream in self._container.streams.video:
            if not stream.disposition & self._av.stream.Disposition.attached_pic:
                stream.thread_count = 1
                return stream
        raise DataError(f"{self.name}: it has no video stream")

    def _first_frame(self) -> av.VideoFrame:
        for frame in self._decoded():
            return frame
        raise DataError(f"{self.name}: none of its frames can be decoded")

    def _facts(self) -> VideoFacts:
        stream, container = self._stream, self._container
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        seconds = None
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            seconds = container.duration / self._av.time_base
        return VideoFacts(
            frames=stream.frames or None,
            height=self._first.height,
            width=self._first.width,
            rate=rate,
            seconds=seconds,
            audio=bool(container.streams.audio),
        )

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Frames from where the container stands, beginning at a packet that stands alone."""
        begun = False
        for packet in self._container.demux(self._stream):
            begun = begun or packet.is_keyframe
            if begun:
                yield from packet.decode()

    def _ticks(self, frame: av.VideoFrame) -> int:
        """When a frame is shown, in steps of the stream's time base after the first frame."""
        return int(frame.pts or 0) - int(self._first.pts or 0)

    def frames(self, start: float = 0.0) -> Iterator[Frame]:
        base = Fraction(self._stream.time_base or 1)
        for frame in self._from(round(Fraction(start) / base)):
            pixels = frame.reformat(format="rgb24").to_ndarray().astype(np.uint8, copy=False)
            yield Frame(pixels, float(self._ticks(frame) * base))

    def _from(self, ticks: int) -> Iterator[av.VideoFrame]:
        for further in _FURTHER_BACK:
            back = int(further / Fraction(self._stream.time_base or 1))
            target = max(0, ticks - back) + int(self._first.pts or 0)
            self._container.seek(target, stream=self._stream)
            decoded = self._decoded()
            frame = next(decoded, None)
            if frame is not None and (self._ticks(frame) <= max(0, ticks)):
                break
        while frame is not None:
            if self._ticks(frame) >= ticks:
                yield frame
            frame = next(decoded, None)

    def close(self) -> None:
        container = getattr(self, "_container", None)
        if container is not None:
            container.close()
        self._file.close()
