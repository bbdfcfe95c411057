"""Folders that one process at a time works in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from rpiae.core.errors import UsageError

#: What is locked in a folder.
LOCK_FILE = ".lock"


@contextlib.contextmanager
def hold(folder: Path, *, worker: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder inside the block; it is made where there is none.

    The lock is the operating system's, so it ends with the process, however that ends.

    Args:
        folder: the folder.
        worker: what works in it, for messages, such as ``"rpiae encode"``.
        patience: seconds to wait for another one.

    Raises:
        UsageError: if another one holds it, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, timeout=patience)
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"another {worker} is at work in {folder}: wait for it, or name another --out"
        ) from None
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror}. Name another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
