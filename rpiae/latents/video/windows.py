"""Windows of the latents of whole videos, each read without the rest of its video."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.latents.index import stored_videos
from rpiae.latents.layout import INDEX_FILE
from rpiae.latents.stored import WRITE_AGAIN
from rpiae.latents.video.files import StoredLatents, check_header
from rpiae.latents.video.layout import StoredVideo, VideoPlan

#: Where windows start: at a video's first latent step, or at every one that leaves room.
Starts: TypeAlias = Literal["first", "anywhere"]


class VideoWindows:
    """Latents of whole videos, window by window.

    Args:
        folder: of the latents.
        plan: what it holds.
        index: its index, complete.
        frames: latent steps of a window; whole videos where not given.
        starts: ``first``: one window per video, at its first latent step; ``anywhere``: one at every
            step, so that windows of a video overlap.
        size: (h, w) of the latents; videos of another size are left out. Any where not given.

    Attributes:
        videos: those with a window, in order.
        latent_shape: of an item, (C, t, h, w); 0 for a side in which items differ.
        labels: (n,), int64; −1, as sources of videos have none.

    Raises:
        UsageError: if there is no such window.
    """

    def __init__(
        self,
        folder: Path,
        plan: VideoPlan,
        index: Mapping[str, Any],
        *,
        frames: int | None,
        starts: Starts,
        size: Sequence[int] | None,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._frames = frames
        rows = stored_videos(index, folder / INDEX_FILE)
        self.videos = tuple(
            row
            for row in rows
            if (frames is None or row.latent_shape[1] >= frames)
            and (size is None or row.latent_shape[2:] == tuple(size))
        )
        if not self.videos:
            raise UsageError(_none_fits(folder, rows, frames, size))
        anywhere = frames is not None and starts == "anywhere"
        counts = [
            row.latent_shape[1] - frames + 1 if anywhere and frames is not None else 1
            for row in self.videos
        ]
        self._ends = np.cumsum(counts)
        self._files: dict[int, StoredLatents] = {}
        shapes = [self._shape(row) for row in self.videos]
        self.latent_shape = tuple(
            sides[0] if len({*sides}) == 1 else 0 for sides in zip(*shapes, strict=True)
        )
        self.labels = torch.full((len(self),), -1)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @functools.cached_property
    def positions(self) -> Tensor:
        """Index in the source of the video of each item."""
        counts = np.diff(self._ends, prepend=0)
        return torch.tensor(np.repeat([video.position for video in self.videos], counts))

    def window(self, index: int) -> tuple[StoredVideo, int]:
        """The video of an item, and the latent step that the item starts at."""
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.videos[number], index - (int(self._ends[number - 1]) if number else 0)

    def read(self, index: int, name: str) -> Tensor:
        """An item of a tensor, (C, t, h, w)."""
        video, start = self.window(index)
        return self.piece(video, name, start, start + (self._frames or video.latent_shape[1]))

    def piece(self, video: StoredVideo, name: str, start: int, stop: int) -> Tensor:
        """Latent steps of a video, (C, stop − start, h, w).

        Raises:
            CheckpointError: if they cannot be read, or are not what was written.
        """
        try:
            return self._opened(video).read(name, start, stop)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {WRITE_AGAIN}") from None

    def name(self, index: int) -> str:
        """What the source calls the video of an item."""
        return self.window(index)[0].name

    def rate(self, index: int) -> Fraction:
        """Frames per second of the video of an item."""
        return self.window(index)[0].frame_rate

    def verify(self) -> None:
        """Read all of these videos and compare it with its digests."""
        for video in self.videos:
            try:
                self._opened(video).verify()
            except CheckpointError as error:
                raise CheckpointError(f"{error}. {WRITE_AGAIN}") from None

    def in_order(self, name: str, size: int, limit: int) -> Iterator[tuple[Tensor, list[str]]]:
        """Items of a tensor, one at a time where they differ in size, with their names."""
        size = size if all(self.latent_shape) else 1
        for start in range(0, limit, size):
            items = range(start, min(start + size, limit))
            yield torch.stack([self.read(i, name) for i in items]), [self.name(i) for i in items]

    def _shape(self, video: StoredVideo) -> tuple[int, ...]:
        channels, steps, h, w = video.latent_shape
        return channels, self._frames or steps, h, w

    def _opened(self, video: StoredVideo) -> StoredLatents:
        if video.position not in self._files:
            metadata = check_header(self._plan, self._folder, video.position, sha256=video.sha256)
            if metadata.get("latent_shape") != list(video.latent_shape):
                raise CheckpointError(
                    f"{self._folder / video.file} is damaged: its latents are not those that its "
                    "index says"
                )
            self._files[video.position] = StoredLatents(self._folder / video.file, metadata)
        return self._files[video.position]


def _none_fits(
    folder: Path, rows: Sequence[StoredVideo], frames: int | None, size: Sequence[int] | None
) -> str:
    """Message for windows that no video has."""
    longest = max(row.latent_shape[1] for row in rows)
    sizes = Counter(row.latent_shape[2:] for row in rows)
    there = ", ".join(f"{h}×{w} ({count})" for (h, w), count in sizes.most_common(5))
    asked = [f"{frames} latent steps"] if frames is not None else []
    asked += ["latents of " + "×".join(map(str, size))] if size is not None else []
    return (
        f"no video in {folder} has {' and '.join(asked)}: the longest has {longest} steps, and the "
        f"sizes are {there}"
    )
