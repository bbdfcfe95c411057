"""Training state on disk: atomic, with a digest, the last K kept, damaged files never picked up.

A state is a file of ``torch.save``, which is a zip archive; the archive's comment holds the sha256 of
all bytes before it. So one file has both, and whatever reads such archives reads it still.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
from collections.abc import Callable, Mapping
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.files import open_regular, whole

_NAME = re.compile(r"stage(\d{1,9})-step(\d{1,15})\.pt")

#: Before the digest in an archive's comment.
_MARK = b"rpiae sha256 "
_COMMENT_LENGTH = len(_MARK) + 64

#: The last bytes of a zip archive without a comment begin so; its last two are the comment's length.
_END, _END_LENGTH = b"PK\x05\x06", 22


class SavedState(NamedTuple):
    """A state that was read.

    Attributes:
        path: its file.
        state: what it holds.
        notices: what there is to say of it and of newer ones that could not be used.
    """

    path: Path
    state: dict[str, Any]
    notices: tuple[str, ...] = ()


def checkpoint_path(folder: Path, stage: int, step: int) -> Path:
    """Where the state after ``step`` steps of stage ``stage`` is kept."""
    return folder / f"stage{stage}-step{step:08d}.pt"


def save_checkpoint(path: Path, state: Mapping[str, Any], *, keep: int) -> None:
    """Write a state and remove all but the last ``keep``.

    A later one could not be used, or the run would not be here: it becomes ``….damaged``.

    Raises:
        CheckpointError: if it cannot be written; what was there before stays.
    """
    for unfinished in path.parent.glob("*.part"):
        with contextlib.suppress(OSError):
            unfinished.unlink()
    write_state(path, state)
    there = list_checkpoints(path.parent)
    position = there.index(path) + 1
    with contextlib.suppress(OSError):  # they stay a little longer
        for later in there[position:]:
            later.rename(later.with_name(f"{later.name}.damaged"))
        for old in there[:position][:-keep]:
            old.unlink()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state with its digest under a temporary name, and rename it.

    Raises:
        CheckpointError: if it cannot be written; what was there before stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as unfinished, unfinished.open("wb+") as file:
            torch.save(dict(state), file)
            _add_digest(file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"cannot write checkpoint {path}: {_reason(error)}. Earlier checkpoints are untouched; "
            "free some space in its folder"
        ) from None


def read_state(path: Path) -> SavedState:
    """A state, its digest checked before anything in it is looked at.

    Files of earlier versions have none; a notice says so.

    Raises:
        CheckpointError: if it cannot be read or is damaged.
    """
    notices: tuple[str, ...] = ()
    try:
        with open_regular(path) as file:
            if not _digest_holds(path, file):
                notices = (f"{path} is of an earlier version and has no digest to check it by",)
            file.seek(0)
            state = _unpickled(path, file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} is no training state")
    return SavedState(path, state, notices)


def _add_digest(file: BufferedRandom) -> None:
    """Give the archive in a file a comment, to which the archive's end tells the length."""
    file.seek(-2, os.SEEK_END)
    file.write(struct.pack("<H", _COMMENT_LENGTH))
    file.flush()
    file.seek(0)
    comment = _MARK + hashlib.file_digest(file, "sha256").hexdigest().encode()
    file.seek(0, os.SEEK_END)
    file.write(comment)


def _digest_holds(path: Path, file: BufferedReader) -> bool:
    """Whether a file has a digest, which is then its own.

    Raises:
        CheckpointError: if the content is another, or the file's end is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _COMMENT_LENGTH))
    end = file.read()
    if end.startswith(_MARK) and size > _COMMENT_LENGTH:
        found = hashlib.sha256()
        file.seek(0)
        left = size - _COMMENT_LENGTH
        while left and (block := file.read(min(left, 1 << 20))):
            found.update(block)
            left -= len(block)
        if found.hexdigest().encode() == end[len(_MARK) :]:
            return True
    elif end[-_END_LENGTH:].startswith(_END) and end.endswith(b"\0\0"):
        return False
    raise CheckpointError(f"{path} is damaged: its content is not what was written")


def _unpickled(path: Path, file: BufferedReader) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a broken pickle raises whatever its bytes happen to mean
        text = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {text}") from None


def digest(state: Any) -> str:
    """sha256 over all tensors and numbers of a state, in the order of its keys.

    Two runs that agree to the bit have equal digests.
    """
    found = hashlib.sha256()
    _feed(found, state)
    return found.hexdigest()


def _feed(found: Any, state: Any) -> None:
    if isinstance(state, torch.Tensor):
        raw = state.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(f"{state.dtype}{tuple(state.shape)}".encode())
        found.update(raw.numpy().data)
    elif isinstance(state, Mapping):
        for key in sorted(state, key=str):
            found.update(str(key).encode())
            _feed(found, state[key])
    elif isinstance(state, (list, tuple)):
        for value in state:
            _feed(found, value)
    else:
        found.update(repr(state).encode())


def _reason(error: BaseException) -> str:
    # Torch's writer raises an error of its own out of the one that says why.
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [(m, p) for p in folder.glob("*.pt") if (m := _NAME.fullmatch(p.name))]
    return [p for m, p in sorted(found, key=lambda f: (int(f[0][1]), int(f[0][2])))]


def progress(folder: Path) -> tuple[int, int]:
    """Stage index and step of the newest checkpoint; (0, 0) where there is none."""
    found = list_checkpoints(folder)
    return place(found[-1]) if found else (0, 0)


def place(path: Path) -> tuple[int, int]:
    """Stage index and step that a checkpoint's name tells."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), int(match[2])


def load_checkpoint(
    folder: Path, *, check: Callable[[SavedState], None] = lambda _: None
) -> SavedState | None:
    """The newest checkpoint that can be used, or None where there is none.

    Args:
        folder: the checkpoints' folder.
        check: raises CheckpointError for a state that cannot be used.

    Raises:
        CheckpointError: if there are checkpoints and none of them can be used.
    """
    problems: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            found = read_state(path)
            check(found)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        passed_over = [f"{problem}: the checkpoint before it is used" for problem in problems]
        return found._replace(notices=(*passed_over, *found.notices))
    if problems:
        others = f", nor the {len(problems) - 1} before it" if len(problems) > 1 else ""
        raise CheckpointError(
            f"no checkpoint can be used ({problems[0]}{others}): begin another run, or remove "
            f"{folder} to begin this one anew"
        )
    return None
