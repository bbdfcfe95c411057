"""The sound of one video file, copied into another packet by packet."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpiae.core.runtime.files import open_regular
from rpiae.data.video.library import demuxed, packets, pyav

if TYPE_CHECKING:
    import av


class Sound:
    """The first sound of a video file, as it is stored.

    Args:
        path: of the video file.
        start: seconds after the video's first frame that become the beginning.

    Attributes:
        there: whether the file has any.

    Raises:
        av.FFmpegError, OSError, ValueError: if it cannot be read.
    """

    def __init__(self, path: Path, *, start: float) -> None:
        self._av = pyav()
        self._file = open_regular(path)
        try:
            self._source = demuxed(self._file)
        except BaseException:
            self._file.close()
            raise
        streams = self._source.streams
        self.there = bool(streams.audio)
        if not self.there:
            return
        self._stream = streams.audio[0]
        self._base = Fraction(self._stream.time_base or 1)
        video = streams.video[0] if streams.video else self._stream
        zero = Fraction(video.start_time or 0) * Fraction(video.time_base or 1)
        self._zero = round((zero + Fraction(start)) / self._base)
        if start > 0:
            with contextlib.suppress(
                self._av.FFmpegError, OSError
            ):  # then it is read from the first
                self._source.seek(self._zero, stream=self._stream)
        self._packets = self._shifted(cut=start > 0)
        self._next: Any = None

    def refusal(self, container: str) -> str:
        """Why a container does not take it; empty where it does.

        Args:
            container: FFmpeg's name.
        """
        context: Any = self._stream.codec_context
        if context is None:
            return "it is of an unknown codec"
        codec = context.codec.name
        try:
            with self._av.open(io.BytesIO(), "w", format=container) as trial:
                trial.add_stream_from_template(self._stream)
                trial.start_encoding()
        except (self._av.FFmpegError, OSError, ValueError):
            return f"{container} files take no {codec}"
        return ""

    def add_to(self, container: av.container.OutputContainer) -> None:
        """Give a container a stream for it."""
        self._copy: Any = container.add_stream_from_template(self._stream)
        self._copy.metadata.update(self._stream.metadata)
        self._target = container

    def copy_until(self, seconds: Fraction) -> None:
        """Copy what begins before a time and was not copied yet.

        Raises:
            OSError: if it cannot be written.
        """
        while True:
            if self._next is None:
                self._next = next(self._packets, None)
            if self._next is None or self._next.pts * self._base >= seconds:
                return
            packet, self._next = self._next, None
            packet.stream = self._copy
            try:
                self._target.mux(packet)
            except self._av.FFmpegError as error:
                if isinstance(error, OSError):
                    raise
                # What the container refuses is damaged, and left out.

    def _shifted(self, *, cut: bool) -> Iterator[Any]:
        found = packets(self._source, self._stream)
        last: int | None = None
        while True:
            try:
                packet = next(found)
            except (StopIteration, self._av.FFmpegError, OSError):
                return  # of damaged sound, what can be read is copied
            # Of damaged files, time may stand still or go back, which no container takes.
            if (
                packet.pts is None
                or packet.dts is None
                or (last is not None and packet.dts <= last)
            ):
                continue
            last = packet.dts
            packet.pts -= self._zero
            packet.dts -= self._zero
            if not cut or packet.pts >= 0:
                yield packet

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()
        self._file.close()
