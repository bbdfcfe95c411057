"""The videos of a dataset as a whole, frame by frame in the size that they are encoded in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from rpiae.data.images import Pixels, Shape, bicubic, centre_crop, short_side_size
from rpiae.data.sources import WithLabels
from rpiae.data.video.contracts import Video


class VideoSource(Protocol):
    """Videos by their position.

    Attributes:
        location: what messages call it.
        problems: what it leaves out.
    """

    @property
    def location(self) -> str: ...

    @property
    def problems(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def open(self, index: int) -> Video: ...


class WholeVideos:
    """All videos of a source, from their first frame to their last, all frames of each.

    Args:
        source: the videos.
        resize: short side that their frames are resized to, in pixels; their own size where not given.

    Attributes:
        location: what messages call the source.
        scale: the size that they are encoded in, in words.
        labelled: whether the source has labels.
        label_names: name of every label, by its number; empty where unknown.
        notices: what the source leaves out, and what is to be said of its labels.
    """

    def __init__(self, source: VideoSource, *, resize: int | None = None) -> None:
        self._source = source
        self._resize = resize
        self._labels = source if isinstance(source, WithLabels) and source.labelled else None
        self.location = source.location
        self.scale = f"short side resized to {resize}" if resize else "natural size"
        self.labelled = self._labels is not None
        self.label_names = tuple(self._labels.label_names) if self._labels else ()
        labels = source.label_notices if isinstance(source, WithLabels) else ()
        self.notices = (*source.problems, *labels)

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        """What the source calls a video."""
        return self._source.name(index)

    def label(self, index: int) -> int:
        """The label of a video; −1 where it has none."""
        label = self._labels.label(index) if self._labels else None
        return -1 if label is None else label

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

    def chunks(self, video: Video, frames: int) -> Iterator[UInt8[Tensor, "1 3 t h w"]]:
        """A video's frames, so many at a time.

        Raises:
            DataError: if frames change their size, or none can be decoded.
        """
        size = self.size(video)
        gathered: list[Pixels] = []
        for frame in video.frames():
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
