"""Pictures for people: before and after, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

GAP = 4


def to_image(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """An image in [0, 1] as an 8-bit picture (rounded)."""
    values = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(values))


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


def draw_curves(
    path: Path,
    losses: Mapping[str, Sequence[tuple[int, float]]],
    metrics: Mapping[str, Sequence[tuple[int, float]]],
    boundaries: Mapping[str, int],
) -> None:
    """Loss terms (logarithmic) and held-out metrics over the steps of the whole run, as a PNG.

    Args:
        path: where.
        losses, metrics: label → (step, value) points.
        boundaries: stage → its first step.
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
    lower.set_ylabel("held-out PSNR (dB)")
    lower.set_xlabel("optimiser step")
    figure.savefig(path, dpi=120)
