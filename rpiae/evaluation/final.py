"""Final evaluation of a run from what it saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rpiae.core.errors import RunError
from rpiae.core.model.contracts import HeldOut
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.runtime.files import plain_name
from rpiae.evaluation.pictures import side_by_side
from rpiae.evaluation.reconstruction import (
    drift,
    linear_code,
    mean_colour,
    photographs,
    reconstruct_held_out,
    score,
)
from rpiae.evaluation.trained_run import read_run
from rpiae.tasks.tokenizer.pivot import read_pivot
from rpiae.tasks.tokenizer.replica import PivotReplica

#: Training crops that the linear code is fitted on, in pixels; some 65,000 patches of 4×4.
FITTING_PIXELS = 1 << 20


def evaluate_run(folder: Path) -> dict[str, Any]:
    """Held-out scores of a run's saved tokenizer, the two yardsticks, drift, and sample pictures.

    Args:
        folder: a run's folder; pictures go to its ``samples/``.

    Returns:
        psnr, ssim, psnr_mean_colour, psnr_pca, drift, and the first four per photograph. An exact
        reconstruction counts as 100 dB; images too small for it have no ssim.

    Raises:
        RunError: if the tokenizer's output is not finite.
    """
    run = read_run(folder)
    assert run.data is not None
    data = run.data.build()
    held_out: HeldOut = data.held_out()
    model = load_tokenizer(folder)
    assert model.config is not None
    made = reconstruct_held_out(model, held_out)
    if not made.isfinite().all():
        raise RunError(f"the tokenizer in {folder} gives numbers that are not finite")
    facts = model.config.bridge_facts
    patch = model.decoder.patch[1] * facts.downsampling
    training = data.crops(max(16, FITTING_PIXELS // data.image_size**2), seed=run.seed)
    coded = linear_code(training, held_out.images, patch=patch, channels=facts.latent_channels)
    flat = mean_colour(held_out.images, patch=patch)
    ours, linear, colour = (score(images, held_out) for images in (made, coded, flat))
    replica = PivotReplica(
        read_pivot(folder, run.encoder), output_patch=model.decoder.patch,
        downsampling=model.bridge.downsampling,
    )  # fmt: skip
    _write_samples(folder / "samples", held_out, [held_out.images, made, flat])
    similarity = {} if ours.ssim is None else {"ssim": ours.ssim}
    return {
        "psnr": ours.psnr,
        **similarity,
        "psnr_mean_colour": colour.psnr,
        "psnr_pca": linear.psnr,
        "drift": drift(model, replica, held_out.images),
        "photographs": {
            name: {
                **values,
                "psnr_mean_colour": colour.photographs[name]["psnr"],
                "psnr_pca": linear.photographs[name]["psnr"],
            }
            for name, values in ours.photographs.items()
        },
    }


def _write_samples(folder: Path, held_out: HeldOut, columns: list[Any]) -> None:
    """Image, reconstruction and mean colours of up to sixteen photographs."""
    folder.mkdir(exist_ok=True)
    sheets = [photographs(images, held_out) for images in columns]
    for name in list(sheets[0])[:16]:
        side_by_side([sheet[name] for sheet in sheets]).save(folder / f"{plain_name(name)}.png")
