"""What a support vector machine reads in samples of digits, and the picture of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import asdict, frozen
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.files import write_text
from rpiae.core.training import events
from rpiae.runs.demonstration.reader import DigitReader, scans
from rpiae.sampling.loaded import LoadedGenerator
from rpiae.sampling.outputs import Pictures, save_sheet, sheet

READING_FILE, PICTURE_FILE = "reading.json", "samples.png"

#: Samples of each digit in the picture at most.
SHOWN = 8

#: Images that are reconstructed together.
TOGETHER = 256


@frozen(kw_only=True)
class Read(events.Event):
    """Shares of images that a support vector machine, fitted to the scans that all was trained on, reads
    as the digit that they should show.

    Attributes:
        guided, unguided: of samples.
        scans: of held-out scans.
        reconstructions: of these through the tokenizer.
        digits: of guided samples, by digit.
        count: samples of each kind.
        guidance: its scale.
        picture: unguided samples on the left, guided ones on the right, a row per digit.
    """

    guided: float
    unguided: float
    scans: float
    reconstructions: float
    digits: tuple[float, ...]
    count: int
    guidance: float
    picture: Path


def read_samples(
    generator: LoadedGenerator, folder: Path, *, guided: Path, unguided: Path, guidance: float
) -> Read:
    """Read samples, draw them, and write down what was read.

    Args:
        generator: that they are of.
        folder: where to.
        guided, unguided: files of samples with their digits, in ADM's layout.
        guidance: scale, of the guided ones.

    Raises:
        CheckpointError: if a file of samples is damaged.
    """
    reader = DigitReader()
    (ours, asked), (plain, _) = _samples(guided), _samples(unguided)
    digits = sorted(set(asked))
    columns = min(SHOWN, *(asked.count(digit) for digit in digits))
    first = [i for digit in digits for i in np.flatnonzero(np.array(asked) == digit)[:columns]]
    picture = folder / PICTURE_FILE
    save_sheet(sheet([plain[first], ours[first]], columns), picture, {"guidance": guidance})
    tokenizer = generator.tokenizer
    held_out, shown = scans("held-out", tokenizer.trained_size)
    found = reader.read(_images(ours)) == np.array(asked)
    read = Read(
        guided=float(found.mean()),
        unguided=reader.share(_images(plain), asked),
        scans=reader.share(held_out, shown),
        reconstructions=reader.share(_reconstructed(generator, held_out), shown),
        digits=tuple(float(found[np.array(asked) == digit].mean()) for digit in digits),
        count=len(asked),
        guidance=guidance,
        picture=picture,
    )
    write_text(folder / READING_FILE, json.dumps(_row(read), indent=2) + "\n")
    return read


def _row(read: Read) -> dict[str, Any]:
    return asdict(read) | {"picture": read.picture.name}


def _samples(path: Path) -> tuple[Pictures, list[int]]:
    """Images (n, h, w, 3) and digits of a file of samples."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["arr_0"], file["arr_1"].tolist()
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Remove it to make it anew"
        ) from None


def _images(pictures: Pictures) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def _reconstructed(generator: LoadedGenerator, images: Tensor) -> Tensor:
    tokenizer = generator.tokenizer
    return torch.cat(
        [
            tokenizer.decode(tokenizer.encode(part.to(generator.device)).mode()).clamp(0, 1).cpu()
            for part in torch.split(images, TOGETHER)
        ]
    )
