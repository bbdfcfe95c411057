"""A folder of numbered images as a video."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

from rpiae.core.errors import DataError
from rpiae.core.runtime.names import printable
from rpiae.data.images import Pixels, decode, shape_of
from rpiae.data.sources import EXTENSIONS
from rpiae.data.video.contracts import Frame, LazyFrame, Video, VideoFacts
from rpiae.data.video.files import USUAL_RATE

#: Gaps in the numbers that a message names.
_NAMED_GAPS = 3


def open_frame_folder(folder: Path, *, rate: Fraction = USUAL_RATE, name: str = "") -> FrameFolder:
    """Open a folder of numbered images.

    Args:
        folder: what they lie in, itself; folders in it are left alone.
        rate: frames per second.
        name: what messages call it; the path where not given.

    Raises:
        DataError: if it cannot be read, or holds no numbered images.
    """
    return FrameFolder(folder, rate=rate, name=name)


class FrameFolder(Video):
    """A folder of numbered images, in the order of their numbers: 2 comes before 10.

    The number is the last one in a file's name. Images without one are left out; a name's other parts
    come before its number in the order. Left-out images and missing numbers are a ``problem``; frames
    follow each other at the rate whether numbers are missing or not.

    Args, Raises: as ``open_frame_folder``.
    """

    def __init__(self, folder: Path, *, rate: Fraction = USUAL_RATE, name: str = "") -> None:
        self.name = printable(name or str(folder))
        numbered, others = self._listed(folder)
        if not numbered:
            raise DataError(
                f"{self.name}: there are no images with numbers in their names, such as 0001.png"
            )
        self._paths = [folder / file for _, _, file in numbered]
        self._rate = rate
        height, width = shape_of(self._paths[0], name=self._name_of(self._paths[0]))
        self.facts = VideoFacts(
            frames=len(self._paths),
            height=height,
            width=width,
            rate=rate,
            seconds=float(len(self._paths) / rate),
            audio=False,
        )
        found = [*_gaps([(before, number) for before, number, _ in numbered])]
        if others:
            found.append(f"images without a number are left out, such as {printable(others[0])}")
        if found:
            self.problem = f"{self.name}: {'; '.join(found)}"

    def _listed(self, folder: Path) -> tuple[list[tuple[str, int, str]], list[str]]:
        """Names before numbers, numbers and files, in order; and images without a number."""
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        except OSError as error:
            raise DataError(f"{self.name}: {error.strerror}") from None
        numbered, others = [], []
        for file in names:
            stem, ending = os.path.splitext(file)
            if ending.lower() not in EXTENSIONS or file.startswith("."):
                continue
            parts = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", stem, flags=re.DOTALL)
            if parts is None:
                others.append(file)
            else:
                numbered.append((parts[1] + parts[3], int(parts[2]), file))
        return sorted(numbered), others

    def _name_of(self, path: Path) -> str:
        return f"{self.name}/{printable(path.name)}"

    def frames(self, start: float = 0.0) -> Iterator[Frame]:
        return (Frame(frame.render(), frame.seconds) for frame in self.lazy_frames(start))

    def lazy_frames(self, start: float = 0.0) -> Iterator[LazyFrame]:
        # A time that stands for k/rate may lie a rounding error behind it.
        first = max(0, math.ceil(start * self._rate - 1e-6))
        for number, path in enumerate(itertools.islice(self._paths, first, None), start=first):
            yield LazyFrame(float(number / self._rate), partial(self._decoded, path))

    def _decoded(self, path: Path) -> Pixels:
        pixels = decode(path, name=self._name_of(path))
        if pixels.shape[:2] != (self.facts.height, self.facts.width):
            raise DataError(
                f"{self.name}: its frames are {self.facts.height}×{self.facts.width} pixels at "
                f"first and {pixels.shape[0]}×{pixels.shape[1]} in {printable(path.name)}; a video "
                "has frames of one size"
            )
        return pixels

    def close(self) -> None:
        """Nothing is open between two frames."""


def _gaps(numbers: list[tuple[str, int]]) -> Iterator[str]:
    """What is missing in ordered numbers, and what is there twice."""
    missing, double = [], []
    for (before, one), (other, two) in itertools.pairwise(numbers):
        if before == other and two > one + 1:
            missing.append(f"{one + 1}" if two == one + 2 else f"{one + 1} to {two - 1}")
        elif before == other and two == one:
            double.append(f"{one}")
    for what, found in (("numbers are missing", missing), ("numbers are there twice", double)):
        if found:
            more = f" and {len(found) - _NAMED_GAPS} more" if len(found) > _NAMED_GAPS else ""
            yield f"{what}: {', '.join(found[:_NAMED_GAPS])}{more}"
