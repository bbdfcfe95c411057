"""Sheets of some clips for people: their frames, and lines of pixels over time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rpiae.data.images import Pixels
from rpiae.evaluation.clip_pictures import SpaceTimeSlice
from rpiae.evaluation.pictures import GAP, strip

#: Frames of a clip in a strip.
SHOWN_FRAMES = 9

#: Pixels per frame in a slice: a clip has few frames.
WIDENED = 4


def frame_strips(clips: Sequence[Float[Tensor, "3 t h w"]]) -> Image.Image:
    """Clips of one size below each other, with a white gap: some frames of each, evenly spaced from the
    first to the last."""
    frames = clips[0].shape[1]
    shown = torch.linspace(0, frames - 1, min(frames, SHOWN_FRAMES)).round().long()
    return _sheet([strip(clip[:, shown].transpose(0, 1)) for clip in clips], down=True)


def slices(
    originals: Sequence[Float[Tensor, "3 t h w"]], made: Sequence[Float[Tensor, "3 t h w"]]
) -> Image.Image:
    """The space-time slices of clips next to each other, with a white gap, see ``SpaceTimeSlice``."""
    found = []
    for original, reconstruction in zip(originals, made, strict=True):
        lines = SpaceTimeSlice()
        lines.add(_pixels(original), _pixels(reconstruction))
        picture = lines.picture()
        size = (picture.width * WIDENED, picture.height)
        found.append(picture.resize(size, Image.Resampling.NEAREST))
    return _sheet(found, down=False)


def _pixels(clip: Float[Tensor, "3 t h w"]) -> Pixels:
    """A clip in [0, 1] as bytes (t, h, w, 3)."""
    return (clip * 255).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def _sheet(pictures: Sequence[Image.Image], *, down: bool) -> Image.Image:
    """Pictures of one size in a column or in a row, with white gaps."""
    width, height = pictures[0].size
    step = (0, height + GAP) if down else (width + GAP, 0)
    last = [s * (len(pictures) - 1) for s in step]
    sheet = Image.new("RGB", (width + last[0], height + last[1]), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (step[0] * number, step[1] * number))
    return sheet
