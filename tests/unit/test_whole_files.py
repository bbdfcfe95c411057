"""Files that are there whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

from pathlib import Path

import pytest

from rpiae.core.errors import UsageError
from rpiae.core.runtime.files import whole
from rpiae.core.runtime.locks import LOCK_FILE, hold


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with whole(path) as unfinished:
        unfinished.write_text("after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_what_fails_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail() -> None:
        with whole(path) as unfinished:
            unfinished.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    taken = r"another rpiae encode is at work in .*folder: wait"
    with hold(folder, worker="rpiae encode"):
        assert (folder / LOCK_FILE).exists()
        with pytest.raises(UsageError, match=taken), hold(folder, worker="rpiae encode"):
            pass
    with hold(folder, worker="rpiae encode"):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = r"cannot write to .*file.below: .*Name another --out"
    below = tmp_path / "file" / "below"
    with pytest.raises(UsageError, match=refused), hold(below, worker="run"):
        pass
