"""Videos written frame by frame, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpiae.core.errors import RunError, UsageError
from rpiae.core.runtime.files import whole
from rpiae.core.runtime.names import printable
from rpiae.data.images import Pixels
from rpiae.data.video.library import pyav
from rpiae.data.video.sound import Sound

if TYPE_CHECKING:
    import av

#: What a file's ending makes of it: FFmpeg's name of the container.
WRITTEN = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

#: Encoders, the better first, with their options and the matrix that their readers take for granted.
_ENCODERS: dict[str, tuple[dict[str, str], str]] = {
    "libx264": ({"crf": "17"}, "ITU709"),
    "mpeg4": ({"qmin": "2", "qmax": "3"}, "SMPTE170M"),
}

#: Largest numerator of a frame rate that every encoder takes.
_LARGEST_NUMERATOR = 65535


class VideoWriter:
    """Writes a video of a constant frame rate, as a context manager.

    H.264 where PyAV has libx264, MPEG-4 part 2 elsewhere. Colours lose half their resolution (4:2:0)
    where H.264 has an even height and width, and keep it (4:4:4) where a side is odd; nothing is padded
    or cropped. Matrix and range are tagged, so that a reader gets the colours that were written. The
    file has its own name once all is written; if anything fails, nothing is left of it.

    Sound is copied packet by packet, as far as the frames last.

    Args:
        path: where; its ending (.mp4, .m4v, .mov, .mkv) is the container's.
        rate: frames per second.
        height, width: of the frames, in pixels.
        audio_from: a video file whose first sound is copied.
        audio_start: seconds after that video's first frame at which the first frame written is shown.

    Attributes:
        audio: "copied", "dropped: " and why, or "none".

    Raises:
        UsageError: if the ending is another.
        RunError: if it cannot be written, or nothing can encode it.
        MissingExtraError: if PyAV is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        rate: Fraction,
        height: int,
        width: int,
        audio_from: Path | None = None,
        audio_start: float = 0.0,
    ) -> None:
        self._av = pyav()
        self._path = path
        self._format = written_format(path)
        most = min(1001, max(1, int(_LARGEST_NUMERATOR / rate)))
        self._rate = rate.limit_denominator(most)
        self._shape = (height, width, 3)
        self._audio_from, self._audio_start = audio_from, audio_start
        self._written = 0
        self.audio = "none"

    def __enter__(self) -> VideoWriter:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._told())
            unfinished = stack.enter_context(whole(self._path))
            file = stack.enter_context(unfinished.open("wb"))
            self._container = stack.enter_context(self._closing(file))
            self._video = self._video_stream()
            self._sound = self._copied_sound(stack)
            self._container.start_encoding()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> bool | None:
        return self._stack.__exit__(*raised)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Failures of the system, and of encoders, in a sentence."""
        try:
            yield
        except (OSError, self._av.FFmpegError) as error:
            if not self._path.parent.is_dir():
                reason = f"there is no folder {printable(str(self._path.parent))}"
            else:
                reason = error.strerror or str(error)
            raise RunError(f"cannot write {printable(str(self._path))}: {reason}") from None

    @contextlib.contextmanager
    def _closing(self, file: Any) -> Iterator[av.container.OutputContainer]:
        container = self._av.open(file, "w", format=self._format)
        try:
            yield container
            if not self._written:
                raise RunError(f"cannot write {printable(str(self._path))}: there are no frames")
            container.mux(self._video.encode())
            self._copy_sound()
            container.close()
        except BaseException:
            # What it would still write goes to a file that is about to be removed.
            with contextlib.suppress(OSError, self._av.FFmpegError):
                container.close()
            raise

    def _copied_sound(self, stack: contextlib.ExitStack) -> Sound | None:
        """The sound to copy, which then has a stream in the container."""
        if self._audio_from is None:
            return None
        try:
            sound = Sound(self._audio_from, start=self._audio_start)
        except (OSError, ValueError, self._av.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            self.audio = f"dropped: it cannot be read ({reason})"
            return None
        stack.callback(sound.close)
        if not sound.there:
            return None
        if refusal := sound.refusal(self._format):
            self.audio = f"dropped: {refusal}"
            return None
        sound.add_to(self._container)
        self.audio = "copied"
        return sound

    def _copy_sound(self) -> None:
        if self._sound is not None:
            self._sound.copy_until(self._written / self._rate)

    def _video_stream(self) -> Any:
        encoder = next((name for name in _ENCODERS if name in self._av.codecs_available), None)
        if encoder is None:
            raise RunError(
                f"cannot write {printable(str(self._path))}: PyAV has none of the encoders "
                f"{', '.join(_ENCODERS)} here; install its wheel from PyPI"
            )
        options, matrix = _ENCODERS[encoder]
        reformatter = self._av.video.reformatter
        self._matrix = reformatter.Colorspace[matrix]
        stream: Any = self._container.add_stream(encoder, rate=self._rate, options=options)
        stream.height, stream.width, _ = self._shape
        odd = encoder == "libx264" and (stream.height % 2 or stream.width % 2)
        stream.pix_fmt = "yuv444p" if odd else "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = self._matrix, reformatter.ColorRange.MPEG
        context.color_primaries = reformatter.ColorPrimaries[
            "BT709" if encoder == "libx264" else "SMPTE170M"
        ]
        context.color_trc = reformatter.ColorTrc["BT709" if encoder == "libx264" else "SMPTE170M"]
        return stream

    def write(self, frames: Pixels) -> None:
        """Append frames.

        Args:
            frames: (t, h, w, 3), 8-bit RGB.

        Raises:
            RunError: if they cannot be written.
        """
        assert frames.shape[1:] == self._shape, f"frames of {frames.shape[1:]}, not {self._shape}"
        reformatter = self._av.video.reformatter
        for pixels in frames:
            frame = self._av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=self._video.pix_fmt,
                dst_colorspace=self._matrix,
                dst_color_range=reformatter.ColorRange.MPEG,
                interpolation=reformatter.Interpolation.AREA
                | reformatter.Interpolation.ACCURATE_RND
                | reformatter.Interpolation.FULL_CHR_H_INP,
                threads=1,
            )
            frame.pts, frame.time_base = self._written, 1 / self._rate
            self._written += 1
            with self._told():
                self._container.mux(self._video.encode(frame))
                self._copy_sound()


def written_format(path: Path) -> str:
    """FFmpeg's name of the container that a file's ending stands for.

    Raises:
        UsageError: if it stands for none that is written.
    """
    try:
        return WRITTEN[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"cannot write {printable(str(path))}: videos end in {', '.join(WRITTEN)}"
        ) from None
