"""How fast a tokenizer is, what it costs, and how much of the machine's speed that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from attrs import evolve, frozen

from rpiae.core.config.recipe import StageConfig, batch_size, stage_length
from rpiae.core.errors import UsageError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.contracts import Dataset
from rpiae.core.model.resolve import ResolvedRun
from rpiae.core.model.temporal import TemporalDecoder
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.runtime.processes import MatrixSpeed, Precision, Runtime, matrix_speed
from rpiae.core.training.balance import Balance
from rpiae.core.training.freeze import apply_stage, set_modes
from rpiae.core.training.objective import Objective
from rpiae.core.training.player import MicroBatch
from rpiae.core.training.task import Trainee
from rpiae.data.synthetic import SyntheticClips, SyntheticImages
from rpiae.runs import timing
from rpiae.runs.resolving import runtime_of
from rpiae.runs.timing import PeakMemory, Speed, multiply_adds, step_seconds, timed
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.tasks.tokenizer.task import TokenizerTask, adversary_of

#: Frames of the clips that tokenizers of videos are measured on, where the data say no other number.
USUAL_FRAMES = 17


def measure(
    resolved: ResolvedRun, *, precisions: tuple[Precision, ...], repeats: int = 5
) -> Iterator[MatrixSpeed | Speed]:
    """Measure a run's model on random images of its crop's size; on clips, where its data are clips, or
    its bridge or decoder works over time. A stage of clips is measured on clips alone, one of single
    frames on images.

    Args:
        resolved: the run; its weights are random, its data are not read.
        precisions: which to measure.
        repeats: timed repetitions of each operation, after one that is not; at least 1.

    Raises:
        UsageError: if there are none.

    Yields:
        The machine's ``MatrixSpeed`` first, then one ``Speed`` per operation and precision.
    """
    if repeats < 1:
        raise UsageError(f"repeats must be at least 1, got {repeats}")
    config = resolved.config
    runtimes = [runtime_of(evolve(config, precision=p)) for p in precisions]
    device = runtimes[0].device
    peak = matrix_speed(device, size=timing.PEAK_SIZE)
    yield peak
    flat = build_tokenizer(resolved.tokenizer, device="meta")
    sample = _sample(resolved, flat)
    for runtime in runtimes:
        best = getattr(peak, runtime.precision) * 1e12 / 2
        model = build_tokenizer(resolved.tokenizer, device=device, seed=config.seed).eval()
        images = sample.inputs(batch_size(config.recipe.stages[0], config.recipe))
        operations: list[tuple[str, Callable[[Any], object]]] = [
            ("encode", lambda m: m.model.encode(m.images).mode()),
            ("encode + decode", lambda m: m.model.reconstruct(m.images)),
        ]
        for name, operation in operations:
            here = _Subject(model, images.to(device))
            with torch.no_grad(), runtime.autocast(), PeakMemory(runtime) as memory:
                seconds = timed(lambda: operation(here), repeats, runtime)  # noqa: B023  # called at once
            with torch.no_grad():
                cost = multiply_adds(lambda: operation(_Subject(flat, images.to("meta"))))  # noqa: B023  # called at once
            yield _speed(name, runtime, sample, len(images), seconds, cost, best, memory)
        for stage in config.recipe.stages:
            if apply_stage(model.roles, stage.train).skipped:
                continue
            number, of = batch_size(stage, config.recipe), sample.of_stage(stage)
            with PeakMemory(runtime) as memory:
                seconds = _step_seconds(resolved, model, stage, runtime, of, repeats)
            cost = multiply_adds(lambda: _meta_step(resolved, flat, stage, of))  # noqa: B023  # called at once
            name = f"stage {stage.name}"
            yield _speed(name, runtime, of, number, seconds, cost, best, memory)


@frozen
class _Subject:
    model: RPiAE
    images: torch.Tensor


@frozen
class _Sample:
    """What is measured on: square images, or clips of so many frames."""

    size: int
    frames: int | None

    def of_stage(self, stage: StageConfig) -> _Sample:
        """What the stage learns from."""
        return evolve(self, frames=None) if stage.image_share == 1 else self

    def inputs(self, number: int, device: str = "cpu") -> torch.Tensor:
        time = () if self.frames is None else (self.frames,)
        return torch.rand(number, 3, *time, self.size, self.size, device=device)

    def data(self, number: int) -> Dataset:
        if self.frames is None:
            return SyntheticImages(self.size, count=number)
        return SyntheticClips(self.size, self.frames, count=number)


def _sample(resolved: ResolvedRun, model: RPiAE) -> _Sample:
    data, tokenizer = resolved.config.data, resolved.tokenizer
    size = getattr(data, "image_size", None) or tokenizer.encoder_facts.image_size
    over_time = (
        tokenizer.encoder_facts.frames > 1
        or tokenizer.bridge_facts.temporal_downsampling > 1
        or isinstance(model.decoder, TemporalDecoder)
    )
    if data is not None and data.clips:
        return _Sample(size, getattr(data, "frames", USUAL_FRAMES))
    return _Sample(size, USUAL_FRAMES if over_time else None)


def _speed(
    operation: str, runtime: Runtime, sample: _Sample, number: int, seconds: float, cost: float,
    best: float, memory: PeakMemory,
) -> Speed:  # fmt: skip
    images = number * (sample.frames or 1)
    return Speed(
        operation=operation, precision=runtime.precision, images_per_second=images / seconds,
        multiply_adds=cost / images, peak_share=cost / seconds / best, memory=memory.bytes,
        frames=sample.frames,
    )  # fmt: skip


def _step_seconds(
    resolved: ResolvedRun, model: RPiAE, stage: StageConfig, runtime: Runtime, sample: _Sample,
    repeats: int,
) -> float:  # fmt: skip
    alike = evolve(stage, image_share=None)  # no step of single frames among those of clips
    recipe = resolved.config.recipe
    pivot = build_tokenizer(resolved.tokenizer, seed=resolved.config.seed).roles["encoder"]
    task = _task(model, pivot.to(runtime.device))
    data = sample.data(batch_size(stage, recipe))
    return step_seconds(task, alike, recipe, data, runtime, repeats)


def _meta_step(resolved: ResolvedRun, model: RPiAE, stage: StageConfig, sample: _Sample) -> None:
    """Forward and backward pass of a stage without memory, for counting.

    What a critic learns with is not counted; the model's way through it is.
    """
    recipe = resolved.config.recipe
    report = apply_stage(model.roles, stage.train)
    number = batch_size(stage, recipe)
    pivot = build_tokenizer(resolved.tokenizer, device="meta").roles["encoder"]
    task = _task(model, pivot)
    length = stage_length(stage, recipe, number)
    objective = Objective(
        stage.terms, length=length, layers=task.layers(), entry=task.entry, device="meta"
    )
    if (adversary := adversary_of(objective)) is not None:
        with torch.device("meta"):
            task.critic = adversary[0].critic.build().requires_grad_(False).eval()
    set_modes(model.roles, report)
    batch = MicroBatch(
        sample.inputs(number, "meta"),
        StepRandomness(0, stage.name, 0, range(number)), 1.0,
    )  # fmt: skip
    passed = Trainee(task, stage, objective)(0, batch)
    Balance(task.layers()).backward(passed, share=1.0, weigh=True)


def _task(model: RPiAE, pivot: torch.nn.Module) -> TokenizerTask:
    replica = PivotReplica.beside(model, pivot)
    return TokenizerTask(model, replica=replica, evaluate=lambda *_: {})
