"""The handwritten digits inside the scikit-learn distribution."""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rpiae.core.errors import DataError
from rpiae.core.runtime.names import printable
from rpiae.data.crops import ImageReader
from rpiae.data.image_dataset import ImageOptions, SplitDataset
from rpiae.data.labels import Labels
from rpiae.data.listed import EveryImage
from rpiae.data.orders import sampled
from rpiae.data.paths import packaged
from rpiae.data.sources import WithLabels

#: Side of a scan, in pixels, and what white is in it.
SIDE, WHITE = 8, 16

NUM_CLASSES = 10

#: What is gone through image by image.
Portion: TypeAlias = Literal["all", "train", "held-out"]


class Digits(NamedTuple):
    """Labelled scans.

    Attributes:
        scans: (n, 8, 8), uint8 from 0 (black) to 16 (white).
        labels: (n,), int32; the digit that each shows.
    """

    scans: NDArray[np.uint8]
    labels: NDArray[np.int32]


class DigitsSource(WithLabels):
    """Enlarged scans, as PNG files.

    Args:
        digits: the scans.
        side: what they are enlarged to, in pixels.
        indices: which of them; all where not given.
    """

    location = "digits"
    problems: tuple[str, ...] = ()

    def __init__(self, digits: Digits, side: int, indices: Sequence[int] | None = None) -> None:
        self._digits = digits
        self._side = side
        self._indices = range(len(digits.scans)) if indices is None else indices

    def _read_labels(self) -> Labels:
        names = tuple(map(str, range(NUM_CLASSES)))
        return Labels(self._digits.labels[list(self._indices)], names)

    def __len__(self) -> int:
        return len(self._indices)

    def name(self, index: int) -> str:
        return f"{self._indices[index]:04}"

    def path(self, index: int) -> str:
        return f"{self.location}#{self._indices[index]}"

    def read(self, index: int) -> bytes:
        picture = enlarged(self._digits.scans[self._indices[index]], self._side)
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()


class DigitsDataset(SplitDataset):
    """The 1,797 labelled scans of handwritten digits of scikit-learn, enlarged; see ``enlarged``.

    They are read from the installed package by path, without importing it; nothing is downloaded.

    Args:
        image_size: side of the crops, in pixels.
        resize: side that the scans are enlarged to, in pixels; ``image_size``, which shows all of
            them, where not given.
        workers: processes that load images; 0 where not given.
        held_out: scans that are held out: of every digit as many, up to one.
        portion: what ``every_image`` goes through.
        options: see ``BucketOptions``.

    Raises:
        DataError: if the file is missing from its package, or damaged.
        UsageError: if the options contradict each other.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (1998), UCI Machine
    Learning Repository; its test set.
    """

    def __init__(self, *, portion: Portion = "all", **options: Unpack[ImageOptions]) -> None:
        digits = read_digits(digits_file())
        side = options.get("resize") or options["image_size"]
        held_out = held_out_of_each(digits.labels, options.get("held_out", 360))
        options["workers"] = options.get("workers") or 0
        super().__init__(DigitsSource(digits, side), options, held_out=held_out)
        parts = {"train": self._training.tolist(), "held-out": held_out, "all": None}
        self._listed = DigitsSource(digits, side, parts[portion])

    def every_image(self) -> EveryImage:
        """The scans of the chosen portion in their order."""
        reader = ImageReader(self._listed, self._reader.fitting)
        return EveryImage(reader, workers=self._workers)


def enlarged(scan: NDArray[np.uint8], side: int) -> Image.Image:
    """A scan (8, 8) as an 8-bit grey picture, white on black.

    Its values are scaled to 0 … 255 and rounded; then Pillow's bicubic filter enlarges it. Means over
    the squares that stand for a pixel come near that pixel: at 32 pixels they are off by 1 of 16 (root
    mean square), which a classifier of scans does not notice.
    """
    levels = np.round(scan * (255 / WHITE)).astype(np.uint8)
    return Image.fromarray(levels).resize((side, side), Image.Resampling.BICUBIC)


def held_out_of_each(labels: NDArray[np.int32], held_out: int) -> list[int]:
    """Positions of labels, drawn once and for all, ascending: of every digit as many, up to one.

    Args:
        labels: (n,).
        held_out: how many; of a digit at most half are drawn.
    """
    shares = [len(share) for share in np.array_split(np.arange(held_out), NUM_CLASSES)]
    found: list[int] = []
    for digit, share in enumerate(shares):
        own = np.flatnonzero(labels == digit)
        found += own[sampled(len(own), min(share, len(own) // 2), "held-out", digit)].tolist()
    return sorted(found)


def digits_file() -> Path:
    """Where scikit-learn has the scans.

    Raises:
        DataError: if it has none.
    """
    return packaged("sklearn", "datasets/data/digits.csv.gz", distribution="scikit-learn")


def read_digits(file: Path) -> Digits:
    """The scans in a file: a row of 64 values and a label for each.

    Raises:
        DataError: if it is damaged, or holds something else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of an empty file
            rows = np.loadtxt(file, delimiter=",", dtype=np.uint8, ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{printable(str(file))} cannot be read: {error}") from None
    fits = rows.shape[1] == SIDE * SIDE + 1
    if not fits or rows[:, :-1].max() > WHITE or rows[:, -1].max() >= NUM_CLASSES:
        raise DataError(
            f"{printable(str(file))} is no table of scans: expected {SIDE * SIDE} values from 0 to "
            f"{WHITE} and a digit in every row"
        )
    return Digits(rows[:, :-1].reshape(-1, SIDE, SIDE), rows[:, -1].astype(np.int32))
