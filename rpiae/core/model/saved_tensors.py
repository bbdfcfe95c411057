"""The tensors of a saved model: in one file, or in several with an index that says what is where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weight_files import read_index
from rpiae.core.runtime.weights import and_more

WEIGHTS_FILE = "model.safetensors"

#: In the place of one file of weights: which tensor is in which of several.
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"


class TensorFacts(NamedTuple):
    """What a file's header says of a tensor; ``dtype`` as in safetensors, such as ``F32``."""

    dtype: str
    shape: tuple[int, ...]


def is_in_shards(folder: Path) -> bool:
    """Whether a model's weights are in several files, with an index."""
    return not os.path.lexists(folder / WEIGHTS_FILE) and os.path.lexists(folder / INDEX_FILE)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a saved model's weights, with their index where there are several.

    Raises:
        CheckpointError: if the index cannot be read.
    """
    if not is_in_shards(folder):
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    return [index, *sorted(set(_files_of(index).values()))]


def read_headers(folder: Path) -> tuple[dict[str, TensorFacts], dict[str, Path]]:
    """What a saved model's weights say of their tensors, and which of them is in which file.

    Raises:
        CheckpointError: if a file is missing or cannot be read, or shards and index differ.
    """
    if not is_in_shards(folder):
        found = _header(folder / WEIGHTS_FILE)
        return found, dict.fromkeys(found, folder / WEIGHTS_FILE)
    files = _files_of(folder / INDEX_FILE)
    tensors: dict[str, TensorFacts] = {}
    for path in dict.fromkeys(files.values()):
        found = _header(path)
        listed = {name for name, file in files.items() if file == path}
        if apart := sorted(listed ^ found.keys()):
            where = "in its index alone" if apart[0] in listed else "not in its index"
            raise CheckpointError(
                f"{path}: {printable(apart[0])}{and_more(apart)} is {where}: its shards and its index are "
                "not of one model"
            )
        tensors |= found
    return tensors, files


def read_tensors(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Tensors out of their files.

    Args:
        files: where each is.

    Raises:
        CheckpointError: if one cannot be read.
    """
    state: dict[str, Tensor] = {}
    for path in dict.fromkeys(files.values()):
        try:
            with safe_open(path, "pt") as file:
                state |= {name: file.get_tensor(name) for name in files if files[name] == path}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
    return state


def _header(path: Path) -> dict[str, TensorFacts]:
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            return {
                name: TensorFacts(each.get_dtype(), tuple(each.get_shape()))
                for name, each in slices.items()
            }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _files_of(index: Path) -> dict[str, Path]:
    """Tensor → file, of weights in shards."""
    try:
        where = read_index(index, index.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{index} cannot be read: {error.strerror}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{index} cannot be read: {error}") from None
    return {name: index.with_name(shard) for name, shard in where.items()}
