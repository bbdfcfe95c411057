"""An index of local tar shards: where each image and its label lie, so that any can be read alone."""

from __future__ import annotations

import json
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from attrs import frozen
from torch.utils.data import Dataset as TorchDataset

from rpiae.core.errors import DataError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable
from rpiae.data.labels import Labels, check_classes, read_labels, unique_names
from rpiae.data.loading import loaded_one_by_one
from rpiae.data.members import IMAGES, READING, Kind, Member, Sample, Tally, samples
from rpiae.data.readers import Encoded
from rpiae.data.sources import WithLabels

#: Shards for which one more process that reads headers is worth its start.
SHARDS_PER_WORKER = 8

#: The member that holds the label where none is given.
LABELS = "cls"

#: Bytes of a member that holds a label.
MOST_OF_LABEL = 1 << 20

#: Bytes behind an archive's end that are looked at for another one.
AFTER_END = 1 << 16


@frozen
class Wanted:
    """What is taken of a sample.

    Attributes:
        member: ending of the image; see ``Sample.images``.
        label: ending of the member that holds the label.
        kind: what is looked for.
    """

    member: str
    label: str
    kind: Kind = IMAGES


class TarIndex(NamedTuple):
    """Where the images of a shard are.

    Attributes:
        names: their members, each once.
        offsets, sizes: position and length of their content, in bytes.
        labels: position and length of the members that hold their labels; (0, 0) for none.
        problem: what is wrong with the rest of the shard.
        tally: what is taken and left out of it.
    """

    names: Sequence[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[tuple[int, int]]
    problem: str
    tally: Tally


def index_tar(path: Path, wanted: Wanted) -> TarIndex:
    """Index an uncompressed local shard by its headers alone; nothing is raised."""
    found: list[tuple[tarfile.TarInfo, tuple[int, int]]] = []
    problems: list[str] = []
    without: list[str] = []
    kind = wanted.kind
    tally = Tally(kind)
    shard = printable(str(path))
    try:
        with open_regular(path) as file:
            length = file.seek(0, 2)
            file.seek(0)

            def visit(_: str, member: tarfile.TarInfo) -> None:
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"it ends inside {printable(member.name)}")

            with tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as archive:
                for sample in samples(archive, tally, visit):
                    images = sample.images(wanted.member, kind)
                    tally.add(sample, images, wanted.member)
                    without += [] if images else [printable(sample.key)]
                    for ending in images if wanted.member == "*" else images[:1]:
                        found.append((sample.members[ending], _label_place(sample, wanted.label)))
                end: int = archive.offset
            file.seek(end)
            if file.read(AFTER_END).strip(b"\0"):
                problems.append(
                    f"{shard}: its archive ends at byte {end} of {length}; what follows is left out"
                )
    except READING as error:
        used = f"the {len(found)} {kind.many} before are used" if found else "the shard is left out"
        problems.append(f"{shard}: {reason(error)}; {used}")
    problems += [without_image(shard, without, kind)] if without else []
    if not found and not problems:
        problems.append(f"{shard}: there are no {kind.many} in it; the shard is left out")
    return TarIndex(
        unique_names([member.name for member, _ in found]),
        [member.offset_data for member, _ in found],
        [member.size for member, _ in found],
        [place for _, place in found],
        "; ".join(problems),
        tally,
    )


def _label_place(sample: Sample, label: str) -> tuple[int, int]:
    for ending, member in sample.members.items():
        if ending.lower() == label:
            return member.offset_data, member.size
    return 0, 0


def without_image(shard: str, keys: Sequence[str], kind: Kind = IMAGES) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{shard}: {keys[0]}{more} left out, no member of which is {kind.article} {kind.one}"


def reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(str(text))


class _Indexing(TorchDataset[TarIndex]):
    """The indices of shards, one by one, for a loader."""

    def __init__(self, paths: Sequence[Path], wanted: Wanted) -> None:
        self._paths = paths
        self._wanted = wanted

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> TarIndex:
        return index_tar(self._paths[number], self._wanted)


class IndexedTars(WithLabels):
    """Images in uncompressed local tar shards, in the order of shards and members.

    The headers are read once, and their positions held in memory; every image can then be read by
    itself, or one shard after the other.

    Args:
        location: what messages call the shards.
        paths: the shards.
        member: see ``WebDatasetConfig``.
        label_column: see ``WebDatasetConfig``.
        classes: the names of all classes, in the order of their numbers.
        workers: processes that read the headers; fewer for a few shards.
        problems: what is left out of the list of shards, in words.
        kind: what is looked for.

    Attributes:
        problems: what is left out, in words.

    Raises:
        DataError: if no shard has an image, or no sample the member of labels that was asked for.
    """

    def __init__(
        self,
        location: str,
        paths: Sequence[Path],
        member: str,
        *,
        label_column: str | None = None,
        classes: Sequence[str] = (),
        workers: int = 0,
        problems: Sequence[str] = (),
        kind: Kind = IMAGES,
    ) -> None:
        check_classes(classes)
        self.location = printable(location)
        self._paths = paths
        self._classes = classes
        self._required = label_column is not None
        ending, self._fields = label_member(LABELS if label_column is None else label_column)
        self._label = ending
        indexing = _Indexing(paths, Wanted(normal_ending(member), ending, kind))
        workers = min(workers, len(paths) // SHARDS_PER_WORKER)
        self._shards: list[TarIndex] = list(loaded_one_by_one(indexing, workers=workers))
        tally = Tally(kind)
        for shard in self._shards:
            tally.merge(shard.tally)
        broken = [shard.problem for shard in self._shards if shard.problem]
        self.problems = (*problems, *broken, *tally.notices(self.location))
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard.names))
        endings = ", ".join(printable(name) for name, _ in tally.endings.most_common(6))
        if not self._starts[-1]:
            there = f". Its members end in {endings}; set data.member" if endings else ""
            raise DataError(
                f"{self.location} has no usable {kind.one}: {'; '.join(broken[:3])}{there}"
            )
        if self._required and not tally.endings[ending]:
            raise DataError(
                f"{self.location} has no members that end in {ending!r}; they end in {endings}. Set "
                "data.label_column to the one that holds the labels, such as 'cls' or 'json.label'"
            )
        files = unique_names([path.name for path in paths])
        if len({path.name for path in paths}) < len(paths):  # of several folders
            files = unique_names([str(path) for path in paths])
        self._files = files

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        shard, position = self._locate(index)
        return f"{self._files[shard]}/{self._shards[shard].names[position]}"

    def path(self, index: int) -> str:
        shard, position = self._locate(index)
        return f"{printable(str(self._paths[shard]))}/{self._shards[shard].names[position]}"

    def read(self, index: int) -> bytes:
        shard, position = self._locate(index)
        try:
            with self._paths[shard].open("rb") as file:
                return _content(file, self._shards[shard], position)
        except OSError as error:
            raise DataError(f"{self.path(index)}: {reason(error)}") from None

    def place(self, index: int) -> tuple[Path, int, int]:
        """The shard that an image lies in, and position and length of its content, in bytes."""
        shard, position = self._locate(index)
        found = self._shards[shard]
        return self._paths[shard], found.offsets[position], found.sizes[position]

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _read_labels(self) -> Labels | None:
        if not any(size for shard in self._shards for _, size in shard.labels):
            return None
        what = f"{self.location}: member {'.'.join((self._label, *self._fields))!r}"
        try:
            return read_labels(self._values(), what, classes=self._classes)
        except DataError as error:
            if self._required:
                raise
            told = f"{error}. The images have no labels; set data.label_column"
            return Labels(np.full(len(self), -1, dtype=np.int32), (), (told,))

    def _values(self) -> Iterator[object]:
        for path, shard in zip(self._paths, self._shards, strict=True):
            try:
                with path.open("rb") as file:
                    for name, (offset, size) in zip(shard.names, shard.labels, strict=True):
                        if size > MOST_OF_LABEL:
                            raise DataError(f"{path}: the label of {name} has {size} bytes")
                        file.seek(offset)
                        content = file.read(size)
                        yield label_value(content, self._fields, f"{printable(str(path))}/{name}")
            except OSError as error:
                raise DataError(f"{printable(str(path))}: {reason(error)}") from None

    def stream(self) -> IndexedStream:
        """The same images, shard after shard."""
        return IndexedStream(self.location, self._paths, self._shards, self.problems)


def normal_ending(member: str) -> str:
    """An ending of a member as it is compared: in small letters, without a dot before it."""
    return member.lower().removeprefix(".")


def label_member(label_column: str) -> tuple[str, tuple[str, ...]]:
    """The ending of the member that holds labels, and the fields that lead to them if it is JSON."""
    parts = label_column.removeprefix(".").split(".")
    lower = [part.lower() for part in parts]
    end = lower.index("json") + 1 if "json" in lower else len(parts)
    return ".".join(lower[:end]), tuple(parts[end:])


def label_value(content: bytes, fields: Sequence[str], where: str) -> object:
    """What a member says of its sample's label; None where it says nothing.

    Raises:
        DataError: if it is no text, or no JSON where fields are wanted.
    """
    try:
        text = content.decode().strip()
        if not fields or not text:
            return text
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the label of {where} cannot be read: {printable(str(error))}") from None
    for name in fields:
        value = value.get(name) if isinstance(value, dict) else None
    return value


class IndexedStream:
    """Indexed shards that are read from their beginning; see ``Stream``."""

    def __init__(
        self,
        location: str,
        paths: Sequence[Path],
        shards: Sequence[TarIndex],
        problems: tuple[str, ...],
    ) -> None:
        self.location = location
        self.total: int | None = sum(len(shard.names) for shard in shards)
        self.problems = problems
        self._paths = paths
        self._shards = shards

    def __len__(self) -> int:
        return len(self._paths)

    def shard(self, index: int) -> str:
        return printable(str(self._paths[index]))

    def count(self, index: int) -> int:
        return len(self._shards[index].names)

    def images(self, index: int) -> Iterator[Encoded | str]:
        shard, where = self._shards[index], self.shard(index)
        try:
            with self._paths[index].open("rb") as file:
                for position, name in enumerate(shard.names):
                    yield Encoded(f"{where}/{name}", _content(file, shard, position))
        except OSError as error:
            raise DataError(f"{where}: {reason(error)}") from None


def _content(file: Any, shard: TarIndex, position: int) -> bytes:
    file.seek(shard.offsets[position])
    content = file.read(shard.sizes[position])
    assert isinstance(content, bytes)
    return content
