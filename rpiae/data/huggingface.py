"""Images of the Hugging Face ``datasets`` library, by index or as a stream; no code of a hub runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

import datasets

from rpiae.core.errors import DataError, UsageError
from rpiae.data.image_dataset import ImageOptions, SplitDataset
from rpiae.data.streams import Encoded, StreamDataset, check_not_streaming

#: Files that ``save_to_disk`` leaves in its folder: of one split, and of several.
SAVED = "state.json"
SAVED_SPLITS = "dataset_dict.json"

#: Major version of ``datasets`` from which on no code that comes with a dataset is run.
OLDEST = 4

#: Rows of a stream that are read at once.
READ = 16


class HubSource:
    """Images of a dataset by index; see ``ImageSource``.

    Args:
        data: a ``datasets.Dataset`` whose column of images is not decoded.
        column: the column.
        location: what messages call it.
        split: the split, which names the images.
    """

    def __init__(self, data: Any, column: str, *, location: str, split: str) -> None:
        self.location = location
        self._data = data
        self._column = column
        self._split = split

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
            raise DataError(f"{self.path(index)}: {error}") from None
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
    """

    problems: tuple[str, ...] = ()

    def __init__(self, data: Any, column: str, *, location: str, total: int | None) -> None:
        self.location = location
        self.total = total
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
                raise DataError(f"{self.shard(index)}: {error}") from None
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
        split, column, subset, revision: see ``HuggingFaceDatasetConfig``.
        streaming, num_images, buffer, readers: see ``StreamableDatasetConfig``.
        options: see ``ImageDatasetConfig``.

    Raises:
        DataError: if it cannot be loaded, or has no such split or column of images.
        UsageError: if an option does not go with the others.
    """
    if not path:
        raise UsageError("data: name a dataset: hf:OWNER/NAME or hf:FOLDER")
    if int(datasets.__version__.partition(".")[0]) < OLDEST:
        raise UsageError(
            f"datasets {datasets.__version__} may run code that comes with a dataset: "
            f'pip install "datasets>={OLDEST}"'
        )
    data, total = _loaded(path, split=split, subset=subset, revision=revision, streaming=streaming)
    data = _undecoded(data, column, path)
    if total == 0:
        raise DataError(f"{path} has no rows in split {split!r}")
    if not streaming:
        check_not_streaming(num_images)
        return SplitDataset(HubSource(data, column, location=path, split=split), options)
    return StreamDataset(
        HubStream(data, column, location=path, total=total),
        {**options, "num_images": num_images, "buffer": buffer, "readers": readers},
    )


def _loaded(
    path: str, *, split: str, subset: str, revision: str, streaming: bool
) -> tuple[Any, int | None]:
    """The dataset, and its number of rows where it is known."""
    folder = Path(path).expanduser()
    if folder.is_file():
        raise DataError(f"{path} is a file: name its folder, or take parquet:{path}")
    if not folder.is_dir() and (folder.is_absolute() or path.startswith(("./", "../", "~"))):
        raise DataError(f"{path}: there is no such folder; set data.path to a dataset's folder")
    try:
        if (folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file():
            return _saved(folder, path, split, streaming)
        data = datasets.load_dataset(
            str(folder) if folder.is_dir() else path,
            name=subset or None,
            split=split,
            revision=revision or None,
            streaming=streaming,
        )
        if not streaming:
            return data, len(data)
        told = (data.info.splits or {}).get(split)
        # Where nobody has counted, it says 0.
        return data, (told.num_examples or None) if told else None
    except DataError:
        raise
    except Exception as error:  # the hub, the file system, a builder: each has errors of its own
        raise DataError(_not_loaded(path, folder, error)) from None


def _saved(folder: Path, path: str, split: str, streaming: bool) -> tuple[Any, int]:
    data = datasets.load_from_disk(str(folder))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(
                f"{path} has no split {split!r}; it has {', '.join(data)}. Set data.split"
            )
        data = data[split]
    rows = len(data)
    if not streaming or not rows:
        return data, rows
    return data.to_iterable_dataset(num_shards=len(data.cache_files)), rows


def _not_loaded(path: str, folder: Path, error: Exception) -> str:
    reason = (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
    if isinstance(error, ValueError):
        return f"{path} cannot be loaded: {reason}. Set data.split or data.subset to what there is"
    if folder.is_dir():
        return f"{path} cannot be loaded: {reason}"
    return (
        f"{path} cannot be loaded: {reason}. Check the name and the network (private datasets need "
        "`hf auth login`), or download it elsewhere with `hf download --repo-type dataset` and "
        "name the folder: hf:FOLDER"
    )


def _undecoded(data: Any, column: str, path: str) -> Any:
    features = data.features
    if features is None:  # a stream that does not say what it has
        first: dict[str, Any] = next(iter(data.take(1)), {})
        features = dict.fromkeys(first)
    if column not in features:
        raise DataError(
            f"{path} has no column {column!r}; it has {', '.join(features)}. "
            "Set data.column to the one that holds the images"
        )
    kind = features[column]
    data = data.select_columns([column])
    if isinstance(kind, datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    struct = isinstance(kind, dict) and "bytes" in kind
    if kind is None or struct or kind in (datasets.Value("binary"), datasets.Value("large_binary")):
        return data
    raise DataError(
        f"{path}: column {column!r} holds {kind}; images are Image, or binary. Set data.column to "
        "the one that holds the images"
    )
