"""Latents of images to PNG files, and what decoding latents has in common."""

from __future__ import annotations

import itertools
import math
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from attrs import frozen
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rpiae.core.errors import CheckpointError, RunError, UsageError
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.data.images import to_image
from rpiae.data.sources import EXTENSIONS
from rpiae.latents.reading import LatentDataset

#: Names under which a file of several tensors may hold its latents.
LATENT_NAMES = ("latent", "latents", "samples", "mean")

#: Tokens of one picture up to which it is decoded: 4096 pixels square at 16 pixels per token. Memory
#: grows with them, and time with their square.
MOST_DECODED_TOKENS = 1 << 16

#: File name endings of single tensors.
TENSOR_FILES = (".safetensors", ".npy", ".pt", ".pth")


@frozen(kw_only=True)
class Decoded:
    """Progress of ``decode_latents``."""

    done: int
    total: int


def decode_latents(
    model: RPiAE,
    latents: LatentDataset | Float[Tensor, "n c h w"],
    out: str | os.PathLike[str],
    *,
    runtime: Runtime,
    batch_size: int,
    limit: int | None = None,
    norm: RPiAE | LatentDataset | None = None,
) -> Iterator[Decoded]:
    """Decode latents into 8-bit PNG files.

    Those of a dataset get the names of their images, with ``.png`` in place of the ending, and the
    size that was encoded; others are numbered.

    Args:
        model: what decodes.
        latents: latents, or a folder of them.
        out: a new or empty folder.
        runtime: device and precision.
        batch_size: latents per forward pass.
        limit: how many are decoded.
        norm: whose normalisation is undone first.

    Raises:
        UsageError: if they are no latents of this tokenizer, or ``out`` is not empty.
        RunError: if latents are not finite, or a picture cannot be written.
    """
    folder = Path(out)
    check_decodable(model, latents, folder, limit, norm)
    size: tuple[int, int] | None = None
    if isinstance(latents, LatentDataset):
        size = (latents.index["image_size"],) * 2
        batches = latents.in_order(batch_size, limit=limit)
        total = min(len(latents), limit or len(latents))
    else:
        tensor = latents if limit is None else latents[:limit]
        total = len(tensor)
        batches = _numbered(tensor, batch_size)
    model = model.to(runtime.device)
    used: set[str] = set()
    done = 0
    for batch, names in batches:
        values = decodable(model, batch.to(runtime.device), names, norm)
        with torch.no_grad(), runtime.autocast():
            images = model.decode(values, size=size)
        for image, name in zip(images.float(), names, strict=True):
            save_picture(image, folder / file_name(name, done, used))
            done += 1
        yield Decoded(done=done, total=total)


def decodable(
    model: RPiAE,
    latents: Float[Tensor, "b c ..."],
    names: Sequence[str],
    norm: RPiAE | LatentDataset | None,
) -> Float[Tensor, "b c ..."]:
    """Latents in fp32 as the tokenizer made them.

    Args:
        model: what decodes.
        latents: of images or clips.
        names: theirs.
        norm: whose normalisation is undone.

    Raises:
        RunError: if they are not finite.
    """
    values = latents.float()
    for row, name in zip(values, names, strict=True):
        if not row.isfinite().all():
            raise RunError(f"latent {name} is not finite, so it cannot be decoded")
    if isinstance(norm, RPiAE):
        return model.denormalise_latent(values)
    return values if norm is None else norm.denormalised(values)


def read_tensor(path: str | os.PathLike[str]) -> Float[Tensor, "n c ..."]:
    """Latents from a file of one tensor: safetensors, ``.npy``, or ``.pt`` without code in it.

    Shapes:
        (n, C, h, w) of images, (n, C, t, h, w) of clips

    Raises:
        UsageError: if it is of another kind, or it does not say which of its tensors is meant.
        CheckpointError: if it is missing or damaged.
    """
    file = Path(path)
    kind = file.suffix.lower()
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist")
    if kind not in TENSOR_FILES:
        raise UsageError(
            f"{file}: latents are a folder that rpiae encode wrote, or a file that ends in "
            f"{', '.join(TENSOR_FILES)}"
        )
    try:
        if kind == ".safetensors":
            found = _from_safetensors(file)
        elif kind == ".npy":
            found = torch.from_numpy(np.load(file, allow_pickle=False))
        else:
            found = _from_torch(file)
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        if isinstance(error, UsageError):
            raise
        raise CheckpointError(f"{file} cannot be read: {_first_line(error)}") from None
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file} cannot be read: it is damaged, or holds more than tensors; save the tensor alone"
        ) from None
    if found.ndim not in (4, 5) or not found.is_floating_point():
        raise UsageError(
            f"{file} holds {str(found.dtype).removeprefix('torch.')} {tuple(found.shape)}; latents "
            "are float tensors (n, C, h, w), or (n, C, t, h, w) of clips"
        )
    return found


def _from_safetensors(file: Path) -> Tensor:
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
        return opened.get_tensor(_chosen(file, names))  # type: ignore[no-any-return]  # untyped


def _from_torch(file: Path) -> Tensor:
    found: Any = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(found, dict):
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        found = tensors[_chosen(file, list(tensors))]
    if not isinstance(found, Tensor):
        raise UsageError(f"{file} holds a {type(found).__name__}; latents are a tensor")
    return found


def _chosen(file: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    known = [name for name in LATENT_NAMES if name in names]
    if not known:
        held = f"the tensors {', '.join(sorted(names)[:8])}" if names else "no tensor"
        raise UsageError(
            f"{file} holds {held}; call the one of the latents {LATENT_NAMES[0]!r}, or save it alone"
        )
    return known[0]


def _numbered(latents: Tensor, batch_size: int) -> Iterator[tuple[Tensor, list[str]]]:
    """Latents batch by batch, with numbers for names."""
    names = numbers(len(latents))
    for start in range(0, len(latents), batch_size):
        yield latents[start : start + batch_size], names[start : start + batch_size]


def numbers(count: int) -> list[str]:
    """Names of so many latents that have none."""
    width = max(5, len(str(count - 1)))
    return [f"{number:0{width}}" for number in range(count)]


def check_decodable(
    model: RPiAE,
    latents: LatentDataset | Tensor,
    folder: Path,
    limit: int | None,
    norm: RPiAE | LatentDataset | None,
    *,
    tiled: bool = False,
) -> None:
    """Refuse what cannot be decoded, and make the folder.

    Args:
        model: what decodes.
        latents: latents, or a folder of them.
        folder: where to.
        limit: how many are decoded.
        norm: whose normalisation is undone first.
        tiled: whether frames are decoded in tiles, so that they may be of any size.

    Raises:
        UsageError: see ``decode_latents``.
    """
    shape = latents.latent_shape if isinstance(latents, LatentDataset) else latents.shape[1:]
    channels = model.bridge.latent_channels
    if shape[0] != channels:
        raise UsageError(
            f"these latents have {shape[0]} channels, this tokenizer's have {channels}: name the "
            "one that made them with --run"
        )
    height, width = _largest(latents)
    tokens = height * width * model.bridge.downsampling**2
    if tokens > MOST_DECODED_TOKENS and not tiled:
        raise UsageError(
            f"these latents are of {height}×{width}, {tokens} tokens for the decoder; pictures of "
            f"more than {MOST_DECODED_TOKENS} are not decoded. Cut the latents into smaller ones"
            + (", or decode in tiles with --tile" if len(shape) == 4 else "")
        )
    if isinstance(norm, RPiAE):
        norm.denormalise_latent(torch.zeros(channels, 1, 1, device=norm.mean.device))
    elif norm is not None and norm.latent_shape[0] != channels:
        raise UsageError(
            f"{norm.folder} has latents of {norm.latent_shape[0]} channels, these have {channels}"
        )
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, got {limit}")
    if not len(latents):
        raise UsageError("there are no latents to decode")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder: name another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror}. Name another --out"
        ) from None


def _largest(latents: LatentDataset | Tensor) -> tuple[int, int]:
    """Height and width of the largest latent."""
    if not isinstance(latents, LatentDataset):
        return latents.shape[-2], latents.shape[-1]
    sizes = [latents.latent_shape[-2:]]
    if latents.windows is not None:
        sizes = [video.latent_shape[2:] for video in latents.windows.videos]
    height, width = max(sizes, key=math.prod)
    return height, width


def save_picture(image: Float[Tensor, "3 h w"], path: Path) -> None:
    """Write an image in [0, 1] as a PNG file, with the folders that it needs.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        to_image(image).save(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


def file_name(
    name: str,
    number: int,
    used: set[str],
    *,
    known: tuple[str, ...] = EXTENSIONS,
    ending: str = ".png",
) -> str:
    """A file below the output folder for a name, which is not trusted, and never twice.

    Args:
        name: what the source calls what is decoded.
        number: its number.
        used: names that are taken; this one is added.
        known: endings that the new one takes the place of.
        ending: of the file.
    """
    parts = [
        part for part in PurePosixPath(name.replace("\0", "")).parts if part not in ("/", "..")
    ]
    plain = "/".join(parts) or f"{number:05}"
    stem, old = os.path.splitext(plain)
    candidates = (f"{stem if old.lower() in known else plain}{ending}", f"{plain}{ending}")
    numbered = (f"{plain}-{other}{ending}" for other in itertools.count(number))
    chosen = next(c for c in itertools.chain(candidates, numbered) if c not in used)
    used.add(chosen)
    return chosen


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
