"""Final evaluation of a run from what it saved."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import Dataset, HeldOut
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.folding import fold
from rpiae.core.model.geometry import to_8_bits
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import plain_name
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.accumulators import Accumulator
from rpiae.evaluation.clip_sheets import frame_strips, slices
from rpiae.evaluation.engine import Examiner, measure
from rpiae.evaluation.examination import Examination, Measured
from rpiae.evaluation.images import held_out_pictures
from rpiae.evaluation.interpolation import frames_per_latent
from rpiae.evaluation.panel import Panel, built, metric_configs, needing
from rpiae.evaluation.pictures import side_by_side
from rpiae.evaluation.pixels import SSIM_WINDOW, psnr_of, squared_errors, ssim_of
from rpiae.evaluation.trained_run import read_run
from rpiae.evaluation.walk import Walk
from rpiae.evaluation.yardsticks import LinearCode, MeanColour, OverTime
from rpiae.latents.encoding import batch_size_for
from rpiae.tasks.tokenizer.pivot import read_pivot
from rpiae.tasks.tokenizer.replica import PivotReplica

#: Training crops that the linear code is fitted on, in pixels; some 65,000 patches of 4×4.
FITTING_PIXELS = 1 << 20

#: Photographs that are written as pictures, and what is shown of each.
SHOWN = 16
COLUMNS = 3

#: What is measured of images, and of clips beside it.
METRICS = ("psnr", "ssim", "drift")
CLIP_METRICS = ("temporal", "flicker")

#: Images or clips through a code and back.
Code = Callable[[Tensor], Tensor]


def evaluate_run(folder: Path, runtime: Runtime) -> dict[str, Any]:
    """Held-out scores of a run's saved tokenizer, the two yardsticks, drift, and sample pictures.

    Args:
        folder: a run's folder; pictures go to its ``samples/``.
        runtime: device and precision, of one process.

    Returns:
        psnr, ssim, psnr_mean_colour, psnr_pca, drift, and the first four per photograph. An exact
        reconstruction counts as 100 dB; images too small for it have no ssim. Of clips also all that
        ``psnr``, ``ssim``, ``temporal`` and ``flicker`` tell of them; a clip counts as a photograph,
        by the means over its frames.

    Raises:
        RunError: if the tokenizer's output is not finite.
    """
    run = read_run(folder)
    assert run.data is not None
    data = run.data.build()
    held_out: HeldOut = data.held_out()
    model = load_tokenizer(folder).to(runtime.device)
    replica = PivotReplica.beside(model, read_pivot(folder, run.encoder).to(runtime.device))
    photographs = Photographs(_yardsticks(model, data, seed=run.seed))
    images = held_out_pictures(held_out)
    configs = metric_configs((*METRICS, *(CLIP_METRICS if images.frames else ())))
    modules = {**dict(built(configs)), "photographs": photographs}
    panel = Panel(modules, runtime, of_clips=needing("clips", configs))
    examiner = Examiner(model=model, runtime=runtime, replica=replica)
    size = batch_size_for(model, images.image_size, max(1, images.frames))
    measure(panel, examiner, Walk(images, batch_size=size, runtime=runtime, recognised=False))
    examiner.faults.check_none(f"the tokenizer in {folder}")
    found = panel.compute()
    photographs.write(folder / "samples")
    wanted = ["psnr", "ssim", *photographs.yardsticks, "drift"]
    values = {name: value for each in found.values() for name, value in each.values.items()}
    if images.frames:
        wanted = list(dict.fromkeys([*wanted, *values]))
    return {
        **{name: values[name] for name in wanted if name in values},
        **found["photographs"].details,
    }


def _yardsticks(model: RPiAE, data: Dataset, *, seed: int) -> dict[str, Code]:
    """Codes that know nothing but pixels, by the name of their PSNR; where the latent has a step per
    group of frames, the linear code has one frame of each."""
    assert model.config is not None
    facts = model.config.bridge_facts
    patch = model.decoder.patch[1] * facts.downsampling
    training = data.crops(max(16, FITTING_PIXELS // data.image_size**2), seed=seed)
    return {
        "psnr_mean_colour": OverTime(MeanColour(patch=patch)),
        "psnr_pca": OverTime(
            LinearCode(training, patch=patch, channels=facts.latent_channels),
            every=frames_per_latent(model),
        ),
    }


class Photographs:
    """Scores of every photograph, or clip, beside those of yardsticks, and pictures of the first ones;
    for one process.

    Args:
        yardsticks: codes by the name of their PSNR.

    Attributes:
        yardsticks: as given.
    """

    def __init__(self, yardsticks: Mapping[str, Code]) -> None:
        self.yardsticks = yardsticks
        self._scores: dict[str, dict[str, list[float]]] = {}
        self._sheets: dict[str, list[Tensor]] = {}

    def update(self, seen: Examination) -> None:
        """Take in some photographs, or clips by their frames."""
        coded = {
            name: fold(as_clip(to_8_bits(code(seen.given.images))))
            for name, code in self.yardsticks.items()
        }
        for picture in seen.pictures:
            image, made = picture.whole(seen.images), picture.whole(seen.reconstruction)
            scores = {"psnr": _psnr(made, image)}
            if min(image.shape[-2:]) >= SSIM_WINDOW:
                scores["ssim"] = ssim_of(made[None], image[None]).item()
            others = {name: picture.whole(images) for name, images in coded.items()}
            scores |= {name: _psnr(other, image) for name, other in others.items()}
            gathered = self._scores.setdefault(picture.name, {})
            for name, score in scores.items():
                gathered.setdefault(name, []).append(score)
            if len(self._sheets) < SHOWN or picture.name in self._sheets:
                columns = (image, made, others["psnr_mean_colour"])
                sheet = self._sheets.setdefault(picture.name, [])
                sheet += [each.cpu() for each in columns]

    def accumulators(self) -> Sequence[Accumulator]:
        """None: it is measured in one process."""
        return ()

    def compute(self) -> Measured:
        """The yardsticks' means over photographs, and under details all scores of each."""
        each = {
            photograph: {name: statistics.fmean(values) for name, values in scores.items()}
            for photograph, scores in self._scores.items()
        }
        means = {
            name: statistics.fmean(scores[name] for scores in each.values())
            for name in self.yardsticks
        }
        return Measured(values=means, details={"photographs": each})

    def write(self, folder: Path) -> None:
        """Image, reconstruction and mean colours of the first photographs; of clips a strip of each,
        one below the other, and beside it the slice of image and reconstruction."""
        folder.mkdir(exist_ok=True)
        for name, sheet in self._sheets.items():
            place = folder / f"{plain_name(name)}.png"
            if len(sheet) == COLUMNS:
                side_by_side(sheet).save(place)
                continue
            image, made, colours = (torch.stack(sheet[i::COLUMNS], dim=1) for i in range(COLUMNS))
            frame_strips([image, made, colours]).save(place)
            slices([image], [made]).save(place.with_name(f"{place.stem}-slice.png"))


def _psnr(made: Tensor, image: Tensor) -> float:
    return psnr_of(squared_errors(made[None], image[None])).item()
