"""Final evaluation of a run from what it saved."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rpiae.core.model.contracts import Dataset, HeldOut
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.geometry import to_8_bits
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import plain_name
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.accumulators import Accumulator
from rpiae.evaluation.engine import Examiner, measure
from rpiae.evaluation.examination import Examination, Measured
from rpiae.evaluation.images import held_out_pictures
from rpiae.evaluation.panel import Panel, built, metric_configs
from rpiae.evaluation.pictures import side_by_side
from rpiae.evaluation.pixels import SSIM_WINDOW, psnr_of, squared_errors, ssim_of
from rpiae.evaluation.trained_run import read_run
from rpiae.evaluation.walk import Walk
from rpiae.evaluation.yardsticks import LinearCode, MeanColour
from rpiae.latents.encoding import batch_size_for
from rpiae.tasks.tokenizer.pivot import read_pivot
from rpiae.tasks.tokenizer.replica import PivotReplica

#: Training crops that the linear code is fitted on, in pixels; some 65,000 patches of 4×4.
FITTING_PIXELS = 1 << 20

#: Photographs that are written as pictures.
SHOWN = 16

#: Images through a code and back.
Code = Callable[[Tensor], Tensor]


def evaluate_run(folder: Path, runtime: Runtime) -> dict[str, Any]:
    """Held-out scores of a run's saved tokenizer, the two yardsticks, drift, and sample pictures.

    Args:
        folder: a run's folder; pictures go to its ``samples/``.
        runtime: device and precision, of one process.

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
    model = load_tokenizer(folder).to(runtime.device)
    replica = PivotReplica.beside(model, read_pivot(folder, run.encoder).to(runtime.device))
    photographs = Photographs(_yardsticks(model, data, seed=run.seed))
    modules = dict(built(metric_configs(("psnr", "ssim", "drift"))))
    panel = Panel({**modules, "photographs": photographs}, runtime)
    examiner = Examiner(model=model, runtime=runtime, replica=replica)
    images = held_out_pictures(held_out)
    size = batch_size_for(model, images.image_size)
    measure(panel, examiner, Walk(images, batch_size=size, runtime=runtime, recognised=False))
    examiner.faults.check_none(f"the tokenizer in {folder}")
    found = panel.compute()
    photographs.write(folder / "samples")
    wanted = ("psnr", "ssim", *photographs.yardsticks, "drift")
    values = {name: value for each in found.values() for name, value in each.values.items()}
    return {
        **{name: values[name] for name in wanted if name in values},
        **found["photographs"].details,
    }


def _yardsticks(model: RPiAE, data: Dataset, *, seed: int) -> dict[str, Code]:
    """Codes that know nothing but pixels, by the name of their PSNR."""
    assert model.config is not None
    facts = model.config.bridge_facts
    patch = model.decoder.patch[1] * facts.downsampling
    training = data.crops(max(16, FITTING_PIXELS // data.image_size**2), seed=seed)
    return {
        "psnr_mean_colour": MeanColour(patch=patch),
        "psnr_pca": LinearCode(training, patch=patch, channels=facts.latent_channels),
    }


class Photographs:
    """Scores of every photograph beside those of yardsticks, and pictures of the first ones; for one
    process.

    Args:
        yardsticks: codes by the name of their PSNR.

    Attributes:
        yardsticks: as given.
    """

    def __init__(self, yardsticks: Mapping[str, Code]) -> None:
        self.yardsticks = yardsticks
        self._scores: dict[str, dict[str, float]] = {}
        self._sheets: dict[str, list[Tensor]] = {}

    def update(self, seen: Examination) -> None:
        """Take in some photographs."""
        coded = {name: to_8_bits(code(seen.images)) for name, code in self.yardsticks.items()}
        for picture in seen.pictures:
            image, made = picture.whole(seen.images), picture.whole(seen.reconstruction)
            scores = {"psnr": _psnr(made, image)}
            if min(image.shape[-2:]) >= SSIM_WINDOW:
                scores["ssim"] = ssim_of(made[None], image[None]).item()
            others = {name: picture.whole(images) for name, images in coded.items()}
            scores |= {name: _psnr(other, image) for name, other in others.items()}
            self._scores[picture.name] = scores
            if len(self._sheets) < SHOWN:
                columns = (image, made, others["psnr_mean_colour"])
                self._sheets[picture.name] = [each.cpu() for each in columns]

    def accumulators(self) -> Sequence[Accumulator]:
        """None: it is measured in one process."""
        return ()

    def compute(self) -> Measured:
        """The yardsticks' means over photographs, and under details all scores of each."""
        means = {
            name: statistics.fmean(scores[name] for scores in self._scores.values())
            for name in self.yardsticks
        }
        return Measured(values=means, details={"photographs": self._scores})

    def write(self, folder: Path) -> None:
        """Image, reconstruction and mean colours of the first photographs."""
        folder.mkdir(exist_ok=True)
        for name, sheet in self._sheets.items():
            side_by_side(sheet).save(folder / f"{plain_name(name)}.png")


def _psnr(made: Tensor, image: Tensor) -> float:
    return psnr_of(squared_errors(made[None], image[None])).item()
