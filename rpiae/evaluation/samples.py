"""Sets of generated images to measure: out of a generator, a file or a folder."""

from __future__ import annotations

import contextlib
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from attrs import asdict
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray
from torch import Tensor

from rpiae.core.errors import DataError, RpiaeError, UsageError
from rpiae.core.model.geometry import to_8_bits
from rpiae.core.runtime.names import printable
from rpiae.core.training.feed import as_floats
from rpiae.data.images import decode
from rpiae.data.labels import Labels, read_labels, unique_names
from rpiae.data.sources import folder_source
from rpiae.evaluation.configs import GenerationEvaluationConfig
from rpiae.evaluation.images import ImageSet, Loaded
from rpiae.sampling.classes import equal_labels, random_labels, uneven
from rpiae.sampling.labels import IMAGES, LABELS, NAMES, indexed_labels
from rpiae.sampling.loaded import LoadedGenerator, image_batches
from rpiae.sampling.plan import generator_digest

#: File names that say the class of a sample, as ``rpiae sample`` gives them.
_NAMED = re.compile(r"[0-9]{5,}-(.+)\.[A-Za-z]+")

#: Samples that are made where nothing else is said.
COUNT = 5000


class SampleSet(ImageSet):
    """Base of the sets of generated images. Labels are the classes that were asked for.

    Args:
        location: where they come from, in words.
        shape: height and width of the images, in pixels.
        facts: how they were made, as JSON values; what is not known is left out.

    Raises:
        UsageError: if the images are not square.

    Attributes:
        facts: as given.
        all_classes: whether ``label_names`` are all classes that there are, not only those of samples.
    """

    all_classes = True

    def __init__(self, *, location: str, shape: tuple[int, int], facts: Mapping[str, Any]) -> None:
        height, width = shape
        if height != width:
            raise UsageError(
                f"the samples of {location} are {height}×{width} pixels, and real images are measured "
                "as square crops: nothing is resized, so they cannot be compared"
            )
        super().__init__(location=location, crop="as generated", image_size=height)
        self.facts = facts


class GeneratedSamples(SampleSet):
    """Samples that a generator makes as they are looked at; their positions are their indices.

    Args:
        generator: with its tokenizer.
        config: how many, of which classes, and how they are made.
        location: the generator's folder.
    """

    def __init__(
        self, generator: LoadedGenerator, config: GenerationEvaluationConfig, *, location: str
    ) -> None:
        facts, classes = generator.model.facts, generator.model.num_classes
        with torch.no_grad():
            blank = generator.tokenizer.decode(
                torch.zeros(1, *facts.shape, device=generator.device)
            )
        super().__init__(
            location=location,
            shape=(blank.shape[-2], blank.shape[-1]),
            facts=_made_by(generator, config),
        )
        self._generator = generator
        self._config = config
        count = config.count or COUNT
        self._asked: Sequence[int] = [classes] * count
        self.labelled = classes > 0 and config.labels != "none"
        if self.labelled and config.labels == "equal":
            self._asked = equal_labels(range(classes), count)
            self.notices = (uneven(range(classes), count),)
        elif self.labelled:
            self._asked = random_labels(classes, count, config.seed)
        if config.sampling.guide and config.sampling.guidance == 1:
            self.notices += ("a guide has no effect at guidance 1, which is none",)
        self.notices = tuple(filter(None, self.notices))
        self.label_names = facts.label_names

    def __len__(self) -> int:
        """How many there are."""
        return len(self._asked)

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Samples by their indices, batch by batch."""
        for batch in batches:
            labels = [self._asked[index] for index in batch]
            (images,) = image_batches(
                self._generator, self._config.sampling, labels, batch, seed=self._config.seed,
                batch_size=len(batch),
            )  # fmt: skip
            given = torch.tensor(labels) if self.labelled else torch.full((len(batch),), -1)
            yield Loaded(list(batch), to_8_bits(images, rounding=self._config.round), given)


def _made_by(generator: LoadedGenerator, config: GenerationEvaluationConfig) -> dict[str, Any]:
    """How samples are made, for the protocol."""
    made = {**asdict(config.sampling), "interval": list(config.sampling.interval)}
    guide = generator.guide_for(config.sampling)
    if guide is not None:
        made["guide_sha256"] = generator_digest(guide)
    if config.sampling.guidance == 1:  # whatever else is said of guidance has no effect
        made = {k: v for k, v in made.items() if k not in ("interval", "guide", "guide_sha256")}
    return {
        "labels": config.labels if generator.model.num_classes else "none",
        **made,
        "seed": config.seed,
        "precision": generator.precision,
        "round": config.round,
    }


class SampleFile(SampleSet):
    """The samples in a file of ADM's layout, read batch by batch: ``arr_0`` holds the images, uint8 (n,
    h, w, 3), and ``arr_1``, where it is there, their labels, −1 for none; ``label_names``, which
    ``rpiae sample`` adds, the names of all classes.

    Args:
        path: an ``.npz`` file.

    Raises:
        DataError: if it cannot be read.
        UsageError: if it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        name = printable(str(path))
        with _array(path, IMAGES) as (_, shape, kind):
            if len(shape) != 4 or shape[3] != 3 or kind != np.uint8 or not shape[0]:
                raise UsageError(
                    f"{name}: {IMAGES} holds {kind} of shape {list(shape)}; samples are uint8 of shape "
                    "(n, height, width, 3)"
                )
        super().__init__(location=name, shape=shape[1:3], facts={})
        self._count = shape[0]
        self._labels = _labels(path, self._count)
        self.labelled = self._labels is not None and bool((self._labels >= 0).any())
        self.label_names = _names(path, 0 if self._labels is None else int(self._labels.max()) + 1)

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Samples by their positions, which ascend, batch by batch.

        Raises:
            DataError: if the file is damaged.
        """
        side = self.image_size
        size = side * side * 3
        with _array(self._path, IMAGES) as (file, _, _):
            begun = file.tell()
            for batch in batches:
                pixels = np.empty((len(batch), size), np.uint8)
                for row, position in enumerate(batch):
                    file.seek(begun + position * size)
                    pixels[row] = _values(file, size, pixels.dtype)
                yield Loaded(
                    list(batch), _images(pixels.reshape(-1, side, side, 3)), self._of(batch)
                )

    def _of(self, positions: Sequence[int]) -> Tensor:
        if self._labels is None:
            return torch.full((len(positions),), -1)
        return torch.from_numpy(self._labels[list(positions)])


def _labels(path: Path, count: int) -> NDArray[np.int64] | None:
    """The labels of a file's samples; None where there are none.

    Raises:
        UsageError: if they are no labels of so many samples.
    """
    if not _holds(path, LABELS):
        return None
    with _array(path, LABELS) as (file, shape, kind):
        if shape != (count,) or kind.kind not in "iu":
            raise UsageError(
                f"{printable(str(path))}: {LABELS} holds {kind} of shape {list(shape)}; labels are whole "
                f"numbers of shape ({count},)"
            )
        labels = _values(file, count, kind).astype(np.int64)
    if labels.min() < -1:
        raise UsageError(
            f"{printable(str(path))}: {LABELS} holds {labels.min()}, which is no label: they are 0 and "
            "more, or -1 for no class"
        )
    return labels


def _names(path: Path, classes: int) -> tuple[str, ...]:
    """The names of a file's classes, by number; empty where it does not say them.

    Args:
        path: of the file.
        classes: that its labels are of, at least.

    Raises:
        UsageError: if they are no names of so many classes.
    """
    if not _holds(path, NAMES):
        return ()
    with _array(path, NAMES) as (file, shape, kind):
        if len(shape) != 1 or kind.kind != "U" or shape[0] < classes:
            raise UsageError(
                f"{printable(str(path))}: {NAMES} holds {kind} of shape {list(shape)}; names are texts, "
                f"one for each of {classes} classes or more"
            )
        return unique_names(_values(file, shape[0], kind).tolist())


def _holds(path: Path, name: str) -> bool:
    """Whether a file has an array of that name."""
    with _readable(path), zipfile.ZipFile(path) as archive:
        return f"{name}.npy" in archive.namelist()


@contextlib.contextmanager
def _array(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
    """An array of a file from its first value on, its shape and its type.

    Raises:
        DataError: if it cannot be read.
        UsageError: if there is none of that name.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            raise UsageError(
                f"{printable(str(path))} has no {name}: samples lie in {IMAGES}, as ADM's evaluation "
                "reads them"
            )
        with archive.open(f"{name}.npy") as file:
            read = {1: read_array_header_1_0, 2: read_array_header_2_0}.get(read_magic(file)[0])
            if read is None:
                raise ValueError("its arrays are of an unknown version")
            shape, by_columns, kind = read(file)
            if by_columns or kind.hasobject:
                raise ValueError(f"{name} is not stored row by row, as plain numbers")
            there = archive.getinfo(f"{name}.npy").file_size - file.tell()
            if math.prod(shape) * kind.itemsize != there:
                raise ValueError(f"{name} is of shape {list(shape)} and has {there} bytes")
            yield file, shape, kind


def _values(file: IO[bytes], count: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """The next values of an array."""
    content = file.read(count * kind.itemsize)
    if len(content) < count * kind.itemsize:
        raise ValueError("it ends before its last sample")
    return np.frombuffer(content, kind)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read."""
    try:
        yield
    except RpiaeError:
        raise
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        name = printable(str(path))
        raise DataError(f"{name} cannot be read as samples: {printable(str(reason))}") from None


def _images(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels (n, h, w, 3) as images (n, 3, h, w) in [0, 1]."""
    return as_floats(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())


class SampleFolder(SampleSet):
    """The image files below a folder, of which subfolders, or else the index that ``rpiae sample`` writes
    beside them, or names such as ``00012-cat.png``, say the class.

    Args:
        path: the folder.

    Raises:
        DataError: if there is no image in it, or its index is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._source = folder_source(str(path))
        height, width, _ = decode(self._source.read(0), name=self._source.name(0)).shape
        super().__init__(location=self._source.location, shape=(height, width), facts={})
        found, self.all_classes = self._found(path)
        self.notices = (*self._source.problems, *found.notices)
        self.label_names = found.names
        self.labelled = bool((found.numbers >= 0).any())
        self._labels = found.numbers

    def _found(self, path: Path) -> tuple[Labels, bool]:
        """Classes of the samples, and whether their names are all that there are."""
        source, files = self._source, [self._source.name(i) for i in range(len(self))]
        if source.labelled:
            numbers = [source.label(i) for i in range(len(self))]
            there = np.array([-1 if number is None else number for number in numbers], np.int32)
            return Labels(there, tuple(source.label_names), tuple(source.label_notices)), False
        if (indexed := indexed_labels(path, files)) is not None:
            return indexed, True
        names = [_NAMED.fullmatch(file) for file in files]
        if all(names):
            read = read_labels([name[1] for name in names if name], self.location)
            return Labels(read.numbers, read.names), False
        return Labels(np.full(len(files), -1, np.int32)), False

    def __len__(self) -> int:
        """How many there are."""
        return len(self._source)

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Samples by their positions, batch by batch.

        Raises:
            DataError: if one cannot be read, or is of another size than the first one.
        """
        side = self.image_size
        for batch in batches:
            pixels = np.empty((len(batch), side, side, 3), np.uint8)
            for row, position in enumerate(batch):
                name = self._source.name(position)
                found = decode(self._source.read(position), name=name)
                if found.shape != (side, side, 3):
                    raise DataError(
                        f"{self.location}: {printable(name)} is {found.shape[0]}×{found.shape[1]} pixels, "
                        f"and the first sample {side}×{side}: nothing is resized"
                    )
                pixels[row] = found
            labels = torch.from_numpy(self._labels[list(batch)]).long()
            yield Loaded(list(batch), _images(pixels), labels)
