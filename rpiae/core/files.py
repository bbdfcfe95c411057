"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from rpiae.core.errors import RunError


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
