"""Clips by request: from a video to the pixels of a batch."""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from rpiae.core.errors import DataError
from rpiae.data.crops import Crop, Fitting
from rpiae.data.images import Picture, Pixels, TooSmallError, crop
from rpiae.data.loading import loaded_one_by_one
from rpiae.data.video.contracts import Frame, LazyFrame, Video
from rpiae.data.video.sources import VideoSource
from rpiae.data.video.timing import Length, Part, Timing

#: Videos that a process keeps open.
OPEN = 4

#: Bytes of resized frames up to which a process keeps all videos of a source in memory.
KEPT = 1 << 28

#: Seconds that are read on through an open video; to what lies further ahead, it is sought anew.
AHEAD = 1.0

#: Videos for which one more process that opens them is worth its start.
VIDEOS_PER_WORKER = 32

#: Seconds by which a frame must be nearer than the one before it.
_NEARER = 1e-6

#: What is made of the picture that a frame is: a crop of it.
Cut = Callable[[Picture], Pixels]


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


class _Cursor:
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


class _Kept(Video):
    """A video in memory, its frames resized.

    Args:
        video: which is read to its end.
        fitting: how frames are resized.
    """

    def __init__(self, video: Video, fitting: Fitting) -> None:
        self.name, self.facts = video.name, video.facts
        self._frames: list[Frame] = []
        self._error: DataError | None = None
        try:
            for pixels, seconds in video.frames():
                resized = np.asarray(fitting.resized(Image.fromarray(pixels)))
                self._frames.append(Frame(resized, seconds))
        except DataError as error:
            self._error = error
        self.problem = video.problem

    def frames(self, start: float = 0.0) -> Iterator[Frame]:
        yield from (frame for frame in self._frames if frame.seconds >= start)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._frames = []


class VideoReader:
    """Clips of a source's videos, resized; the videos read last stay open.

    Args:
        source: the videos.
        fitting: how frames are resized.
        timing: when the frames of a clip are shown.
        kept: whether all videos that were read are kept in memory, decoded and resized.
    """

    def __init__(
        self, source: VideoSource, fitting: Fitting, timing: Timing, *, kept: bool = False
    ) -> None:
        self.source = source
        self.fitting = fitting
        self.timing = timing
        self._kept = kept
        self._forget()

    def keeping(self, lengths: Iterable[Length]) -> VideoReader:
        """The reader for a source of such videos: one that keeps them, if all are small enough."""
        total = sum(length.frames * self.fitting.pixels(length.shape) for length in lengths)
        return VideoReader(self.source, self.fitting, self.timing, kept=3 * total <= KEPT)

    def _forget(self) -> None:
        self._cursors: OrderedDict[int, _Cursor] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_cursors"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def length(self, index: int) -> Length:
        """How long a video is; see ``Timing``.

        Raises:
            TooSmallError: if its frames are smaller than the crop.
            DataError: if it cannot be read.
        """
        with self.source.open(index) as video:
            facts = video.facts
            self.fitting.check((facts.height, facts.width), self.source.path(index))
            return self.timing.length(video)

    def clip(self, part: Part, start: int, frames: int, cut: Cut) -> NDArray[np.uint8]:
        """A clip (frames, h, w, 3).

        Args:
            part: of a video.
            start: position in the video at which it begins; the clip lies in the part.
            frames: how many frames it has.
            cut: what is made of each of them, once it is resized.

        Raises:
            EndsEarlyError: if the video ends before the clip does.
            DataError: if it cannot be read or decoded, or its frames change their size.
        """
        times = [(start + i * self.timing.stride) / part.rate for i in range(frames)]
        made: list[Pixels] = []
        last: LazyFrame | None = None
        try:
            for frame in self._cursor(part.video).frames(times, part):
                if frame is not last:
                    pixels = cut(self._resized(frame))
                made.append(pixels)
                last = frame
        except EndsEarlyError:
            raise
        except DataError:
            if not self._kept:
                self._close(part.video)
            raise
        return np.stack(made)

    def _resized(self, frame: LazyFrame) -> Picture:
        if self._kept:
            return frame.render()
        return self.fitting.resized(Image.fromarray(frame.render()), whole=False)

    def close(self) -> None:
        """Close the videos that are open."""
        for index in list(self._cursors):
            self._close(index)

    def none_usable(self, errors: Iterable[DataError]) -> str:
        """Message for a source of which every video that was asked for raised an error."""
        return none_usable(errors, self.source.location, self.fitting.image_size)

    def _cursor(self, index: int) -> _Cursor:
        if self._process != os.getpid():
            # What was opened before a fork reads from where the other process stands.
            self._forget()
        if index not in self._cursors:
            while len(self._cursors) >= OPEN and not self._kept:
                self._close(next(iter(self._cursors)))
            self._cursors[index] = _Cursor(self._video(index), self.source.path(index))
        self._cursors.move_to_end(index)
        return self._cursors[index]

    def _video(self, index: int) -> Video:
        video = self.source.open(index)
        if not self._kept:
            return video
        with video:
            return _Kept(video, self.fitting)

    def __del__(self) -> None:
        """Close the videos that are open: nobody knows which clip is the last one."""
        for index in list(self._cursors):
            self._close(index)

    def _close(self, index: int) -> None:
        if index in self._cursors:
            self._cursors.pop(index).close()


def none_usable(errors: Iterable[DataError], where: str, image_size: int) -> str:
    """Message for videos that all raised an error."""
    errors = list(errors)
    small = [error for error in errors if isinstance(error, TooSmallError)]
    others = [error for error in errors if not isinstance(error, TooSmallError)]
    text = f"none of {len(errors)} videos in {where} can be used"
    if others:
        text += f": {len(others)} cannot be read, such as {others[0]}"
    if small:
        width, height = max((error.size for error in small), key=min)
        text += (
            f"; {len(small)} are smaller than the crop of {image_size}×{image_size} pixels, the "
            f"largest of {width}×{height}. Set data.image_size to {min(width, height)} or less, or "
            f"data.resize to {image_size} or more, which enlarges them"
        )
    return text


class _Lengths(TorchDataset[Length | DataError]):
    """How long videos are, one by one, for a loader."""

    def __init__(self, reader: VideoReader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader.source)

    def __getitem__(self, index: int) -> Length | DataError:
        try:
            return self._reader.length(index)
        except DataError as error:
            return error


def lengths(reader: VideoReader, *, workers: int) -> list[Length | DataError]:
    """How long each video of a source is, or why it cannot be used; all are opened.

    Args:
        reader: of the videos.
        workers: processes that open them; fewer for a few videos.
    """
    workers = min(workers, len(reader.source) // VIDEOS_PER_WORKER)
    return list(loaded_one_by_one(_Lengths(reader), workers=workers))


class ClipRequest(NamedTuple):
    """A clip with all its random draws.

    Attributes:
        sample: global sample index within the stage.
        part: position among the parts.
        share: place of the clip in the part, in [0, 1).
        top, left: position of the crop in [0, 1].
        frames: of the clip; None for a single frame, which has no time axis.
    """

    sample: int
    part: int
    share: float
    top: float
    left: float
    frames: int | None


class Clips(TorchDataset[Crop]):
    """Clips by request, every frame of one cropped at one place.

    A video that cannot be used is replaced by the next one that can; one that ends early is used up to
    its end.

    Args:
        reader: of the videos.
        parts: what clips are taken from.
    """

    def __init__(self, reader: VideoReader, parts: Sequence[Part]) -> None:
        self._reader = reader
        self._parts = parts

    def __getitem__(self, request: ClipRequest) -> Crop:
        errors: list[DataError] = []
        for offset in range(len(self._parts)):
            part = self._parts[(request.part + offset) % len(self._parts)]
            try:
                return self._crop(part, request, errors)
            except EndsEarlyError as error:
                errors.append(error)
                left = part.cut_at(error.seconds)
                try:
                    if left.positions >= self._span(request):
                        return self._crop(left, request, errors)
                except DataError as again:
                    errors.append(again)
            except DataError as error:
                errors.append(error)
        return Crop(request.sample, None, (), self._reader.none_usable(errors))

    def _span(self, request: ClipRequest) -> int:
        return 1 if request.frames is None else self._reader.timing.span

    def _crop(self, part: Part, request: ClipRequest, errors: Sequence[DataError]) -> Crop:
        side = self._reader.fitting.image_size
        start = part.start(request.share, self._span(request))

        def cut(picture: Picture) -> Pixels:
            return crop(picture, (side, side), request.top, request.left)

        clip = self._reader.clip(part, start, request.frames or 1, cut)
        pixels = as_channels_first(clip)
        if request.frames is None:
            pixels = pixels.squeeze(1)
        return Crop(request.sample, pixels, tuple(dict.fromkeys(map(str, errors))), "")


def as_channels_first(clip: NDArray[np.uint8]) -> Tensor:
    """A clip (t, h, w, 3) as bytes (3, t, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(clip.transpose(3, 0, 1, 2)))
