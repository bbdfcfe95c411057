"""Latents as NumPy arrays, and the facts that go with them, whatever file they go into."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpiae.latents.reading import LatentDataset

FACTS_FILE = "facts.json"
FORMAT = 1

#: NumPy's type for each stored one. It has no bfloat16; float32 holds the same values.
ARRAY_TYPES: Mapping[str, str] = {"fp32": "float32", "bf16": "float32", "fp16": "float16"}


def opened(folder: str | os.PathLike[str]) -> LatentDataset:
    """A folder of latents, of whole videos too.

    Raises:
        CheckpointError: if it is incomplete or damaged.
    """
    return LatentDataset(folder, sample=False)


def array_type(latents: LatentDataset) -> str:
    """Name of the NumPy type that the latents are given in."""
    return ARRAY_TYPES[latents.index["settings"]["dtype"]]


def arrays(latents: LatentDataset, index: int) -> dict[str, NDArray[np.floating]]:
    """All that is stored of an item, by the name of the tensor, (C, h, w) or (C, t, h, w).

    Raises:
        CheckpointError: if it is damaged.
    """
    wide = latents.index["settings"]["dtype"] == "bf16"
    tensors = {name: latents.tensor(index, name) for name in latents.tensors}
    return {name: (t.float() if wide else t).numpy() for name, t in tensors.items()}


def origin(latents: LatentDataset, index: int) -> dict[str, Any]:
    """What an item is of: ``name`` and ``position`` in the source, ``frame_rate`` of clips and videos, and
    of videos also ``frames``, ``height`` and ``width`` of the frames, and ``problem``."""
    found: dict[str, Any] = {
        "name": latents.name(index),
        "position": int(latents.positions[index]),
    }
    if (rate := latents.frame_rate(index)) is not None:
        found["frame_rate"] = str(rate)
    if latents.windows is not None:
        video, _ = latents.windows.window(index)
        found |= {
            "frames": video.frames, "height": video.height, "width": video.width,
            "problem": video.problem,
        }  # fmt: skip
    return found


def bytes_of_item(latents: LatentDataset, index: int) -> int:
    """Bytes of an item's arrays."""
    return sum(array.nbytes for array in arrays(latents, index).values())


def write_facts(latents: LatentDataset, folder: Path, **more: Any) -> None:
    """Write ``facts.json``: what holds for all of the latents.

    Args:
        latents: the latents.
        folder: where to.
        more: further keys.
    """
    tree = facts(latents) | more
    text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
    (folder / FACTS_FILE).write_text(text, encoding="utf-8")


def facts(latents: LatentDataset) -> dict[str, Any]:
    """What holds for all of the latents, as JSON values.

    Sides in which items differ are 0 in ``latent_shape``. ``latents_mean`` and ``latents_std`` are those
    of ``LatentDataset``: ``(latent - mean) / std`` per channel normalises.
    """
    path, sha256 = latents.tokenizer
    settings = latents.index["settings"]
    return {
        "format": FORMAT,
        "rpiae": importlib.metadata.version("rpiae"),
        "count": len(latents),
        "tensors": list(latents.tensors),
        "latent_shape": list(latents.latent_shape),
        "dtype": array_type(latents),
        "stored_dtype": settings["dtype"],
        "posterior": settings["posterior"],
        "latents_mean": latents.mean.flatten().tolist(),
        "latents_std": latents.std.flatten().tolist(),
        "labelled": is_labelled(latents),
        "label_names": list(latents.label_names),
        "tokenizer": {"path": path, "sha256": sha256},
        "location": latents.index["location"],
        "latents": latents.fingerprint,
    }


def is_labelled(latents: LatentDataset) -> bool:
    """Whether the source has labels."""
    return bool(latents.index.get("labelled", False))


def remarks(latents: LatentDataset, label: str) -> list[str]:
    """What is to be known about values and labels, in sentences.

    Args:
        latents: the latents.
        label: what labels are called where they are written.
    """
    said = []
    if latents.index["settings"]["dtype"] == "bf16":
        said.append(
            "the latents are stored in bfloat16, which NumPy does not have: they were written as "
            "float32, with the same values in twice the space"
        )
    if not is_labelled(latents):
        said.append(f"the source has no labels, so there is no {label}")
    elif missing := int((latents.labels < 0).sum()):
        said.append(f"{missing} of {len(latents)} have no label: their {label} is -1")
    return said
