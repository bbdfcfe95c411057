"""The videos of a dataset as a whole, frame by frame in the size that they are encoded in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from attrs import fields
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from rpiae.core.config.tree import Tree, unparse
from rpiae.core.errors import UsageError
from rpiae.core.model.resolve import part_config
from rpiae.data.configs import VideosConfig
from rpiae.data.images import Pixels, Shape, bicubic, centre_crop, short_side_size
from rpiae.data.listed import with_overrides
from rpiae.data.loading import chosen_workers
from rpiae.data.video.contracts import Video
from rpiae.data.video.shown import ShownTimes
from rpiae.data.video.sources import VideoSource, open_source

#: Fields of ``VideosConfig`` that say what clips are, and have no meaning for whole videos.
OF_CLIPS = ("frames", "stride", "frame_rate", "image_size", "held_out", "portion")


class WholeVideos:
    """All videos of a source, from their first frame to their last, all frames of each.

    Args:
        source: the videos.
        resize: short side that their frames are resized to, in pixels; their own size where not given.

    Attributes:
        location: what messages call the source.
        scale: the size that they are encoded in, in words.
        notices: what the source leaves out.
    """

    def __init__(self, source: VideoSource, *, resize: int | None = None) -> None:
        self._source = source
        self._resize = resize
        self.location = source.location
        self.scale = f"short side resized to {resize}" if resize else "natural size"
        self.notices = tuple(source.problems)

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """What the source calls a video."""
        return self._source.name(index)

    def open(self, index: int) -> Video:
        """A video, open.

        Raises:
            DataError: if it cannot be read.
        """
        return self._source.open(index)

    def size(self, video: Video) -> Shape:
        """Height and width that a video is encoded in."""
        shape = (video.facts.height, video.facts.width)
        return short_side_size(shape, self._resize) if self._resize else shape

    def chunks(
        self, video: Video, frames: int, times: ShownTimes | None = None
    ) -> Iterator[UInt8[Tensor, "1 3 t h w"]]:
        """A video's frames, so many at a time.

        Args:
            video: the video.
            frames: how many; the last time fewer.
            times: what watches when they are shown.

        Raises:
            DataError: if frames change their size, or none can be decoded.
        """
        size = self.size(video)
        gathered: list[Pixels] = []
        for frame in times.watched(video.frames()) if times else video.frames():
            gathered.append(self._sized(frame.pixels, size))
            if len(gathered) == frames:
                yield _clip(gathered)
                gathered = []
        if gathered:
            yield _clip(gathered)

    def _sized(self, pixels: Pixels, size: Shape) -> Pixels:
        if pixels.shape[:2] == size:
            return pixels
        return centre_crop(bicubic(Image.fromarray(pixels), size), *size)


def _clip(frames: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).unsqueeze(0)


def is_of_videos(data: str | Tree) -> bool:
    """Whether a dataset, as in ``rpiae build --data``, is one of videos.

    Raises:
        UsageError: if it is malformed.
    """
    return isinstance(part_config("datasets", data), VideosConfig)


def whole_videos(data: str | Tree, *, overrides: Sequence[str] = ()) -> tuple[WholeVideos, Tree]:
    """The whole videos of a dataset by its name, and the table of its fields.

    Args:
        data: a dataset of videos as in ``rpiae build --data``, or a table.
        overrides: ``data.field=value`` texts, as in ``--set``.

    Raises:
        UsageError: if it is malformed, or says what clips are to be.
        DataError: if there are no such videos.
    """
    config = part_config("datasets", with_overrides(data, overrides))
    assert isinstance(config, VideosConfig)
    given = [
        f"data.{a.name}"
        for a in fields(VideosConfig)
        if a.name in OF_CLIPS and getattr(config, a.name) != a.default
    ]
    if given:
        raise UsageError(
            f"whole videos are taken as they are, and {', '.join(given)} say what clips are: leave "
            "them out, or take clips with --clips"
        )
    source = open_source(
        config.path, split=config.split, column=config.column, member=config.member,
        workers=chosen_workers(config.workers),
    )  # fmt: skip
    return WholeVideos(source, resize=config.resize), unparse(config)
