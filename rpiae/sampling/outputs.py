"""What samples become: sheets, folders of PNG files, ADM's files of images, files of latents."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from torch import Tensor

from rpiae.core.model.geometry import to_8_bits
from rpiae.core.model.latent_generator import LatentFacts
from rpiae.core.runtime.files import plain_name, whole
from rpiae.latents.layout import METADATA
from rpiae.sampling.labels import IMAGES, LABELS, NAMES, write_labels
from rpiae.sampling.plan import Form, SamplingPlan

#: Pixels between samples of a sheet, and between guided and unguided ones.
GAP, WIDE_GAP = 2, 12

Pictures = npt.NDArray[np.uint8]  # (n, h, w, 3)
Chunks = Iterator[dict[str, Tensor]]


def to_bytes(
    images: Float[Tensor, "n 3 h w"], *, truncate: bool = False
) -> UInt8[Tensor, "n h w 3"]:
    """Images in [0, 1] as bytes, on the CPU: to the nearest, or rounded down as the reference does."""
    values = to_8_bits(images, rounding="truncate" if truncate else "nearest") * 255
    return values.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()


def sheet(blocks: Sequence[Pictures], columns: int) -> Image.Image:
    """Pictures row by row, with white gaps; several blocks of them beside each other.

    Args:
        blocks: (n, h, w, 3) each, all of one shape.
        columns: pictures of a block beside each other.
    """
    n, height, width, _ = blocks[0].shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    block_width = columns * (width + GAP) - GAP
    size = (
        len(blocks) * (block_width + WIDE_GAP) - WIDE_GAP,
        rows * (height + GAP) - GAP,
    )
    made = Image.new("RGB", size, "white")
    for block, pictures in enumerate(blocks):
        left = block * (block_width + WIDE_GAP)
        for place, picture in enumerate(pictures):
            row, column = divmod(place, columns)
            corner = (left + column * (width + GAP), row * (height + GAP))
            made.paste(Image.fromarray(picture), corner)
    return made


def save_sheet(made: Image.Image, path: Path, settings: Mapping[str, Any]) -> None:
    """Write a sheet whole; it says in a text of its own how it was made.

    Raises:
        OSError: if it cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text(METADATA, json.dumps(settings))
    with whole(path) as unfinished:
        made.save(unfinished, format="PNG", pnginfo=text)


def is_sheet(path: Path) -> bool:
    """Whether a file is a sheet of samples that ``save_sheet`` wrote."""
    try:
        with Image.open(path) as picture:
            return picture.format == "PNG" and METADATA in picture.info
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def write_output(
    form: Form, plan: SamplingPlan, chunks: Chunks, path: Path, facts: LatentFacts
) -> None:
    """Write what samples become.

    Args:
        form: what that is.
        plan: what was made.
        chunks: the tensors of all files of work, in their order.
        path: where to.
        facts: which classes there are.

    Raises:
        OSError, SafetensorError: if it cannot be written.
    """
    writers: Mapping[Form, Callable[[SamplingPlan, Chunks, Path, LatentFacts], None]] = {
        "grid": _write_grid, "npz": _write_npz, "latents": _write_latents, "folder": _write_folder,
    }  # fmt: skip
    writers[form](plan, chunks, path, facts)


def _labels(plan: SamplingPlan, facts: LatentFacts) -> list[int]:
    """Class of each sample; −1 for none."""
    return [-1 if label == facts.num_classes else label for label in plan.labels]


def _write_grid(plan: SamplingPlan, chunks: Chunks, path: Path, _: LatentFacts) -> None:
    found = list(chunks)
    kinds = ("unguided", "images") if plan.compare else ("images",)
    blocks = [torch.cat([chunk[kind] for chunk in found]).numpy() for kind in kinds]
    save_sheet(sheet(blocks, plan.columns), path, plan.settings())


def _write_npz(plan: SamplingPlan, chunks: Chunks, path: Path, facts: LatentFacts) -> None:
    """``arr_0``: images (n, h, w, 3) in uint8; ``arr_1``: labels (n,) in int64; ``label_names``: names
    of the classes, where they are known. One chunk at a time is in memory."""
    first = next(chunks)
    shape = (plan.num_images, *first["images"].shape[1:])
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(f"{IMAGES}.npy", "w", force_zip64=True) as file:
            _write_header(file, "|u1", shape)
            file.write(first["images"].numpy().data)
            for chunk in chunks:
                file.write(chunk["images"].numpy().data)
        arrays = {LABELS: np.array(_labels(plan, facts), dtype="<i8")}
        if facts.label_names:
            arrays[NAMES] = np.array(facts.label_names)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)


def _write_header(file: Any, dtype: str, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )


def _write_latents(plan: SamplingPlan, chunks: Chunks, path: Path, facts: LatentFacts) -> None:
    tensors = {
        "latents": torch.cat([chunk["latents"] for chunk in chunks]),
        "labels": torch.tensor(_labels(plan, facts)),
    }
    described = {"settings": plan.settings(), "label_names": list(facts.label_names)}
    save_file(tensors, path, metadata={METADATA: json.dumps(described)})
    path.chmod(0o644)  # safetensors lets its owner alone read it


def _write_folder(plan: SamplingPlan, chunks: Chunks, path: Path, facts: LatentFacts) -> None:
    """A PNG file per sample, named by its index and class, and an index of the classes: names of files
    hold the plain ones alone."""
    path.mkdir(exist_ok=True)
    labels, labelled = _labels(plan, facts), dict[str, int]()
    digits = max(5, len(str(plan.num_images - 1)))
    for number, chunk in enumerate(chunks):
        for index, picture in zip(plan.shard(number), chunk["images"].numpy(), strict=True):
            name = f"{index:0{digits}}{class_ending(labels[index], facts.label_names)}.png"
            Image.fromarray(picture).save(path / name)
            labelled[name] = labels[index]
    write_labels(path, labelled, facts.label_names)


def class_ending(label: int, names: Sequence[str]) -> str:
    """A class at the end of a file's name; nothing for none, −1."""
    if label < 0:
        return ""
    return f"-{plain_name(names[label]) if names else label}"
