"""The run's pivot on disk: written once, never again, so that every resume anchors to it.

Its file's metadata holds the digest of all its tensors.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.errors import CheckpointError
from rpiae.core.model.state import load_state
from rpiae.core.runtime.files import open_regular, whole
from rpiae.core.training.checkpoint import digest

FILE = "pivot.safetensors"

_DIGEST = "tensors_sha256"

logger = logging.getLogger(__name__)


def write_pivot(folder: Path, encoder: nn.Module) -> None:
    """Write the encoder as it stands as the pivot of a run that begins.

    Raises:
        CheckpointError: if it cannot be written.
    """
    path = folder / FILE
    state = {name: t.detach().cpu().contiguous() for name, t in encoder.state_dict().items()}
    try:
        with whole(path) as unfinished:
            save_file(state, unfinished, metadata={_DIGEST: digest(state)})
            unfinished.chmod(0o644)  # safetensors lets its owner alone read it
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None


def inherit_pivot(folder: Path, source: Path) -> bool:
    """Take over the pivot of the run that ``source`` lies in, where there is one.

    So going on from a tuned tokenizer keeps the true anchor.

    Raises:
        CheckpointError: if it is damaged, or cannot be written.
    """
    found = find_pivot(source)
    if found is None:
        return False
    _read(found)
    try:
        with whole(folder / FILE) as unfinished:
            shutil.copyfile(found, unfinished)
    except OSError as error:
        raise CheckpointError(f"cannot write {folder / FILE}: {error.strerror}") from None
    return True


def find_pivot(source: Path) -> Path | None:
    """The pivot of the run that a run's or tokenizer's folder lies in, where there is one."""
    places = (source, *source.resolve().parents[:2])
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def read_pivot(folder: Path, config: EncoderConfig) -> nn.Module:
    """The pivot as an encoder of its own.

    Files of earlier versions have no digest, which is logged.

    Raises:
        CheckpointError: if it is missing, damaged or of another architecture.
    """
    path = folder / FILE
    state = _read(path)
    encoder = config.build()
    assert isinstance(encoder, nn.Module)
    load_state(encoder, state, source=str(path), exact=True)
    return encoder


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors, which are what was written."""
    try:
        open_regular(path).close()
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not said:
        logger.warning("%s is of an earlier version and has no digest to check it by", path)
    elif said != {_DIGEST: digest(state)}:
        raise CheckpointError(f"{path} is damaged: its tensors are not those that were written")
    return state
