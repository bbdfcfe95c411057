"""Images in Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rpiae.core.errors import DataError, UsageError
from rpiae.core.runtime.names import printable
from rpiae.data.labels import Labels, check_classes, read_labels, unique_names
from rpiae.data.members import IMAGES, Kind
from rpiae.data.paths import check_regular, existing
from rpiae.data.sources import WithLabels, walked
from rpiae.data.splits import chosen, layout_of_files

#: Row groups a process keeps in memory.
CACHED_ROW_GROUPS = 4

#: The column of labels where none is given.
LABELS = "label"


class ParquetSource(WithLabels):
    """Images in Parquet files, in a column of their content.

    Only the position of every row group is held in memory, and the row groups read last. A read
    takes a whole row group from the disk, so small ones (``datasets`` writes 100 rows) serve random
    access best.

    Args:
        path: a Parquet file, or a folder of ``*.parquet`` files, which are taken in sorted order.
        column: the column of images: their content, or a struct with ``bytes`` as Hugging Face
            ``datasets`` writes it.
        label_column: the column of labels; see ``read_labels``. Where not given, ``label``, if all
            files have such a column that can be one.
        split: a split, or a pattern of names; see ``rpiae.data.splits``.
        classes: the names of all classes, in the order of their numbers.
        kind: what the column holds.
        cached: row groups that a process keeps in memory.

    Raises:
        UsageError: if no file can be called so, or there are several splits and none is chosen.
        DataError: if there is no such file, it is not a Parquet file, lacks a column, or has no
            rows.
    """

    def __init__(
        self,
        path: str,
        column: str,
        label_column: str | None = None,
        *,
        split: str = "",
        classes: Sequence[str] = (),
        kind: Kind = IMAGES,
        cached: int = CACHED_ROW_GROUPS,
    ) -> None:
        check_classes(classes)
        self.location = printable(path)
        self._column = column
        self._kind = kind
        self._cached = cached
        self._classes = classes
        self._groups: list[tuple[int, int, int]] = []
        self._files, names, self.problems = parquet_files(path, split)
        self._names = unique_names(names)
        starts = [0]
        schemas = []
        for number, file in enumerate(self._files):
            schema, rows = _looked_at(file, column, kind)
            schemas.append(schema)
            first = 0
            for group, count in enumerate(rows):
                self._groups.append((number, group, first))
                starts.append(starts[-1] + count)
                first += count
        if starts[-1] == 0:
            raise DataError(f"{self.location} has no rows")
        self._starts = np.array(starts, dtype=np.int64)
        self._label_column, self._without_labels = _label_column(self._files, schemas, label_column)
        self._given_names = [_label_names(schema, self._label_column) for schema in schemas]
        self._required = label_column is not None
        self._cache()

    def _cache(self) -> None:
        self._images = lru_cache(self._cached)(self._row_group)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, index: int) -> str:
        number, _, first, row = self._locate(index)
        return f"{self._names[number]}#{first + row}"

    def path(self, index: int) -> str:
        number, _, first, row = self._locate(index)
        return f"{printable(str(self._files[number]))}#{first + row}"

    def read(self, index: int) -> bytes:
        number, group, _, row = self._locate(index)
        try:
            content = self._images(self._files[number], group)[row].as_py()
        except (pa.ArrowException, OSError, IndexError) as error:
            raise DataError(f"{self.path(index)}: {printable(str(error))}") from None
        if isinstance(content, dict):
            content = content["bytes"]
        if content is None:
            raise DataError(f"{self.path(index)}: the row holds no {self._kind.one} bytes")
        return bytes(content)

    def _locate(self, index: int) -> tuple[int, int, int, int]:
        position = int(np.searchsorted(self._starts, index, side="right")) - 1
        number, group, first = self._groups[position]
        return number, group, first, index - int(self._starts[position])

    def _row_group(self, file: Path, group: int) -> Any:
        # Opened anew for every row group and read without threads: neither handles nor Arrow's
        # thread pool live on in a forked worker.
        with pq.ParquetFile(file) as parquet:
            table = parquet.read_row_group(group, columns=[self._column], use_threads=False)
        return table.column(self._column)

    def _read_labels(self) -> Labels | None:
        if self._label_column is None:
            return None if not self._without_labels else _none(len(self), self._without_labels)
        what = f"{self.location}: column {self._label_column!r}"
        try:
            return read_labels(
                self._values(self._label_column), what, classes=self._classes,
                names=self._names_of_labels(what),
            )  # fmt: skip
        except DataError as error:
            if self._required:
                raise
            return _none(len(self), f"{error}. The images have no labels; set data.label_column")

    def _names_of_labels(self, what: str) -> tuple[str, ...]:
        """What the files name the numbers of their labels; empty where none does.

        Raises:
            DataError: if a number does not mean the same in all of them.
        """
        first, names = self._files[0], self._given_names[0]
        for file, other in zip(self._files, self._given_names, strict=True):
            if other != names:
                raise DataError(
                    f"{what} has not the same names of classes in {printable(str(first))} and "
                    f"{printable(str(file))}, so its numbers may mean different classes: read the files "
                    "one by one (data.split), or write them with the same names"
                )
        return names

    def _values(self, column: str) -> Iterator[object]:
        for position, (number, group, _) in enumerate(self._groups):
            file = self._files[number]
            try:
                with pq.ParquetFile(file) as parquet:
                    table = parquet.read_row_group(group, columns=[column], use_threads=False)
                found = table.column(column).to_pylist()
                if len(found) != self._starts[position + 1] - self._starts[position]:
                    raise ValueError(f"a row group has {len(found)} values")
                yield from found
            except (pa.ArrowException, OSError, ValueError) as error:
                raise DataError(
                    f"{printable(str(file))}: column {column!r} cannot be read: "
                    f"{printable(str(error))}"
                ) from None


def _none(count: int, notice: str) -> Labels:
    return Labels(np.full(count, -1, dtype=np.int32), (), (notice,))


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded images: binary, or a struct with ``bytes``."""
    kind = _stored(kind)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(_stored(kind.field(index).type))
    return _is_binary(kind)


def holds_labels(kind: pa.DataType) -> bool:
    """Whether the values of a column of this type can be labels."""
    kind = _stored(kind)
    return any(
        test(kind)
        for test in (
            pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_string,
            pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null,
        )
    )  # fmt: skip


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type of the values themselves, whatever they are wrapped in."""
    if isinstance(kind, pa.BaseExtensionType):
        return _stored(kind.storage_type)
    return _stored(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def parquet_files(path: str, split: str) -> tuple[list[Path], list[str], tuple[str, ...]]:
    """The files of a split, their names, and what is left out, in words.

    Raises:
        UsageError: if no file can be called so, or there are several splits and none is chosen.
        DataError: if there are none.
    """
    if not path:
        raise UsageError("data: name a Parquet file or a folder of them: parquet:PATH")
    place = existing(path, "file or folder")
    if not place.is_dir():
        check_regular(place)
        chosen(layout_of_files([place.name]), split, printable(path))
        return [place], [place.name], ()
    found = walked(place, (".parquet",))
    if not found.files:
        raise DataError(
            f"{printable(path)} has no Parquet files: no file in it or below it ends in .parquet"
        )
    names = chosen(layout_of_files(found.files), split, printable(path))
    return [place / name for name in names], names, found.problems


def _looked_at(file: Path, column: str, wanted: Kind) -> tuple[pa.Schema, list[int]]:
    """The schema of a file, and the rows of its row groups."""
    where = printable(str(file))
    try:
        with pq.ParquetFile(file) as parquet:
            schema, metadata = parquet.schema_arrow, parquet.metadata
            rows = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
                raise ValueError(f"its row groups have {rows}, and it {metadata.num_rows} rows")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{where} cannot be read as a Parquet file: {printable(str(error))}"
        ) from None
    names = [printable(name) for name in schema.names]
    if column not in schema.names:
        raise DataError(
            f"{where} has no column {column!r}; it has {', '.join(names)}. "
            f"Set data.column to the one that holds the {wanted.many}"
        )
    if names.count(column) > 1:
        raise DataError(f"{where} has {names.count(column)} columns {column!r}: rename one")
    kind = schema.field(column).type
    if not holds_images(kind):
        fitting = [
            n for n in schema.names if names.count(n) == 1 and holds_images(schema.field(n).type)
        ]
        others = f" ({', '.join(map(printable, fitting))})" if fitting else ""
        raise DataError(
            f"{where}: column {column!r} holds {printable(str(kind))}; {wanted.many} are binary, "
            "or struct<bytes: binary, path: string>. Set data.column to the one that holds the "
            f"{wanted.many}{others}"
        )
    return schema, rows


def _label_column(
    files: Sequence[Path], schemas: Sequence[pa.Schema], given: str | None
) -> tuple[str | None, str]:
    """The column of labels, and why there is none where one may be missed."""
    column = LABELS if given is None else given
    without: list[Path] = []
    for file, schema in zip(files, schemas, strict=True):
        where = printable(str(file))
        if schema.names.count(column) != 1:
            if given is not None:
                raise DataError(
                    f"{where} has no column {column!r}; it has "
                    f"{', '.join(map(printable, schema.names))}. "
                    "Set data.label_column to the one that holds the labels"
                )
            without.append(file)
        elif not holds_labels(kind := schema.field(column).type):
            text = (
                f"{where}: column {column!r} holds {printable(str(kind))}; labels are whole numbers, "
                "texts or booleans. Set data.label_column to another one"
            )
            if given is not None:
                raise DataError(text)
            return None, f"{text}; the images have no labels"
    if not without:
        return column, ""
    if len(without) == len(files):
        return None, ""
    return None, (
        f"{printable(str(without[0]))} and {len(without) - 1} more of {len(files)} files have no "
        f"column {column!r}; the images have no labels"
    )


def _label_names(schema: pa.Schema, column: str | None) -> tuple[str, ...]:
    """Names of the labels as ``datasets`` writes them into a file; empty where it did not."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    listed = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if listed else ()
