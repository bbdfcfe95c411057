"""Paths that the config of a dataset names, and those of data inside installed packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rpiae.core.errors import DataError, UsageError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable, shown


def as_path(text: str) -> Path:
    """A path as it was given, with ``~`` expanded; nothing is looked at.

    Raises:
        UsageError: if no file can be called so.
    """
    try:
        text.encode()
        path = Path(text).expanduser()
    except UnicodeEncodeError:
        # It would be stored in configs and indexes, which are UTF-8.
        raise UsageError(
            f"data.path = {shown(text)} is not UTF-8: rename it, or name a link to it"
        ) from None
    except RuntimeError:
        raise UsageError(
            f"data.path = {shown(text)} begins with the home folder of somebody who is not known "
            "here: write the path from the root"
        ) from None
    if "\0" in text:
        raise UsageError(f"data.path = {shown(text)} has a null character")
    return path


def existing(text: str, what: str) -> Path:
    """The path of something that is there.

    Args:
        text: the path as it was given.
        what: what it should be, for messages: "folder", or "file or folder".

    Raises:
        UsageError: if no file can be called so.
        DataError: if nothing is there, or it cannot be looked at.
    """
    path = as_path(text)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{printable(text)}: there is no such {what}; set data.path") from None
    except OSError as error:
        raise DataError(f"{printable(text)}: {error.strerror}; set data.path") from None
    return path


def check_regular(path: Path) -> None:
    """Refuse what cannot be read as a file, or only by waiting for somebody.

    Raises:
        DataError: if it cannot be opened, or is a FIFO, a device or a folder.
    """
    try:
        open_regular(path).close()
    except OSError as error:
        raise DataError(f"{printable(str(path))} cannot be read: {error.strerror}") from None


def packaged(package: str, file: str, *, distribution: str) -> Path:
    """A file inside an installed package, which is not imported.

    Args:
        package: as it is imported.
        file: its path inside.
        distribution: what brings the package, for the message.

    Raises:
        DataError: if it is not there.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, file)).is_file():
            return path
    raise DataError(
        f"{package}/{file} is missing: reinstall {distribution} with "
        f"pip install --force-reinstall {distribution}"
    )
