"""Pictures for people: before and after, and curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rpiae.core.model.contracts import Features
from rpiae.data.images import to_image
from rpiae.evaluation.resemblance import similarity_map

GAP = 4


def side_by_side(images: Sequence[Float[Tensor, "3 h w"]]) -> Image.Image:
    """Images of one size next to each other, with a white gap."""
    pictures = [to_image(image) for image in images]
    width = sum(p.width for p in pictures) + GAP * (len(pictures) - 1)
    sheet = Image.new("RGB", (width, pictures[0].height), "white")
    x = 0
    for picture in pictures:
        sheet.paste(picture, (x, 0))
        x += picture.width + GAP
    return sheet


def strip(images: Iterable[Float[Tensor, "3 h w"]]) -> Image.Image:
    """Images next to each other, without gaps."""
    return to_image(torch.cat(list(images), dim=-1))


def similarity_sheet(
    images: Float[Tensor, "n 3 h w"], features: Features, pivot: Features | None
) -> Image.Image:
    """A row per image: the image with a marked place, how like that place's token all others are
    (cosine similarity, −1 dark to 1 bright), and the same for the pivot's tokens.

    The place is the middle of the grid.
    """
    _, rows, columns = features.grid
    place = (rows // 2, columns // 2)
    size = (images.shape[-2], images.shape[-1])
    sheet = []
    for number, image in enumerate(images):
        marked = image.clone()
        top, left = (place[0] * size[0] // rows, place[1] * size[1] // columns)
        bottom, right = top + max(1, size[0] // rows), left + max(1, size[1] // columns)
        marked[:, top:bottom, left:right] = torch.tensor([1.0, 0, 0], device=image.device).view(
            3, 1, 1
        )
        row = [marked]
        for found in (features, pivot):
            if found is not None:
                likeness = similarity_map(found.tokens[number], found.grid, place)
                grey = F.interpolate(((likeness + 1) / 2)[None, None].float(), size=size)[0]
                row.append(grey.to(image.device).expand(3, -1, -1))
        sheet.append(torch.cat(row, dim=-1))
    return to_image(torch.cat(sheet, dim=-2))


def draw_curves(
    path: Path,
    losses: Mapping[str, Sequence[tuple[int, float]]],
    metrics: Mapping[str, Sequence[tuple[int, float]]],
    boundaries: Mapping[str, int],
    *,
    what: str,
) -> None:
    """Loss terms (logarithmic) and held-out metrics over the steps of the whole run, as a PNG.

    Args:
        path: where.
        losses, metrics: label → (step, value) points.
        boundaries: stage → its first step.
        what: what the metrics are, in words.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axis, series in ((upper, losses), (lower, metrics)):
        for label, points in series.items():
            axis.plot(*zip(*points, strict=True), label=label, linewidth=1)
        for stage, step in boundaries.items():
            axis.axvline(step, color="0.8", zorder=0)
            axis.annotate(
                stage, (step, 1.0), xycoords=("data", "axes fraction"), fontsize=8, va="bottom"
            )
        if series:
            axis.legend(fontsize=8)
    upper.set_yscale("log")
    upper.set_ylabel("loss terms")
    lower.set_ylabel(what)
    lower.set_xlabel("optimiser step")
    figure.savefig(path, dpi=120)
