"""Files of work: samples that are made, each file written whole, with what it is to be checked by."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rpiae.core.config.identity import digest
from rpiae.core.errors import CheckpointError, RunError
from rpiae.core.runtime.files import open_regular, whole
from rpiae.latents.layout import METADATA, tensor_digest
from rpiae.sampling.plan import SamplingPlan


def write_chunk(folder: Path, plan: SamplingPlan, number: int, tensors: dict[str, Tensor]) -> None:
    """Write a file of work whole.

    Args:
        folder: of the work.
        plan: what is made.
        number: of the file.
        tensors: (n, …), of its samples.

    Raises:
        RunError: if it cannot be written; those that are complete stay.
    """
    described = _described(plan, number, tensors)
    path = folder / plan.file(number)
    try:
        with whole(path) as unfinished:
            save_file(tensors, unfinished, metadata={METADATA: json.dumps(described)})
    except (OSError, SafetensorError) as error:
        raise unwritten(path, error) from None


def unwritten(path: Path, error: Exception) -> RunError:
    """The error of a file that could not be written."""
    reason = getattr(error, "strerror", None) or error
    remedy = "free some space" if os.strerror(errno.ENOSPC) in str(reason) else "mend that"
    return RunError(
        f"cannot write {path}: {reason}. Samples that are complete stay; {remedy} and call again to go on"
    )


def read_chunk(folder: Path, plan: SamplingPlan, number: int) -> dict[str, Tensor]:
    """The tensors of a file of work, as they were written.

    Raises:
        CheckpointError: if it is missing, damaged, or of other work.
    """
    path = folder / plan.file(number)
    try:
        open_regular(path).close()
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {}).get(METADATA, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if described != _described(plan, number, tensors):
        raise CheckpointError(f"{path} is damaged or holds other samples")
    return tensors


def _described(plan: SamplingPlan, number: int, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "settings": digest(plan.settings()), "chunk": number, "chunk_size": plan.chunk_size,
        "tensors": {name: tensor_digest(tensor) for name, tensor in tensors.items()},
    }  # fmt: skip
