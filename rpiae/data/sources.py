"""Where encoded images come from: folders and Parquet files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rpiae.core.errors import DataError, UsageError

#: File names that are taken for images, in any case.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

#: Row groups a process keeps in memory.
CACHED_ROW_GROUPS = 4


class ImageSource(Protocol):
    """Encoded images by index.

    Attributes:
        location: what messages call the source.
    """

    location: str

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What an image is called; unique within the source."""

    def path(self, index: int) -> str:
        """What messages call an image."""

    def read(self, index: int) -> bytes | Path:
        """The content of an image file, or its path.

        Raises:
            DataError: if it cannot be read.
        """


class FileSource:
    """Image files.

    Args:
        location: what messages call the source.
        names: what each image is called.
        paths: its files, as many as ``names``.
        classes: first parts of the names; the label of an image is the number of its own.
    """

    def __init__(
        self,
        location: str,
        names: Sequence[str],
        paths: Sequence[str],
        *,
        classes: Sequence[str] = (),
    ) -> None:
        self.location = location
        self.labelled = bool(classes)
        self.label_names = classes
        self._names = names
        self._paths = paths
        self._numbers = {name: number for number, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._names[index]

    def path(self, index: int) -> str:
        return self._paths[index]

    def read(self, index: int) -> Path:
        return Path(self._paths[index])

    def label(self, index: int) -> int | None:
        """The number of its class; None for an image outside of them."""
        return self._numbers.get(self._names[index].partition("/")[0])


def folder_source(folder: str) -> FileSource:
    """The images below a folder, sorted by their path relative to it, which is also their name.

    Links are followed; hidden files and folders are left out. Subfolders with images in or below
    them, sorted, are classes.

    Raises:
        DataError: if there is no such folder, or no image in it.
    """
    if not folder:
        raise UsageError("data: name a folder of images: folder:PATH")
    root = Path(folder).expanduser()
    if not root.exists():
        raise DataError(f"{folder}: there is no such folder; set data.path to a folder of images")
    if not root.is_dir():
        raise DataError(f"{folder} is a file; set data.path to a folder of images")
    names = sorted(_image_files(root))
    if not names:
        raise DataError(
            f"{folder} has no images: no file in it or below it ends in {', '.join(EXTENSIONS)}"
        )
    classes = sorted({name.partition("/")[0] for name in names if "/" in name})
    return FileSource(str(root), names, [str(root / name) for name in names], classes=classes)


def _image_files(root: Path) -> list[str]:
    found, visited = [], set()

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}")

    for folder, subfolders, files in os.walk(root, onerror=unreadable, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in visited else sorted(s for s in subfolders if s[0] != ".")
        if real in visited:
            continue
        visited.add(real)
        here = Path(folder).relative_to(root)
        found += [
            (here / file).as_posix()
            for file in files
            if file[0] != "." and os.path.splitext(file)[1].lower() in EXTENSIONS
        ]
    return found


class ParquetSource:
    """Images in Parquet files with the image layout of Hugging Face ``datasets``.

    Only the position of every row group is held in memory, and the row groups read last. A read
    takes a whole row group from the disk, so small ones (``datasets`` writes 100 rows) serve random
    access best.

    Args:
        path: a Parquet file, or a folder of ``*.parquet`` files, which are taken in sorted order.
        column: the column of images, a struct of ``bytes`` and ``path``.
        label_column: the column of labels, integers of which negative ones count as none. Where
            not given, ``label``, if all files have such a column.

    Raises:
        DataError: if there is no such file, it is not a Parquet file, lacks a column, or has no
            rows.
    """

    def __init__(self, path: str, column: str, label_column: str | None = None) -> None:
        self.location = path
        self._column = column
        self._groups: list[tuple[Path, int, int]] = []
        starts = [0]
        for file in parquet_files(path):
            row = 0
            for group, rows in enumerate(_rows_per_group(file, column)):
                self._groups.append((file, group, row))
                starts.append(starts[-1] + rows)
                row += rows
        if starts[-1] == 0:
            raise DataError(f"{path} has no rows")
        self._starts = np.array(starts, dtype=np.int64)
        files = list(dict.fromkeys(file for file, _, _ in self._groups))
        self._label_column = _label_column(files, label_column)
        self.labelled = self._label_column is not None
        self.label_names = _label_names(files[0], self._label_column)
        self._cache()

    def _cache(self) -> None:
        self._images = lru_cache(CACHED_ROW_GROUPS)(self._row_group)
        self._labels = lru_cache(CACHED_ROW_GROUPS)(self._row_group)

    def __getstate__(self) -> dict[str, Any]:
        caches = ("_images", "_labels")
        return {name: value for name, value in self.__dict__.items() if name not in caches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        file, _, first, row = self._locate(index)
        return f"{file.name}#{first + row}"

    def path(self, index: int) -> str:
        file, _, first, row = self._locate(index)
        return f"{file}#{first + row}"

    def read(self, index: int) -> bytes:
        file, group, _, row = self._locate(index)
        try:
            content = self._images(file, group, self._column)[row].as_py()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path(index)}: {error}") from None
        if content is None or content["bytes"] is None:
            raise DataError(f"{self.path(index)}: the row holds no image bytes")
        return bytes(content["bytes"])

    def label(self, index: int) -> int | None:
        """What the row says; None where it says nothing or a negative number."""
        file, group, _, row = self._locate(index)
        try:
            number = self._labels(file, group, self._label_column)[row].as_py()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path(index)}: {error}") from None
        return None if number is None or number < 0 else int(number)

    def _locate(self, index: int) -> tuple[Path, int, int, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, group, first = self._groups[number]
        return file, group, first, index - int(self._starts[number])

    def _row_group(self, file: Path, group: int, column: str) -> Any:
        # Opened anew for every row group and read without threads: neither handles nor Arrow's
        # thread pool live on in a forked worker.
        with pq.ParquetFile(file) as parquet:
            table = parquet.read_row_group(group, columns=[column], use_threads=False)
        return table.column(column)


def parquet_files(path: str) -> list[Path]:
    """A Parquet file, or those directly in a folder, sorted.

    Raises:
        DataError: if there are none.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise DataError(f"{path}: there is no such file or folder; set data.path to Parquet files")
    if not place.is_dir():
        return [place]
    files = sorted(place.glob("*.parquet"))
    if not files:
        raise DataError(f"{path} has no Parquet files: no file directly in it ends in .parquet")
    return files


def _rows_per_group(file: Path, column: str) -> list[int]:
    try:
        with pq.ParquetFile(file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as a Parquet file: {error}") from None
    if column not in schema.names:
        raise DataError(
            f"{file} has no column {column!r}; it has {', '.join(schema.names)}. "
            "Set data.column to the one that holds the images"
        )
    kind = schema.field(column).type
    if not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise DataError(
            f"{file}: column {column!r} holds {kind}; images are struct<bytes: binary, path: string>"
        )
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _label_column(files: Sequence[Path], given: str | None) -> str | None:
    """The column of labels: the given one, or ``label`` where all files have integers there."""
    column = given or "label"
    for file in files:
        schema = pq.read_schema(file)
        found = column in schema.names and pa.types.is_integer(schema.field(column).type)
        if not found and given is None:
            return None
        if column not in schema.names:
            raise DataError(
                f"{file} has no column {column!r}; it has {', '.join(schema.names)}. "
                "Set data.label_column to the one that holds the labels"
            )
        if not found:
            raise DataError(
                f"{file}: column {column!r} holds {schema.field(column).type}; labels are integers. "
                "Set data.label_column to another one"
            )
    return column


def _label_names(file: Path, column: str | None) -> tuple[str, ...]:
    """Names of the labels as ``datasets`` writes them into a file; empty where it did not."""
    metadata = pq.read_schema(file).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed else ()
