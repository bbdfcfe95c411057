"""Files that are read to their end, and names that leave the process."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpiae.core.runtime.files import file_digest, open_regular
from rpiae.core.runtime.names import printable


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    with open_regular(path) as file:
        assert file.read() == b"abc"
    assert file_digest(path) == hashlib.sha256(b"abc").hexdigest()


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError, match="a FIFO, not a regular file"):
        open_regular(path)


def test_devices_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a device, not a regular file"):
        open_regular("/dev/zero")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_bytes_that_are_not_utf8_are_shown() -> None:
    assert printable(os.fsdecode(b"broken\xff.jpg")) == "broken\\xff.jpg"
    assert printable("a\nb\x1b[31m") == "a\\x0ab\\x1b[31m"
    assert printable("größe \U0001f600 日本") == "größe \U0001f600 日本"


@given(st.binary(max_size=50))
def test_any_file_name_becomes_one_line_of_utf8(name: bytes) -> None:
    shown = printable(os.fsdecode(name))
    assert len(shown.encode("utf-8").decode("utf-8").splitlines()) <= 1
