"""Files that are there whole or not at all, and files that can be read to their end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from rpiae.core.errors import CheckpointError, RunError

#: Levels of lists and tables that a document may have; ours have fewer than ten.
DEEPEST = 64

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def write_text(path: Path, text: str) -> None:
    """Write a text under another name and rename it.

    Raises:
        RunError: if it cannot be written; what was there before stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.rename(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, without waiting for anybody.

    Opening a FIFO waits for its writer, for ever where there is none; a device may never end.

    Raises:
        OSError: if it cannot be opened, or is no regular file; ``strerror`` says what it is.
    """
    # Without O_NONBLOCK, opening a FIFO is what waits; regular files do not know it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    kind = _KINDS.get(stat.S_IFMT(mode), "of another kind")
    raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", os.fspath(path))


def file_digest(path: str | os.PathLike[str]) -> str:
    """sha256 of a regular file's content, in hexadecimal.

    Raises:
        OSError: if it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """What a JSON file of ours holds.

    Raises:
        CheckpointError: if it cannot be read or is not JSON, or is nested too deeply.
    """
    try:
        with open_regular(path) as file:
            found = json.loads(file.read())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, a number of more digits than Python reads
        raise CheckpointError(
            f"{path} is not a JSON file: {str(error).partition(';')[0]}"
        ) from None
    if nested_too_deeply(found):
        raise CheckpointError(f"{path} is nested too deeply")
    return found


def nested_too_deeply(document: Any) -> bool:
    """Whether lists and tables lie more than ``DEEPEST`` levels deep, where recursion might end."""
    level = [document]
    for _ in range(DEEPEST):
        tables = [each.values() for each in level if isinstance(each, dict)]
        lists = [each for each in level if isinstance(each, list)]
        level = [item for container in (*tables, *lists) for item in container]
    return bool(level)
