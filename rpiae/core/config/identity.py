"""What the result of a config depends on: its fields, and the content of the files they name.

Every field of a config affects the result, unless it is declared to do less (``fields.py``): rounding
alone, what is loaded once, or nothing. One that names a file is declared too: where a file of that
name is there, its content counts and where it lies does not; anything else, a hub's id or an address,
counts by its name. A revision on the hub counts by the commit that the local cache has of it. Nothing
else is ever looked for on a disk. Addresses, fingerprints and the changes that a resume may take are
all made here. Torch-free.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs

from rpiae.core.config.parts import DatasetConfig, PartConfig, parts_of
from rpiae.core.errors import DataError
from rpiae.core.runtime.files import file_digest, open_regular
from rpiae.core.runtime.hub import cached_commit
from rpiae.core.runtime.names import printable

#: In every address; raised where the same config leads to other values than before.
EPOCH = 3

#: Bytes of data up to which their content counts; of more, names, sizes and times do.
READ_WHOLE = 1 << 28

#: Suffix of a file that lists the files over which weights are spread.
SHARD_INDEX = ".index.json"

#: What a field affects. Of data, ``place`` is where they lie or are taken from: they are told apart
#: by their fingerprint.
Effect = Literal["result", "place", "start", "rounding", "nothing"]

T = TypeVar("T")


def address(tree: Any) -> str:
    """sha256 of all that a result depends on: a tree of plain values, and the code's epoch."""
    return digest({"epoch": EPOCH, "tree": tree})


def digest(tree: Any) -> str:
    """sha256 of a tree of plain values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def identity(config: Any, *, times: bool = True) -> Any:
    """A config, or a collection of them, as a tree of plain values; equal trees, equal results.

    Args:
        config: what is asked about.
        times: whether, of data of more than ``READ_WHOLE`` bytes, the times of files count too;
            without them, data that were copied elsewhere are the same.

    Raises:
        DataError: if a file that counts is not there or cannot be read.
    """
    with _read():
        return _identity(config, times)


def effect(a: attrs.Attribute[Any], before: Any, after: Any) -> Effect:
    """What a field affects that differs between two configs of a class."""
    if "affects" in a.metadata:
        return a.metadata["affects"]  # type: ignore[no-any-return]  # as fields.py declares it
    if "file" not in a.metadata and "revision" not in a.metadata:
        return "result"
    if isinstance(before, DatasetConfig):
        return "place"
    one, other = (_named_content(a, getattr(config, a.name)) for config in (before, after))
    return "nothing" if one is not None and one == other else "result"


def pinned(config: T) -> T:
    """A config in which every revision on the hub is the commit that it stands for, as far as the
    local cache knows it."""
    if isinstance(config, tuple):
        return tuple(map(pinned, config))  # type: ignore[return-value]  # a tuple of the same configs
    if not attrs.has(type(config)):
        return config
    cls: Any = type(config)
    values = {a.name: pinned(getattr(config, a.name)) for a in attrs.fields(cls)}
    return cls(**values | _commits(config))  # type: ignore[no-any-return]  # of its own class


def unpinned(config: Any) -> list[PartConfig]:
    """Parts in a config that load a revision on the hub of which nobody here knows the commit."""
    return [
        part
        for part in parts_of(config)
        if part.repository() and len(_commits(part)) < len(_revisions(part))
    ]


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


def _identity(config: Any, times: bool) -> Any:
    if isinstance(config, DatasetConfig):
        return _dataset_identity(config, times)
    if attrs.has(type(config)):
        return _fields_identity(config, times)
    if isinstance(config, Mapping):
        return {name: _identity(value, times) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [_identity(value, times) for value in config]
    return config


def _fields_identity(config: Any, times: bool, *, but: Iterable[str] = ()) -> dict[str, Any]:
    found = {}
    commits = _commits(config)
    for a in attrs.fields(type(config)):
        value = commits.get(a.name, getattr(config, a.name))
        if value is None or a.name in but or a.metadata.get("affects") == "nothing":
            continue
        content = _named_content(a, value)
        found[a.name] = _identity(value, times) if content is None else {"sha256": content}
    return found


def _named_content(a: attrs.Attribute[Any], value: Any) -> str | None:
    """sha256 of what a field names; None where it names no file that is there."""
    place: Callable[[str], str] | None = a.metadata.get("file")
    named = place(value) if place is not None and isinstance(value, str) else ""
    return _content_of(named) if named else None


def _revisions(config: Any) -> list[attrs.Attribute[Any]]:
    return [a for a in attrs.fields(type(config)) if "revision" in a.metadata]


def _commits(config: Any) -> dict[str, str]:
    """A config's revisions as commits, by field, as far as they are known."""
    repository = config.repository() if isinstance(config, PartConfig) else ""
    if not repository:
        return {}
    kind: Literal["models", "datasets"] = (
        "datasets" if isinstance(config, DatasetConfig) else "models"
    )
    found = {
        a.name: cached_commit(repository, getattr(config, a.name) or "main", kind=kind)
        for a in _revisions(config)
    }
    return {name: commit for name, commit in found.items() if commit}


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
        DataError: if it cannot be read.
    """
    with _read():
        return _content(path, *_facts(path.stat()))


@contextlib.contextmanager
def _read() -> Iterator[None]:
    """Where files are read that count: one that cannot be is named.

    Raises:
        DataError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        name = printable(str(error.filename))
        raise DataError(f"{name} cannot be read: {error.strerror}") from None


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


@functools.lru_cache(maxsize=1 << 16)
def _content(path: Path, *_: int) -> str:
    return file_digest(path)
