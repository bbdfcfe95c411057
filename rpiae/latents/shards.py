"""Shards of latents on disk: each is written whole, under a name of its own."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rpiae.core.errors import CheckpointError, DataError, RunError
from rpiae.core.runtime.names import printable
from rpiae.data.listed import EveryImage
from rpiae.data.video.listed import EveryClip
from rpiae.latents.encoding import add_stored
from rpiae.latents.index import write_index
from rpiae.latents.layout import (
    DTYPES,
    METADATA,
    UNFINISHED,
    Plan,
    check_content,
    check_shard,
    tensor_digest,
    tree_digest,
)
from rpiae.latents.statistics import ChannelStatistics


def write_shard(
    folder: Path,
    plan: Plan,
    number: int,
    images: EveryImage,
    tensors: dict[str, Tensor],
    skipped: dict[int, str],
) -> None:
    """A shard under a temporary name, which is then renamed."""
    tensors = _without_images(plan) | tensors
    statistics = ChannelStatistics(plan.latent_shape[0])
    add_stored(statistics, tensors, plan.settings)
    described: dict[str, Any] = {
        "format": plan.format,
        "plan": plan.digest(),
        "shard": number,
        "names": [printable(images.name(i)) for i in tensors["position"].tolist()],
        "skipped": [
            {
                "position": position,
                "name": printable(images.name(position)),
                "reason": printable(reason),
            }
            for position, reason in skipped.items()
        ],
        "statistics": statistics.as_tree(),
        "tensors": {name: tensor_digest(tensor) for name, tensor in tensors.items()},
    }
    if isinstance(images, EveryClip):
        described["rates"] = [str(images.rate(i)) for i in tensors["position"].tolist()]
    described["sha256"] = tree_digest(described)
    path = folder / plan.file(number)
    part = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        # One key alone: safetensors writes several in an order that changes from call to call.
        save_file(tensors, part, metadata={METADATA: json.dumps(described)})
        part.chmod(0o644)  # safetensors lets its owner alone read it
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunError(
            f"cannot write {path}: {error}. Shards that are complete stay; free some space and call "
            "again to go on"
        ) from None


def _without_images(plan: Plan) -> dict[str, Tensor]:
    """What a shard holds none of whose images can be used."""
    latents = torch.empty(0, *plan.latent_shape, dtype=DTYPES[plan.settings.dtype])
    numbers = ("position", "label") if plan.labelled else ("position",)
    return {
        **{name: latents.clone() for name in plan.settings.tensors},
        **{name: torch.empty(0, dtype=torch.int64) for name in numbers},
    }


def problem_of(plan: Plan, folder: Path, number: int, images: EveryImage) -> str:
    """Why a shard has to be written, or nothing."""
    try:
        metadata = check_content(plan, folder, number)
    except CheckpointError as error:
        return str(error)
    skipped = {row["position"]: row["name"] for row in metadata["skipped"]}
    names = iter(metadata["names"])
    for position in plan.shard(number):
        recorded = skipped[position] if position in skipped else next(names)
        if recorded != (name := printable(images.name(position))):
            return f"{folder / plan.file(number)} has {recorded} where the dataset now has {name}"
    return ""


def finished_index(folder: Path, plan: Plan, images: EveryImage) -> dict[str, Any]:
    """Look at all shards, and write the index."""
    found = ChannelStatistics(plan.latent_shape[0])
    shards, skipped = [], []
    for number in range(plan.num_files):
        metadata = check_shard(plan, folder, number)
        found.merge(ChannelStatistics.from_tree(metadata["statistics"]))
        shards.append({
            "file": plan.file(number), "count": len(metadata["names"]),
            "sha256": metadata["sha256"],
        })  # fmt: skip
        skipped += metadata["skipped"]
    if not found.count:
        raise DataError(images.none_usable())
    return write_index(
        folder, plan, complete=True, count=sum(shard["count"] for shard in shards),
        statistics={
            "count": found.count, "mean": found.mean.tolist(), "std": found.std.tolist(),
        },
        shards=shards, skipped=skipped,
    )  # fmt: skip
