"""The run's pivot on disk: written once, never again, so that every resume anchors to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from rpiae.core.config import EncoderConfig
from rpiae.core.errors import CheckpointError
from rpiae.core.tokenizer import load_state

FILE = "pivot.safetensors"


def write_pivot(folder: Path, encoder: nn.Module) -> None:
    """Write the encoder as it stands as the pivot of a run that begins."""
    path = folder / FILE
    part = path.with_suffix(".part")
    try:
        save_file({name: t.contiguous() for name, t in encoder.state_dict().items()}, part)
        part.chmod(0o644)  # safetensors lets its owner alone read it
        part.rename(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None


def inherit_pivot(folder: Path, source: Path) -> bool:
    """Take over the pivot of the run that ``source`` lies in, where there is one.

    So going on from a tuned tokenizer keeps the true anchor.
    """
    found = find_pivot(source)
    if found is None:
        return False
    part = folder / f"{FILE}.part"
    shutil.copyfile(found, part)
    part.rename(folder / FILE)
    return True


def find_pivot(source: Path) -> Path | None:
    """The pivot of the run that a run's or tokenizer's folder lies in, where there is one."""
    places = (source, *source.resolve().parents[:2])
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def read_pivot(folder: Path, config: EncoderConfig) -> nn.Module:
    """The pivot as an encoder of its own.

    Raises:
        CheckpointError: if it is missing, damaged or of another architecture.
    """
    path = folder / FILE
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    encoder = config.build()
    assert isinstance(encoder, nn.Module)
    load_state(encoder, state, source=str(path))
    return encoder
