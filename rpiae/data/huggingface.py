"""Images of the Hugging Face ``datasets`` library, by index or as a stream; no code of a hub runs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import datasets
import numpy as np

from rpiae.core.errors import DataError, FetchError, UsageError
from rpiae.core.runtime.names import printable, shown
from rpiae.data.image_dataset import ImageOptions, SplitDataset
from rpiae.data.labels import Labels, check_classes, read_labels
from rpiae.data.parquet import holds_images, holds_labels
from rpiae.data.paths import as_path, existing
from rpiae.data.readers import Encoded
from rpiae.data.sources import WithLabels, walked
from rpiae.data.streams import StreamDataset, check_not_streaming

#: Files that ``save_to_disk`` leaves in its folder: of one split, and of several.
SAVED = "state.json"
SAVED_SPLITS = "dataset_dict.json"

#: Major version of ``datasets`` from which on no code that comes with a dataset is run.
OLDEST = 4

#: Rows of a stream that are read at once, and labels.
READ = 16
READ_LABELS = 10_000

#: The column of labels where none is given.
LABELS = "label"

_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?", re.ASCII)


class HubSource(WithLabels):
    """Images of a dataset by index; see ``ImageSource``.

    Args:
        data: a ``datasets.Dataset`` whose column of images is not decoded.
        column: the column.
        location: what messages call it.
        split: the split, which names the images.
        labels: a ``datasets.Dataset`` of the column of labels alone, where there is one.
        label_notice: why there is none, where one may be missed.
        required: whether labels were asked for.
        classes: the names of all classes, in the order of their numbers.
        problems: what is left out, in words.
    """

    def __init__(
        self,
        data: Any,
        column: str,
        *,
        location: str,
        split: str,
        labels: Any = None,
        label_notice: str = "",
        required: bool = False,
        classes: Sequence[str] = (),
        problems: Sequence[str] = (),
    ) -> None:
        self.location = printable(location)
        self.problems = tuple(problems)
        self._data = data
        self._column = column
        self._split = printable(split)
        self._label_data = labels
        self._label_notice = label_notice
        self._required = required
        self._classes = classes

    def _read_labels(self) -> Labels | None:
        none = np.full(len(self), -1, dtype=np.int32)
        if self._label_data is None:
            return Labels(none, (), (self._label_notice,)) if self._label_notice else None
        ((column, feature),) = self._label_data.features.items()
        names = feature.names if isinstance(feature, datasets.ClassLabel) else ()
        try:
            return read_labels(
                self._values(column), f"{self.location}: column {column!r}", classes=self._classes,
                names=names,
            )  # fmt: skip
        except DataError as error:
            if self._required:
                raise
            return Labels(none, (), (f"{error}. The images have no labels; set data.label_column",))

    def _values(self, column: str) -> Iterator[object]:
        blocks = self._label_data.with_format("arrow").iter(batch_size=READ_LABELS)
        try:
            for block in blocks:
                yield from block.column(column).to_pylist()
        except Exception as error:  # Arrow or the file system
            raise DataError(
                f"{self.location}: column {column!r} cannot be read: {_first_line(error)}"
            ) from None

    def __len__(self) -> int:
        return len(self._data)

    def name(self, index: int) -> str:
        return f"{self._split}#{index}"

    def path(self, index: int) -> str:
        return f"{self.location}: {self.name(index)}"

    def read(self, index: int) -> bytes | Path:
        try:
            found = content(self._data[index][self._column])
        except Exception as error:  # Arrow, the file system or the hub
            raise DataError(f"{self.path(index)}: {_first_line(error)}") from None
        if found is None:
            raise DataError(f"{self.path(index)}: the row holds no image bytes")
        return found


class HubStream:
    """Images of a dataset shard by shard; see ``Stream``.

    Args:
        data: a ``datasets.IterableDataset`` whose column of images is not decoded.
        column: the column.
        location: what messages call it.
        total: number of images, where it is known.
        problems: what is left out, in words.
    """

    def __init__(
        self,
        data: Any,
        column: str,
        *,
        location: str,
        total: int | None,
        problems: tuple[str, ...] = (),
    ) -> None:
        self.location = printable(location)
        self.total = total
        self.problems = problems
        self._data = data
        self._column = column

    def __len__(self) -> int:
        return int(self._data.num_shards)

    def shard(self, index: int) -> str:
        return f"{self.location}: shard {index}"

    def count(self, index: int) -> int | None:
        return self.total if len(self) == 1 else None

    def images(self, index: int) -> Iterator[Encoded | str]:
        # Iterated row by row, it would split itself over the loading processes.
        blocks = self._data.shard(num_shards=len(self), index=index).iter(batch_size=READ)
        number = 0
        while True:
            try:
                block = next(blocks)
            except StopIteration:
                return
            except Exception as error:  # Arrow, the file system or the hub
                raise DataError(f"{self.shard(index)}: {_first_line(error)}") from None
            for cell in block[self._column]:
                yield Encoded(f"{self.shard(index)}, image {number}", content(cell))
                number += 1


def content(cell: Any) -> bytes | Path | None:
    """What a cell of an undecoded column of images holds: bytes, a path, or nothing."""
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, dict):
        return None
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    return Path(cell["path"]) if cell.get("path") else None


def huggingface(
    *,
    path: str,
    split: str = "train",
    column: str = "image",
    label_column: str | None = None,
    classes: Sequence[str] = (),
    subset: str = "",
    revision: str = "",
    streaming: bool = False,
    num_images: int | None = None,
    buffer: int = 1024,
    readers: int = 8,
    **options: Unpack[ImageOptions],
) -> SplitDataset | StreamDataset:
    """Images of a dataset on the Hugging Face hub or in a local folder.

    Args:
        path: the hub's id, or a folder: one written by ``save_to_disk``, or of image or Parquet
            files.
        split, column, label_column, classes, subset, revision: see ``HuggingFaceDatasetConfig``.
        streaming, num_images, buffer, readers: see ``StreamableDatasetConfig``.
        options: see ``ImageDatasetConfig``.

    Raises:
        DataError: if it cannot be loaded, or has no such split or column.
        FetchError: if it is not in the cache, and HF_HUB_OFFLINE is set.
        UsageError: if an option does not go with the others.
    """
    if not path:
        raise UsageError("data: name a dataset: hf:OWNER/NAME or hf:FOLDER")
    if int(datasets.__version__.partition(".")[0]) < OLDEST:
        raise UsageError(
            f"datasets {datasets.__version__} may run code that comes with a dataset: "
            f'pip install "datasets>={OLDEST}"'
        )
    check_classes(classes)
    folder = _folder(path)
    whole, total, problems = _loaded(
        path, folder, split=split, subset=subset, revision=revision, streaming=streaming
    )
    data = _undecoded(whole, column, path)
    if total == 0:
        raise DataError(f"{printable(path)} has no rows in split {split!r}")
    if not streaming:
        check_not_streaming(num_images)
        labels, notice = _label_data(whole, label_column, path)
        source = HubSource(
            data, column, location=path, split=split, labels=labels, label_notice=notice,
            required=label_column is not None, classes=classes, problems=problems,
        )  # fmt: skip
        return SplitDataset(source, options)
    return StreamDataset(
        HubStream(data, column, location=path, total=total, problems=problems),
        {**options, "num_images": num_images, "buffer": buffer, "readers": readers},
    )


def _folder(path: str) -> Path | None:
    """The local folder that a path names; None for an id of the hub."""
    folder = as_path(path)
    if folder.is_absolute() or path.startswith(("./", "../", "~")) or os.path.exists(folder):
        if not existing(path, "folder").is_dir():
            raise DataError(
                f"{printable(path)} is a file: name its folder, or take parquet:{printable(path)}"
            )
        return folder
    if not _ID.fullmatch(path) or path in datasets.packaged_modules._PACKAGED_DATASETS_MODULES:
        # A name such as "csv" would have the library look through the working folder.
        raise UsageError(
            f"data.path = {shown(path)} is neither a folder nor an id of a dataset on the hub, "
            "OWNER/NAME"
        )
    return None


def _loaded(
    path: str, folder: Path | None, *, split: str, subset: str, revision: str, streaming: bool
) -> tuple[Any, int | None, tuple[str, ...]]:
    """The dataset, its number of rows where it is known, and what is left out."""
    try:
        if folder and ((folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file()):
            return (*_saved(folder, path, split, streaming), ())
        builder = datasets.load_dataset_builder(
            str(folder.absolute()) if folder else path, name=subset or None,
            revision=revision or None,
        )  # fmt: skip
        problems = _unused(folder, builder) if folder else ()
        if not streaming:
            builder.download_and_prepare()
            data = builder.as_dataset(split=split)
            return data, len(data), problems
        data = builder.as_streaming_dataset(split=split)
        told = (data.info.splits or {}).get(split)
        # Where nobody has counted, it says 0.
        return data, (told.num_examples or None) if told else None, problems
    except DataError:
        raise
    except Exception as error:  # the hub, the file system, a builder: each has errors of its own
        if folder is None and datasets.config.HF_HUB_OFFLINE:
            raise FetchError(
                f"{path} is not in the cache of the datasets library, and HF_HUB_OFFLINE is set: "
                f"unset it, or name a folder (hf:FOLDER). ({_first_line(error)})"
            ) from None
        raise DataError(_not_loaded(path, folder, error)) from None


def _saved(folder: Path, path: str, split: str, streaming: bool) -> tuple[Any, int]:
    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(
                f"{printable(path)} has no split {split!r}; it has {', '.join(data)}. Set data.split"
            )
        data = data[split]
    elif data.split is not None and str(data.split) != split:
        raise DataError(
            f"{printable(path)} holds split {str(data.split)!r} and not {split!r}: set data.split to "
            "what it holds"
        )
    rows = len(data)
    if not streaming or not rows:
        return data, rows
    return data.to_iterable_dataset(num_shards=len(data.cache_files)), rows


def _unused(folder: Path, builder: Any) -> tuple[str, ...]:
    """What of a folder's files the library takes into no split, in words."""
    endings = datasets.packaged_modules._MODULE_TO_EXTENSIONS.get(builder.name, ())
    taken = (builder.config.data_files or {}).values()
    used = {os.path.realpath(file) for files in taken for file in files}
    there = [f for f in walked(folder, endings).files if os.path.realpath(folder / f) not in used]
    if not there:
        return ()
    return (
        f"{printable(str(folder))}: {len(there)} files belong to no split and are left out, such as "
        f"{printable(there[0])}; the library chooses by names: folder:PATH or parquet:PATH reads all",
    )


def _label_data(data: Any, given: str | None, path: str) -> tuple[Any, str]:
    """The column of labels alone, and why there is none where one may be missed."""
    column = LABELS if given is None else given
    if column not in data.features:
        if given is None:
            return None, ""
        raise DataError(
            f"{printable(path)} has no column {column!r}; it has {_listed(data.features)}. Set "
            "data.label_column to the one that holds the labels"
        )
    kind = data.features.arrow_schema.field(column).type
    if not holds_labels(kind):
        text = (
            f"{printable(path)}: column {column!r} holds {printable(str(kind))}; labels are whole "
            "numbers, texts or booleans. Set data.label_column to another one"
        )
        if given is not None:
            raise DataError(text)
        return None, f"{text}; the images have no labels"
    return data.select_columns([column]), ""


def _not_loaded(path: str, folder: Path | None, error: Exception) -> str:
    where, reason = printable(path), _first_line(error)
    if isinstance(error, ValueError):
        return f"{where} cannot be loaded: {reason}. Set data.split or data.subset to what there is"
    if folder:
        return f"{where} cannot be loaded: {reason}"
    return (
        f"{where} cannot be loaded: {reason}. Check the name and the network (private datasets need "
        "`hf auth login`), or download it elsewhere with `hf download --repo-type dataset` and "
        "name the folder: hf:FOLDER"
    )


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return printable(line).rstrip(".")


def _listed(features: Any) -> str:
    return ", ".join(map(printable, features))


def _undecoded(data: Any, column: str, path: str) -> Any:
    features = data.features
    if features is None:  # a stream that does not say what it has
        first: dict[str, Any] = next(iter(data.take(1)), {})
        features = dict.fromkeys(first)
    if column not in features:
        raise DataError(
            f"{printable(path)} has no column {column!r}; it has {_listed(features)}. "
            "Set data.column to the one that holds the images"
        )
    kind = features[column]
    data = data.select_columns([column])
    if isinstance(kind, datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    if kind is None or holds_images(datasets.Features({column: kind}).arrow_schema.field(0).type):
        return data
    raise DataError(
        f"{printable(path)}: column {column!r} holds {printable(str(kind))}; images are Image, or "
        "binary. Set data.column to the one that holds the images"
    )
