"""Files that are there whole or not at all, and files that can be read to their end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from rpiae.core.errors import CheckpointError, RunError, UsageError

#: Levels of lists and tables that a document may have; ours have fewer than ten.
DEEPEST = 64

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


#: Letters of a name that ``plain_name`` keeps, at most.
_NAME_LENGTH = 80


def write_text(path: Path, text: str) -> None:
    """Write a text whole.

    Raises:
        RunError: if it cannot be written; what was there before stays.
    """
    try:
        with whole(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except UnicodeEncodeError as error:
        lost = ascii(error.object[error.start : error.end])
        raise RunError(f"cannot write {path}: {lost} in it is not valid Unicode") from None
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file inside the block; behind it, the file has its own name.

    If anything fails, what was there before stays, and nothing is left beside it.

    Raises:
        OSError: if the system refuses.
    """
    unfinished = until_whole(path)
    try:
        yield unfinished
        replace_durably(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Where to write a new folder inside the block; behind it, the folder has its own name.

    If anything fails, nothing is left.

    Raises:
        UsageError: if there is something of that name already, other than an empty folder.
        RunError: if the system refuses, inside the block too.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} exists already: name a new folder")
    unfinished = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        # The temporary folder is its owner's alone; what is made in it is as other folders are.
        made = unfinished / folder.name
        made.mkdir()
        yield made
        made.replace(folder)
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def until_whole(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(path.name + ".part")


def replace_durably(unfinished: Path, path: Path) -> None:
    """Rename a written file to its own name, so that a power cut leaves the old or the new one.

    Raises:
        OSError: if the system refuses.
    """
    sync(unfinished)
    unfinished.replace(path)
    # The rename is in the folder. Not every system opens folders, nor every file system syncs them.
    with contextlib.suppress(OSError):
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync(path: Path) -> None:
    """Have a file's content on the disk, not only on its way there.

    Raises:
        OSError: if the system refuses.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def plain_name(name: str) -> str:
    """A name as one part of a path: it leads nowhere else, and two names give two.

    Letters, digits and ``. _ -`` stay; a name that has others, begins with a dot or is long is
    changed, and ends in the beginning of its sha256.
    """
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in name)
    kept = kept[:_NAME_LENGTH].lstrip(".")
    if kept and kept == name:
        return name
    return f"{kept}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
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
            document = json.loads(file.read())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply") from None
    except ValueError as error:  # no JSON, no UTF-8, a number of more digits than Python reads
        raise CheckpointError(
            f"{path} is not a JSON file: {str(error).partition(';')[0]}"
        ) from None
    if nested_too_deeply(document):
        raise CheckpointError(f"{path} is nested too deeply")
    return document


def nested_too_deeply(document: Any) -> bool:
    """Whether lists and tables lie more than ``DEEPEST`` levels deep, where recursion might end."""
    level = [document]
    for _ in range(DEEPEST):
        tables = [each.values() for each in level if isinstance(each, dict)]
        lists = [each for each in level if isinstance(each, list)]
        level = [item for container in (*tables, *lists) for item in container]
    return bool(level)
