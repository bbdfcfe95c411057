"""Training state on disk: atomic, the last K kept, half-written files never picked up."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rpiae.core.errors import CheckpointError

_NAME = re.compile(r"stage(\d+)-step(\d+)\.pt")


def checkpoint_path(folder: Path, stage: int, step: int) -> Path:
    """Where the state after ``step`` steps of stage ``stage`` is kept."""
    return folder / f"stage{stage}-step{step:08d}.pt"


def save_checkpoint(path: Path, state: Mapping[str, Any], *, keep: int) -> None:
    """Write a state under a temporary name, rename it, and remove all but the last ``keep``.

    Raises:
        CheckpointError: if it cannot be written; what was there before stays.
    """
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for unfinished in path.parent.glob("*.part"):
            unfinished.unlink()
        with part.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise CheckpointError(
            f"cannot write checkpoint {path}: {_reason(error)}. Earlier checkpoints are untouched; "
            "free some space in its folder"
        ) from None
    for old in list_checkpoints(path.parent)[:-keep]:
        old.unlink()


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
    match = _NAME.fullmatch(found[-1].name) if found else None
    return (int(match[1]), int(match[2])) if match else (0, 0)


def load_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint, or None where there is none.

    Raises:
        CheckpointError: if there are checkpoints and none of them can be read.
    """
    problem = ""
    for path in reversed(list_checkpoints(folder)):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            problem = f"{path}: {error}"
            continue
        if not {"stage", "step", "model", "ema", "num_images", "history"} <= state.keys():
            problem = f"{path}: it is not a training state of this version"
            continue
        return path, state
    if problem:
        raise CheckpointError(f"no checkpoint can be read ({problem}): begin another run")
    return None
