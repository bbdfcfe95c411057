"""Every clip of a source's videos, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rpiae.core.errors import DataError
from rpiae.core.model.contracts import Batch
from rpiae.data.crops import AdmFitting
from rpiae.data.images import Picture, Pixels, centre_crop
from rpiae.data.listed import EXAMINED, CentreCrop, CropRule, EveryImage, collated_crops
from rpiae.data.loading import loaded_batches
from rpiae.data.video.clips import VideoReader, as_channels_first
from rpiae.data.video.cursor import EndsEarlyError
from rpiae.data.video.timing import Part

#: Largest denominator of a frame rate; 1001 is that of broadcasting.
MOST_PARTS = 1001


class EveryClip(EveryImage):
    """Clips of parts of videos that follow each other without overlapping, as centre crops.

    Args:
        reader: the videos.
        parts: of them, in order; clips begin at the first position of each.
        workers: processes that load them; 0 loads in this process.
        notices: what is to be said of the source.

    Attributes:
        frames: of a clip.
        timing: when these are shown.
        parts: as given.
    """

    def __init__(
        self,
        reader: VideoReader,
        parts: Sequence[Part],
        *,
        workers: int = 0,
        notices: Sequence[str] = (),
    ) -> None:
        source, timing, side = reader.source, reader.timing, reader.fitting.image_size
        self._videos = reader
        self._labels = None
        self._workers = workers
        self._given = tuple(notices)
        self._ends = np.cumsum([part.clips(timing.span) for part in parts])
        self.parts = parts
        self.frames = timing.frames
        self.timing = timing
        self.location = source.location
        self.image_size = side
        self.rule = (
            f"clips of {timing.in_words()}, {reader.fitting.rule}, centre crop {side}×{side}"
        )
        self.labelled = False
        self.label_names = ()
        rest = sum(part.positions % timing.span for part in parts)
        total = sum(part.positions for part in parts)
        left = (f"{self.location}: {rest} of {total} frames, at the ends of videos, fill no clip",)
        self.notices = (*self._given, *(left if rest else ()))

    def cropped(self, rule: CropRule) -> EveryClip:
        """The same clips, cropped by a rule; see ``EveryImage.cropped``."""
        if rule == "centre":
            return self
        given = self._videos.fitting
        fitting = AdmFitting(image_size=given.image_size, resize=given.resize)
        reader = VideoReader(self._videos.source, fitting, self._videos.timing)
        return EveryClip(reader, self.parts, workers=self._workers, notices=self._given)

    @property
    def frame_rate(self) -> float:
        """Frames per second of the clips, on average over the time they last."""
        clips = [part.clips(self.timing.span) for part in self.parts]
        seconds = sum(n / part.rate for n, part in zip(clips, self.parts, strict=True))
        return sum(clips) / seconds / self.timing.stride if seconds else 0.0

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def video(self, index: int) -> int:
        """Which video of the source a clip is of."""
        return self._place(index)[0].video

    def start(self, index: int) -> int:
        """The position in its video at which a clip begins; see ``Timing``."""
        return self._place(index)[1]

    def rate(self, index: int) -> Fraction:
        """Frames per second of a clip."""
        rate = Fraction(self._place(index)[0].rate).limit_denominator(MOST_PARTS)
        return rate / self._videos.timing.stride

    def name(self, index: int) -> str:
        """What a clip is called: its video's name, and the position that it begins at."""
        part, start = self._place(index)
        return f"{self._videos.source.name(part.video)}@{start}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """A clip (t, s, s, 3).

        Raises:
            DataError: if it cannot be read or decoded.
        """
        part, start = self._place(index)
        return self._videos.clip(part, start, self.frames, self._cut)

    def __getitem__(self, index: int) -> CentreCrop:
        name = self.name(index)
        try:
            clip = self.read(index)
        except EndsEarlyError as error:  # one word for all clips of the file
            return CentreCrop(index, name, -1, None, str(error))
        except DataError as error:
            return CentreCrop(index, name, -1, None, f"{name}: {error}")
        return CentreCrop(index, name, -1, as_channels_first(clip), "")

    def batches(self, positions: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Batches of the clips (b, 3, t, s, s) at these positions; see ``EveryImage.batches``."""
        shape = (3, self.frames, self.image_size, self.image_size)
        try:
            yield from loaded_batches(
                self, positions, collate=partial(collated_crops, shape=shape), workers=self._workers
            )
        finally:
            self._videos.close()

    def none_usable(self) -> str:
        """Message for a source none of whose clips can be used."""
        errors = []
        for index in range(min(len(self), EXAMINED)):
            try:
                self.read(index)
            except DataError as error:
                errors.append(error)
        return self._videos.none_usable(errors)

    def _place(self, index: int) -> tuple[Part, int]:
        """The part that a clip is of, and the position in the video at which it begins."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        part, span = self.parts[number], self._videos.timing.span
        within = index - (int(self._ends[number - 1]) if number else 0)
        return part, part.first + within * span

    def _cut(self, picture: Picture) -> Pixels:
        return centre_crop(picture, self.image_size, self.image_size)
