"""Random clips of videos, of which the last part in time is held out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import DataError
from rpiae.core.model.contracts import Batch, HeldOut, StageSteps
from rpiae.core.runtime.draws import generator, uniform
from rpiae.core.training.feed import as_floats
from rpiae.data.crops import Fitting, collated
from rpiae.data.image_dataset import FITTED
from rpiae.data.loading import Reports, chosen_workers, loaded_batches
from rpiae.data.orders import EpochOrder, Requests, sampled
from rpiae.data.video.clips import (
    ClipRequest,
    Clips,
    VideoReader,
    as_channels_first,
    lengths,
)
from rpiae.data.video.listed import EveryClip
from rpiae.data.video.sources import open_source
from rpiae.data.video.timing import Length, Timing, none_long_enough, parted, too_short

logger = logging.getLogger(__name__)

#: What of the videos is gone through clip by clip.
Portion = Literal["all", "train", "held-out"]

#: Clips that are measured on during training, at most.
HELD_OUT_CLIPS = 16

#: Videos that cannot be used and are named one by one; further ones are counted.
NAMED = 20


class VideoDataset:
    """Random square clips of the videos that a path stands for.

    Every video is opened once, at the beginning, to know its length. An epoch has as many clips as fit
    into the training parts of all videos one after the other, at least one of each; each of them is
    drawn from its own share of the video's time. Which clip a sample is, and what step is of single
    frames, depends on (seed, stage, sample) alone.

    Args:
        path, split, column, member, frames, stride, frame_rate, image_size, resize, workers, held_out,
            portion: see ``VideosConfig``.

    Attributes:
        num_images: clips to train on (an epoch).
        image_size: side of the square crops, in pixels.
        frames: of a clip.
        notices: what is said once, with the first batch.

    Raises:
        DataError: if nothing is there, or no video can be used.
        UsageError: if an option does not go with the others.
    """

    def __init__(
        self,
        *,
        path: str,
        image_size: int,
        split: str = "",
        column: str = "video",
        member: str = "",
        frames: int = 17,
        stride: int = 1,
        frame_rate: float | None = None,
        resize: int | None = None,
        workers: int | None = None,
        held_out: float = 0.1,
        portion: Portion = "all",
    ) -> None:
        self._workers = chosen_workers(workers)
        timing = Timing(frames=frames, stride=stride, frame_rate=frame_rate)
        source = open_source(path, split=split, column=column, member=member, workers=self._workers)
        fitting = Fitting(image_size=image_size, resize=resize)
        self._reader = VideoReader(source, fitting, timing)
        self._portion = portion
        usable, problems = self._usable()
        self._reader = self._reader.keeping(usable.values())
        self._parts = parted(usable, timing, held_out=held_out, location=source.location)
        counts = [max(1, part.clips(timing.span)) for part in self._parts.training]
        self._counts = np.array(counts)
        self._ends = np.cumsum(counts)
        self.num_images = int(self._ends[-1])
        self.image_size = image_size
        self.frames = frames
        self.notices = (*source.problems, *problems, *self._parts.notices)
        self._reports = Reports()

    def _usable(self) -> tuple[dict[int, Length], list[str]]:
        """The lengths of the videos that are long enough, and what is left out, in words."""
        source, timing = self._reader.source, self._reader.timing
        found = lengths(self._reader, workers=self._workers)
        errors = [length for length in found if isinstance(length, DataError)]
        known = {i: length for i, length in enumerate(found) if not isinstance(length, DataError)}
        if not known:
            raise DataError(self._reader.none_usable(errors))
        usable = {i: length for i, length in known.items() if length.positions >= timing.span}
        if not usable:
            text = none_long_enough(list(known.values()), timing, source.location)
            others = f". {len(errors)} more cannot be used, such as {errors[0]}" if errors else ""
            raise DataError(text + others)
        for index in sorted(known.keys() - usable.keys()):
            errors.append(too_short(known[index], source.path(index), timing))
        flawed = [length.problem for length in usable.values() if length.problem]
        left_out = [f"{error}; it is left out" for error in errors]
        return usable, [
            *_first_ones(left_out, f"videos in {source.location} are left out"),
            *_first_ones(flawed, f"videos in {source.location} lack something"),
        ]

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """Batches of the steps of a stage: clips (b, 3, t, s, s), and images (b, 3, s, s) at steps that
        are of single frames, as bytes.

        A video that is damaged is replaced by the next usable one, and reported the first time.

        Raises:
            DataError: if no video can be used.
        """
        order = EpochOrder(steps.seed, steps.stage, self.num_images)
        labels = steps.seed, steps.stage

        def request(sample: int) -> ClipRequest:
            single = steps.of_frames(sample // steps.batch_size)
            return self._request(
                sample, order.image(sample), uniform(*labels, sample, "clip"),
                uniform(*labels, sample, "crop-y"), uniform(*labels, sample, "crop-x"),
                frames=None if single else self.frames,
            )  # fmt: skip

        for batch in self._load(Requests(request, steps)):
            yield batch._replace(
                skipped=self._reports.fresh(batch.skipped),
                notices=self._reports.fresh(self.notices),
            )

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """Random square crops (count, 3, s, s) in [0, 1] of single training frames, drawn with
        replacement.

        Raises:
            DataError: if no video can be used.
        """

        def request(i: int) -> ClipRequest:
            draws = generator(seed, "crops", i)
            slot = int(torch.randint(self.num_images, (), generator=draws))
            place, top, left = torch.rand(3, generator=draws, dtype=torch.float64).tolist()
            return self._request(i, slot, place, top, left, frames=None)

        steps = [range(i, min(i + FITTED, count)) for i in range(0, count, FITTED)]
        parts = [as_floats(batch.inputs) for batch in self._load(Requests(request, steps))]
        return torch.cat(parts) if parts else torch.empty(0, 3, self.image_size, self.image_size)

    def held_out(self) -> HeldOut:
        """Centre crops of clips one after the other in the held-out parts, at most ``HELD_OUT_CLIPS``,
        which are drawn once and for all; those that cannot be used are logged and left out.

        Raises:
            DataError: if none of them can be used.
        """
        every = self._every("held-out")
        chosen = sampled(len(every), HELD_OUT_CLIPS, "held-out-clips")
        clips, groups = [], []
        errors: list[DataError] = []
        for index in chosen:
            try:
                clips.append(as_channels_first(every.read(index)))
            except DataError as error:
                logger.warning("held-out clip left out: %s", error)
                errors.append(error)
                continue
            groups.append(every.name(index))
        if not clips:
            raise DataError("held out: " + self._reader.none_usable(errors))
        return HeldOut(as_floats(torch.stack(clips)), tuple(groups), dict.fromkeys(groups, 1))

    def every_image(self) -> EveryClip:
        """All clips of the chosen portion of the videos, one after the other, as centre crops."""
        return self._every(self._portion)

    def _every(self, portion: Portion) -> EveryClip:
        parts = {
            "all": self._parts.wholes,
            "train": self._parts.training,
            "held-out": self._parts.held_out,
        }
        return EveryClip(self._reader, parts[portion], workers=self._workers, notices=self.notices)

    def _request(
        self, sample: int, slot: int, place: float, top: float, left: float, *, frames: int | None
    ) -> ClipRequest:
        """The request of a clip in a slot of the epoch, which is a share of a video's time."""
        part = int(np.searchsorted(self._ends, slot, side="right"))
        count = int(self._counts[part])
        number = slot - int(self._ends[part]) + count
        return ClipRequest(
            sample=sample, part=part, share=(number + place) / count, top=top, left=left,
            frames=frames,
        )  # fmt: skip

    def _load(self, requests: Requests[ClipRequest]) -> Iterator[Batch]:
        clips = Clips(self._reader, self._parts.training)
        return loaded_batches(clips, requests, collate=collated, workers=self._workers)


def _first_ones(texts: Sequence[str], others: str) -> list[str]:
    """Some texts one by one, and how many there are beyond them."""
    rest = len(texts) - NAMED
    return [*texts[:NAMED], *([f"{rest} more {others}"] if rest > 0 else [])]
