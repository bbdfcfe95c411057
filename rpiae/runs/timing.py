"""How speed is measured: time, cost, memory, and steps of the real trainer."""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from attrs import evolve, frozen
from torch.utils.flop_counter import FlopCounterMode

from rpiae.core.config.recipe import RecipeConfig, StageConfig, batch_size
from rpiae.core.model.attention import attention_backend
from rpiae.core.model.contracts import BatchSource
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.task import Task, TrainerInputs
from rpiae.core.training.trainer import train

#: Side of the matrices whose product is taken for the machine's peak.
PEAK_SIZE = 4096


@frozen(kw_only=True)
class Speed:
    """One measured operation.

    Attributes:
        operation: ``encode``, ``encode + decode``, ``sampling step`` (of all that a sample takes) or
            ``stage NAME`` (a whole optimiser step).
        precision: of its matrix products.
        images_per_second: of the median repetition; frames of clips count as images, and so do latents.
        multiply_adds: per image or frame, backward pass included where there is one.
        peak_share: multiply-adds per second over those of a large matrix product here, now.
        memory: peak bytes of the process (of the device on CUDA); None where the system does not
            tell.
        frames: of each clip; None where it was measured on images.
    """

    operation: str
    precision: str
    images_per_second: float
    multiply_adds: float
    peak_share: float
    memory: int | None
    frames: int | None = None


def timed(function: Callable[[], object], repeats: int, runtime: Runtime) -> float:
    """Seconds of a call, in the median; the first one, which is not counted, warms up."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        function()
        runtime.synchronise()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def step_seconds(
    task: Task,
    stage: StageConfig,
    recipe: RecipeConfig,
    data: BatchSource,
    runtime: Runtime,
    repeats: int,
) -> float:
    """Seconds of a step of the real trainer."""
    recipe = evolve(recipe, stages=(stage,), evaluate_every=0, checkpoint_every=0)
    number = batch_size(stage, recipe)
    with tempfile.TemporaryDirectory() as folder:
        inputs = TrainerInputs(
            task=task, recipe=recipe, data=data, runtime=runtime, folder=Path(folder), seed=0
        )
        taken = []
        for event in train(inputs):
            if isinstance(event, events.StepDone):
                taken.append(number / event.images_per_second)
            if len(taken) > repeats:
                break
    runtime.release()
    return statistics.median(taken[1:] or taken)


def multiply_adds(function: Callable[[], object]) -> float:
    """Multiply-adds of all matrix products and convolutions."""
    counter = FlopCounterMode(display=False)
    with attention_backend("math"), counter:
        function()
    return counter.get_total_flops() / 2


class PeakMemory(contextlib.AbstractContextManager["PeakMemory"]):
    """Peak memory inside a ``with`` block; Linux and CUDA tell it."""

    bytes: int | None = None

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __enter__(self) -> PeakMemory:
        if self._runtime.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._runtime.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        return self

    def __exit__(self, *_: object) -> None:
        if self._runtime.device.type == "cuda":
            self.bytes = self._runtime.memory()
            return
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM"))
            self.bytes = int(peak.split()[1]) * 1024
