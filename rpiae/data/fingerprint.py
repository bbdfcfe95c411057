"""What tells one dataset from another, without decoding its images."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from rpiae.core.config import DatasetConfig, unparse
from rpiae.core.errors import DataError

#: Bytes of data up to which their content counts; of more, names, sizes and times do.
READ_WHOLE = 1 << 28


@functools.cache
def data_fingerprint(data: DatasetConfig) -> str:
    """sha256 of a dataset's fields and of the files behind its path, and those of its sources.

    Of files of more than ``READ_WHOLE`` bytes in all, names, sizes and times count, of fewer their
    content. Where they lie does not count, nor how many processes load them.

    Raises:
        DataError: if a file cannot be read.
    """
    fields = unparse(data)
    given = str(fields.pop("path", ""))
    fields.pop("workers", None)
    sources = [data_fingerprint(source) for source in _sources(data)]
    if sources:
        fields["sources"] = [
            {k: v for k, v in source.items() if k != "data"} for source in fields["sources"]
        ]
    found = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for source in sources:
        found.update(source.encode())
    try:
        _add_files(found, given)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None
    return found.hexdigest()


def files_digest(config: Any) -> dict[str, str]:
    """sha256 of every file that a field of a config names, by the field's path."""
    found = {}
    for path, text in _texts(config):
        if 0 < len(text) < 1024 and "\n" not in text:
            file = Path(text.rpartition(":")[2]).expanduser()
            if file.is_file():
                with file.open("rb") as opened:
                    found[path] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if attrs.has(type(value)):
        for a in attrs.fields(type(value)):
            yield from _texts(getattr(value, a.name), f"{path}.{a.name}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value


def _sources(data: DatasetConfig) -> Iterator[DatasetConfig]:
    """Datasets inside a dataset."""
    for source in getattr(data, "sources", ()):
        if isinstance(inner := getattr(source, "data", None), DatasetConfig):
            yield inner


def _add_files(found: Any, given: str) -> None:
    if not given:
        return
    path = Path(given).expanduser()
    if path.is_file():
        files, root = [path], path.parent
    elif path.is_dir():
        files, root = sorted(p for p in path.rglob("*") if p.is_file()), path.parent
    elif re.search(r"\{.*\}", path.name):
        # Names with braces: all that they could stand for.
        files = sorted(path.parent.glob(re.sub(r"\{[^}]*\}", "*", path.name)))
        root = path.parent
    else:
        return
    whole = sum(file.stat().st_size for file in files) <= READ_WHOLE
    for file in files:
        status = file.stat()
        found.update(f"{file.relative_to(root)}/{status.st_size}".encode())
        with file.open("rb") as opened:
            found.update(
                hashlib.file_digest(opened, "sha256").digest()
                if whole
                else str(status.st_mtime_ns).encode()
            )
