"""Latents as tar shards that WebDataset reads."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpiae.core.errors import UsageError
from rpiae.core.runtime.files import file_digest, sync, whole_folder
from rpiae.interop.latents.arrays import (
    FACTS_FILE,
    arrays,
    is_labelled,
    opened,
    origin,
    remarks,
    write_facts,
)
from rpiae.latents.reading import LatentDataset

#: Bytes behind which a shard takes no further sample.
FULL = 1 << 30


def write_webdataset(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    shard_size: int | None = None,
) -> list[str]:
    """Write latents as tar shards ``latents-000000.tar``, …, and ``facts.json`` beside them.

    A sample has a member ``KEY.latent.npy``, or ``KEY.mean.npy`` and ``KEY.logvar.npy``, each also with
    ``_flipped`` where mirrored images are stored; ``KEY.cls``, the label, where the source has labels; and
    ``KEY.json``, what it is of. Keys are eight digits of the item's number. The same folder gives the same
    bytes.

    Args:
        folder: what ``rpiae encode`` wrote.
        out: the new folder.
        shard_size: samples per shard; as many as in the folder's own where not given. Shards of more than
            1 GiB end earlier.

    Returns:
        Sentences on what was written.

    Raises:
        CheckpointError: if the latents are incomplete or damaged.
        UsageError: if ``out`` is there already, or ``shard_size`` is no number of samples.
        RunError: if it cannot be written. Nothing is left there then.
    """
    latents = opened(folder)
    size = latents.index["settings"]["shard_size"] if shard_size is None else shard_size
    if size < 1:
        raise UsageError(f"shard_size must be at least 1, got {size}")
    with whole_folder(Path(out)) as made:
        shards = _write_shards(latents, made, size)
        write_facts(latents, made, shards=shards)
    last = shards[-1]["file"]
    return [
        f"{len(latents)} samples in {len(shards)} shards, {shards[0]['file']} to {last}",
        f"{FACTS_FILE} has latents_mean and latents_std, the names of the classes and the tokenizer's "
        "fingerprint",
        *remarks(latents, "cls"),
    ]


def _write_shards(latents: LatentDataset, folder: Path, size: int) -> list[dict[str, Any]]:
    """All samples, and what shards they are in."""
    shards: list[dict[str, Any]] = []
    index = 0
    while index < len(latents):
        path = folder / f"latents-{len(shards):06}.tar"
        first = index
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            while index < min(first + size, len(latents)) and archive.offset < FULL:
                _add_sample(archive, f"{index:08}", _members(latents, index))
                index += 1
        sync(path)
        shards.append({"file": path.name, "count": index - first, "sha256": file_digest(path)})
    return shards


def _members(latents: LatentDataset, index: int) -> dict[str, bytes]:
    """The content of a sample's files, by their endings."""
    members = {f"{name}.npy": _npy(array) for name, array in arrays(latents, index).items()}
    if is_labelled(latents):
        members["cls"] = str(int(latents.labels[index])).encode()
    members["json"] = json.dumps(origin(latents, index), ensure_ascii=False).encode()
    return members


def _npy(array: NDArray[np.floating]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _add_sample(archive: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """Add files without owner and time, which would differ from call to call."""
    for ending, content in members.items():
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
