"""Names of tar shards, and what opens them: the one place that may run a command."""

from __future__ import annotations

import math
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from braceexpand import braceexpand
from webdataset.gopen import gopen, gopen_schemes
from webdataset.shardlists import envsubst

from rpiae.core.errors import DataError, FetchError, UsageError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable, shown
from rpiae.data.paths import as_path
from rpiae.data.sources import walked
from rpiae.data.splits import chosen, layout_of_files, listed

#: Set to 1 in the environment of a process, it lets ``pipe:`` shards run commands of the shell.
ALLOW_PIPE = "RPIAE_ALLOW_PIPE"

#: Endings of compressed shards, in which no member can be found without reading those before it.
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

#: Shards that names with braces may stand for.
MOST_SHARDS = 1_000_000

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_RANGE = re.compile(r"\{(-?\d{1,9})\.\.(-?\d{1,9})[.}]|\{-?\d+\.\.")
_YES = ("1", "true", "yes", "on")


def shards_of(path: str, split: str) -> tuple[list[str], tuple[str, ...]]:
    """The shards that a path stands for, and what of them is left out, in words.

    Args:
        path: a folder, whose shards are taken in sorted order, or names with braces.
        split: a split, or a pattern of names; see ``rpiae.data.splits``.

    Raises:
        DataError: if a folder has no shards, or none of that split.
        FetchError: if a shard is on the network, and HF_HUB_OFFLINE is set.
        UsageError: if names are malformed, there are several splits and none is chosen, or a shard
            is a command and commands are not allowed.
    """
    if not path:
        raise UsageError("data: name tar shards: webdataset:/data/train-{0000..0099}.tar")
    if is_local(path) and os.path.isdir(folder := as_path(path)):
        return _shards_below(folder, printable(path), split)
    names = [_local(name) for name in _expanded(path)]
    for name in names:
        _check(name)
    # Cut at its last slash, what all begin with is what no name is told by.
    start = len(os.path.commonprefix(names).rpartition("/")[0])  # noqa: RUF071
    layout = layout_of_files([name[start:].lstrip("/") for name in names])
    if split:
        found = chosen(layout, split, printable(path))
        return [name for name in names if name[start:].lstrip("/") in found], ()
    if len(layout.splits) > 1:
        return names, (
            f"{printable(path)} names several splits, which are read together: "
            f"{listed(layout.splits)}. Choose one with data.split; '*' takes all and says nothing",
        )
    return names, ()


def shard_files(path: str, split: str) -> list[tuple[str, Path | None]]:
    """The shards that a path stands for, as names and local files; of those that are not on a local
    disk (None), the address is the name.

    Raises:
        As ``shards_of``.
    """
    found: list[tuple[str, Path | None]] = []
    for shard in shards_of(path, split)[0]:
        file = as_path(shard) if is_local(shard) else None
        found.append((file.name if file else shard, file))
    return found


def is_local(shard: str) -> bool:
    """Whether a shard is a file of this machine, compressed or not."""
    return not _SCHEME.match(shard)


def is_seekable(shard: str) -> bool:
    """Whether the members of a shard can be read one by one."""
    return is_local(shard) and not shard.lower().endswith((*COMPRESSED, ".gz", ".bz2", ".xz"))


def open_shard(shard: str) -> Any:
    """A shard as a file that is read from its beginning.

    Raises:
        DataError: if it cannot be opened.
        FetchError, UsageError: see ``shards_of``.
    """
    try:
        if is_local(shard):
            return open_regular(as_path(shard))
        _check(shard)
        return gopen(shard)
    except (UsageError, FetchError):
        raise
    except Exception as error:  # every scheme has its own library behind it
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{printable(shard)}: {printable(str(reason))}") from None


def _check(shard: str) -> None:
    """Refuse a shard that may not be opened."""
    found = _SCHEME.match(shard)
    if found is None:
        as_path(shard)
        return
    scheme = found[1].lower()
    if scheme == "pipe":
        if os.environ.get(ALLOW_PIPE, "").lower() not in _YES:
            raise UsageError(
                f"data.path = {shown(shard)} runs a command, which no config, run folder or study "
                "may do by itself, as they come from other people too. If it is yours, allow it to "
                f"this process: {ALLOW_PIPE}=1 rpiae …"
            )
        return
    known = sorted(set(gopen_schemes) - {"__default__", "pipe"})
    if scheme not in known:
        raise UsageError(
            f"data.path = {shown(shard)}: shards are files, or URLs that begin with "
            f"{', '.join(f'{name}:' for name in known)}"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES:
        raise FetchError(
            f"{printable(shard)} is on the network, and HF_HUB_OFFLINE is set: download the shards "
            "and set data.path to their folder"
        )


def _shards_below(folder: Path, path: str, split: str) -> tuple[list[str], tuple[str, ...]]:
    found = walked(folder, (".tar", *COMPRESSED))
    if not found.files:
        raise DataError(f"{path} has no shards: no file in it or below it ends in .tar")
    plain = [name for name in found.files if is_seekable(name)]
    compressed = len(found.files) - len(plain)
    problems = found.problems
    if plain and compressed and not split:
        problems = (*problems, f"{path}: left out {compressed} compressed shards; set data.split to "
                    "a pattern of names to take them")  # fmt: skip
    names = found.files if split or not plain else plain
    return [str(folder / name) for name in chosen(layout_of_files(names), split, path)], problems


def _local(name: str) -> str:
    """A ``file:`` URL as a path; all else as it is."""
    if not name.lower().startswith("file:"):
        return name
    return unquote(urlparse(name).path)


def _expanded(path: str) -> list[str]:
    """Names with braces, several of them joined by ``::``, as the ``webdataset`` library reads them."""
    names: list[str] = []
    for text in map(envsubst, path.split("::")):
        if any(_length(*ends) > MOST_SHARDS for ends in _RANGE.findall(text)):
            raise UsageError(_too_many(path))
        try:
            names += islice(braceexpand(text), MOST_SHARDS + 1)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"data.path = {shown(path)} is no list of shards ({printable(str(error))}): write "
                "braces as in /data/train-{0000..0099}.tar"
            ) from None
        if len(names) > MOST_SHARDS:
            raise UsageError(_too_many(path))
    return names


def _length(first: str, last: str) -> float:
    """How many numbers a range has; one with more than nine digits has too many."""
    return abs(int(last) - int(first)) + 1 if first else math.inf


def _too_many(path: str) -> str:
    return f"data.path = {shown(path)} stands for more than {MOST_SHARDS} shards"
