"""What a run's folder says of its sessions, and a folder that says nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rpiae.runs.history import HISTORY_FILE, Session, begin_session, sessions


def session(stage: int, step: int) -> Session:
    return Session(stage=stage, step=step, settings=("a", "b"), data="x")


def test_what_was_done_beyond_a_point_is_lost_there(tmp_path: Path) -> None:
    for each in (session(0, 0), session(0, 7), session(0, 5)):
        begin_session(tmp_path, each)
    assert sessions(tmp_path) == (session(0, 0), session(0, 5))


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b'[{"stage": 0}]', b"[" * 100_000])
def test_a_damaged_history_says_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).write_bytes(content)
    assert sessions(tmp_path) == ()


def test_a_history_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / HISTORY_FILE)
    assert sessions(tmp_path) == ()
    begin_session(tmp_path, session(0, 0))
    assert sessions(tmp_path) == (session(0, 0),)
