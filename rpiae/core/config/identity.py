"""What the result of a config depends on: its fields, and the content of the files they name.

A field of a config counts unless it is declared to have no effect (``without_effect``). A field
that names a file is declared too (``names_file``): where a file of that name is there, its content
counts and where it lies does not; anything else, a hub's id or an address, counts by its name.
Nothing else is ever looked for on a disk. Torch-free.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from rpiae.core.config.parts import DatasetConfig
from rpiae.core.runtime.files import file_digest, open_regular

#: Bytes of data up to which their content counts; of more, names, sizes and times do.
READ_WHOLE = 1 << 28

#: Suffix of a file that lists the files over which weights are spread.
SHARD_INDEX = ".index.json"


def identity(config: Any, *, times: bool = True) -> Any:
    """A config, or a collection of them, as a tree of plain values; equal trees, equal results.

    Args:
        config: what is asked about.
        times: whether, of data of more than ``READ_WHOLE`` bytes, the times of files count too;
            without them, data that were copied elsewhere are the same.

    Raises:
        OSError: if a file cannot be read.
        DataError: if a dataset's files are not there.
    """
    if isinstance(config, DatasetConfig):
        return _dataset_identity(config, times)
    if attrs.has(type(config)):
        return _fields_identity(config, times)
    if isinstance(config, Mapping):
        return {name: identity(value, times=times) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [identity(value, times=times) for value in config]
    return config


def fields_without_effect(cls: type[attrs.AttrsInstance]) -> dict[str, str]:
    """Names of a config's fields that no result depends on, with the reason."""
    return {
        a.name: a.metadata["without_effect"]
        for a in attrs.fields(cls)
        if "without_effect" in a.metadata
    }


def files_below(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files below a folder with their names relative to it, sorted; links are followed, hidden
    files and folders left out.

    Raises:
        OSError: if a folder cannot be read.
    """

    def unreadable(error: OSError) -> None:
        raise error

    visited = set()
    found = []
    for place, subfolders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real = os.path.realpath(place)
        subfolders[:] = [] if real in visited else [s for s in subfolders if not s.startswith(".")]
        if real not in visited:
            found += [Path(place, name) for name in names if not name.startswith(".")]
        visited.add(real)
    for path in sorted(found):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _fields_identity(config: Any, times: bool, *, but: Iterable[str] = ()) -> dict[str, Any]:
    found = {}
    for a in attrs.fields(type(config)):
        value = getattr(config, a.name)
        if value is None or a.name in but or "without_effect" in a.metadata:
            continue
        place: Callable[[str], str] | None = a.metadata.get("file")
        named = place(value) if place is not None and isinstance(value, str) else ""
        content = _content_of(named) if named else None
        found[a.name] = identity(value, times=times) if content is None else {"sha256": content}
    return found


def _dataset_identity(data: DatasetConfig, times: bool) -> dict[str, Any]:
    files = data.files()
    if files is None:
        return _fields_identity(data, times)
    named = [a.name for a in attrs.fields(type(data)) if "file" in a.metadata]
    found = _fields_identity(data, times, but=named)
    return found | {"files": _digest_of_files(files, times=times)}


def _content_of(text: str) -> str | None:
    """sha256 of a file, with the files that it lists, or of all files of a folder; None where there
    is neither."""
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):
        return _digest_of_files(files_below(path))
    if not os.path.isfile(path):
        return None
    return _digest_of_files([("", path), *_shards(path)], whole=True)


def _shards(index: Path) -> list[tuple[str, Path]]:
    """The files that an index of weights lists, where it is one."""
    if not index.name.endswith(SHARD_INDEX):
        return []
    try:
        with open_regular(index) as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
        return [(name, index.parent / name) for name in names if (index.parent / name).is_file()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _digest_of_files(
    files: Iterable[tuple[str, Path | None]], *, whole: bool = False, times: bool = True
) -> str:
    """sha256 of files in their order: names, and content or sizes and times; of what is no local
    file, the name alone."""
    listed = [(name, path, path.stat() if path else None) for name, path in files]
    total = sum(status.st_size for _, _, status in listed if status)
    whole = whole or total <= READ_WHOLE
    found = hashlib.sha256()
    for name, path, status in listed:
        found.update(name.encode("utf-8", "surrogatepass") + b"\0")
        if path is None or status is None:
            continue
        found.update(f"{status.st_size}\0".encode())
        if whole:
            found.update(bytes.fromhex(_content(path, *_facts(status))))
        elif times:
            found.update(f"{status.st_mtime_ns}\0".encode())
    return found.hexdigest()


def content(path: Path) -> str:
    """sha256 of a file, which is read once as long as its size, time and inode stay as they are.

    Raises:
        OSError: if it cannot be read.
    """
    return _content(path, *_facts(path.stat()))


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


@functools.lru_cache(maxsize=1 << 16)
def _content(path: Path, *_: int) -> str:
    return file_digest(path)
