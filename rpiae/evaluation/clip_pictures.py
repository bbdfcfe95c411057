"""Pictures of clips for people: two clips as one, and one line of pixels over time."""

from __future__ import annotations

import numpy as np
from PIL import Image

from rpiae.data.images import Pixels
from rpiae.evaluation.pictures import GAP

#: Frames up to which a slice shows every one; of longer clips every second one, every fourth, …
MOST_SHOWN = 2048


def beside(original: Pixels, made: Pixels) -> Pixels:
    """Frames next to each other, with a white gap.

    Args:
        original, made: (t, h, w, 3)

    Returns:
        (t, h, 2·w + GAP, 3)
    """
    gap = np.full((*original.shape[:2], GAP, 3), 255, np.uint8)
    return np.concatenate([original, gap, made], axis=2)


class SpaceTimeSlice:
    """The middle column of pixels over time, the original's above the reconstruction's.

    Time goes to the right, one frame per pixel. What stands still gives level lines and what moves
    slanted ones; flicker is seen as vertical stripes, and drift as lines that bend away. Frames are
    given piece by piece; memory does not grow with their number.
    """

    def __init__(self) -> None:
        self._columns: list[Pixels] = []
        self._seen = 0
        self._every = 1

    def add(self, original: Pixels, made: Pixels) -> None:
        """Look at the next frames.

        Args:
            original, made: (t, h, w, 3)
        """
        middle = original.shape[2] // 2
        for one, other in zip(original[:, :, middle], made[:, :, middle], strict=True):
            if self._seen % self._every == 0:
                gap = np.full((GAP, 3), 255, np.uint8)
                self._columns.append(np.concatenate([one, gap, other]))
            self._seen += 1
            if len(self._columns) > MOST_SHOWN:
                self._columns = self._columns[::2]
                self._every *= 2

    def picture(self) -> Image.Image:
        """What was seen so far: (2·h + GAP) pixels high, as wide as frames are shown."""
        return Image.fromarray(np.ascontiguousarray(np.stack(self._columns, axis=1)))
