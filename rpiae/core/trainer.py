"""The staged trainer: runs any recipe over any model, and knows no part and no stage by name."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from attrs import define, field, frozen
from torch import nn

from rpiae.core import events
from rpiae.core.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from rpiae.core.contracts import Batch, Dataset, Replica
from rpiae.core.ema import Ema
from rpiae.core.errors import ConfigError, TrainingError
from rpiae.core.freeze import FreezeReport, apply_stage, trained_parameters
from rpiae.core.objective import Objective, Outcome
from rpiae.core.players import ModelPlayer, Optimisation
from rpiae.core.randomness import StepRandomness
from rpiae.core.recipe import (
    RecipeConfig,
    StageConfig,
    StageLength,
    batch_size,
    stage_length,
)
from rpiae.core.runtime import Runtime
from rpiae.core.tokenizer import RPiAE, load_state

#: Held-out metrics of the model as it stands, on a stage's path; larger ``psnr`` is better.
Evaluate = Callable[[RPiAE, StageConfig], Mapping[str, float]]


@frozen(kw_only=True)
class TrainerInputs:
    """Everything a training run is a function of.

    Attributes:
        model: starts as the run's initialisation; trained in place.
        recipe: what to do.
        data: images.
        runtime: device, precision, processes.
        replica: the frozen pivot.
        evaluate: held-out metrics.
        folder: the run's folder.
        seed: of every random draw.
    """

    model: RPiAE
    recipe: RecipeConfig
    data: Dataset
    runtime: Runtime
    replica: Replica
    evaluate: Evaluate
    folder: Path
    seed: int


def train(inputs: TrainerInputs, *, resume: bool = False) -> Iterator[events.Event]:
    """Run all stages; yields events. The model ends with the last stage's EMA weights.

    Args:
        inputs: the run.
        resume: continue from the newest checkpoint in the run's folder.

    Raises:
        ConfigError: if a stage's patterns match nothing.
        TrainingError: if a loss is not finite; the last good checkpoint stays.
        CheckpointError: if a checkpoint cannot be read or written.
    """
    inputs.model.to(inputs.runtime.device)
    saved = _load(inputs) if resume else None
    first = saved["stage"] if saved else 0
    with _StopSignal() as stop:
        for index, stage in enumerate(inputs.recipe.stages):
            report = _apply(inputs.model, stage, index)
            if report.skipped:
                trains = ", ".join(stage.train)
                reason = f"{trains} has no parameters" if stage.train else "it trains nothing"
                yield events.StageSkipped(stage=stage.name, index=index, reason=reason)
            elif index >= first:
                state = saved if index == first else None
                yield from _Stage.open(inputs, index, report, state).run(stop)
                if stop.received:
                    return


def _load(inputs: TrainerInputs) -> dict[str, Any] | None:
    found = load_checkpoint(inputs.folder / "checkpoints")
    if found is None:
        return None
    path, state = found
    load_state(inputs.model, state["model"], source=str(path))
    return state


def _apply(model: RPiAE, stage: StageConfig, index: int) -> FreezeReport:
    try:
        return apply_stage(model.roles, stage.train)
    except ConfigError as error:
        problems = [f"recipe.stages[{index}].{problem}" for problem in error.problems]
        raise ConfigError("the recipe", problems) from None


@define(kw_only=True)
class _Stage:
    """One stage at work."""

    inputs: TrainerInputs
    index: int
    config: StageConfig
    following: StageConfig | None
    length: StageLength
    report: FreezeReport
    player: nn.Module
    optimiser: Any
    optimisation: Optimisation
    ema: Ema
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    best: float = -math.inf
    metrics: Mapping[str, float] = field(factory=dict)
    evaluated_at: int = -1

    @classmethod
    def open(
        cls,
        inputs: TrainerInputs,
        index: int,
        report: FreezeReport,
        saved: Mapping[str, Any] | None,
    ) -> _Stage:
        model, config, runtime = inputs.model, inputs.recipe.stages[index], inputs.runtime
        length = stage_length(config, inputs.recipe, inputs.data.num_images)
        objective = Objective(
            config.terms,
            length=length,
            layers={"encoder": model.encoder.last_weight, "decoder": model.decoder.last_weight},
            reduce=runtime.reduce,
        )
        player = ModelPlayer(model, stage=config, objective=objective, replica=inputs.replica)
        optimisation = Optimisation.of(model, config.optimiser, length)
        ema = Ema(trained_parameters(model.roles), decay=config.ema)
        later = [s for s in inputs.recipe.stages[index + 1 :] if _trains(model, s)]
        stage = cls(
            inputs=inputs, index=index, config=config, length=length, report=report,
            following=later[0] if later else None,
            player=player, optimiser=optimisation.optimiser, optimisation=optimisation, ema=ema,
        )  # fmt: skip
        if saved is not None and saved["step"] > 0:
            stage._restore(saved)
        stage.player, stage.optimiser = runtime.prepare(player, optimisation.optimiser)
        return stage

    def run(self, stop: _StopSignal) -> Iterator[events.Event]:
        """The run loop."""
        recipe, model = self.inputs.recipe, self.inputs.model
        size = batch_size(self.config, recipe)
        yield events.StageStarted(
            stage=self.config.name, index=self.index, steps=self.length.steps, step=self.step,
            batch_size=size, report=self.report,
        )  # fmt: skip
        batches = self.inputs.data.batches(
            seed=self.inputs.seed, stage=self.config.name, batch_size=size,
            start=self.step, steps=self.length.steps,
        )  # fmt: skip
        waiting = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - waiting
            if batch.skipped:
                self.skipped += len(batch.skipped)
                yield events.ImagesSkipped(
                    stage=self.config.name, images=batch.skipped, total=self.skipped
                )
            yield self._step(batch, waited)
            if _due(self.step, recipe.evaluate_every) and self.step < self.length.steps:
                yield from self._evaluated()
            if stop.received or (
                _due(self.step, recipe.checkpoint_every) and self.step < self.length.steps
            ):
                yield self._saved()
            if stop.received:
                folder = self.inputs.folder
                yield events.Interrupted(path=folder, signal=stop.received)
                return
            waiting = time.perf_counter()
        yield from self._evaluated()
        if self.following is None or self.following.start_from == "ema":
            self.ema.swap()
        self.inputs.runtime.release()
        self._write(model_only=True)
        images = self.step * size
        yield events.StageEnded(
            stage=self.config.name, index=self.index, steps=self.step, seconds=self.seconds,
            images_per_second=images / self.seconds if self.seconds else 0.0,
            trained=self.report.trained, metrics=self.metrics,
        )  # fmt: skip
        model.requires_grad_(False)

    def _step(self, batch: Batch, waited: float) -> events.StepDone:
        """One optimiser step."""
        started = time.perf_counter()
        runtime, parts = self.inputs.runtime, self.inputs.recipe.accumulate
        rate = self.optimisation.learning_rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        apply_stage(self.inputs.model.roles, self.config.train)
        self.optimiser.zero_grad()
        outcomes: list[tuple[float, Outcome]] = []
        for images, samples in _split(batch, parts):
            draws = StepRandomness(self.inputs.seed, self.config.name, self.step, samples)
            share = len(samples) / len(batch.samples)
            with runtime.autocast():
                outcome = self.player(images.to(runtime.device), draws, self.step)
            self._check_finite(outcome)
            if outcome.total.requires_grad:
                runtime.backward(outcome.total * share)
            outcomes.append((share, outcome))
        norms = self._gradient_norms()
        self.optimiser.step()
        self.ema.update()
        self.step += 1
        runtime.synchronise()
        elapsed = time.perf_counter() - started + waited
        self.seconds += elapsed
        average = self.seconds / self.step
        return events.StepDone(
            stage=self.config.name, step=self.step, steps=self.length.steps,
            total=sum(share * o.total.item() for share, o in outcomes),
            terms=_averaged(outcomes, "terms"), weights=_averaged(outcomes, "weights"),
            learning_rate=rate, gradient_norms=norms,
            images_per_second=len(batch.samples) / elapsed, data_seconds=waited,
            remaining_seconds=average * (self.length.steps - self.step),
        )  # fmt: skip

    def _check_finite(self, outcome: Outcome) -> None:
        if math.isfinite(outcome.total.item()):
            return
        bad = [f"{n} = {float(v)}" for n, v in outcome.terms.items() if not math.isfinite(float(v))]
        bad += [
            f"weight of {n} = {float(v)}"
            for n, v in outcome.weights.items()
            if not math.isfinite(float(v))
        ]
        raise TrainingError(
            f"stage {self.config.name}, step {self.step}: the loss is not finite "
            f"({', '.join(bad) or 'the weighted sum overflowed'}). The last good checkpoint in "
            f"{self.inputs.folder / 'checkpoints'} is kept; go on from it with --resume, with a "
            "lower learning rate, gradient clipping or precision fp32"
        )

    def _gradient_norms(self) -> dict[str, float]:
        """Norm per role; gradients are clipped where the stage wants it."""
        norms = {}
        gradients = []
        for role, part in self.inputs.model.roles.items():
            found = [p.grad for p in part.parameters() if p.grad is not None]
            if found:
                norms[role] = float(nn.utils.get_total_norm(found))
                gradients += found
        if self.config.optimiser.clip and gradients:
            total = math.hypot(*norms.values())
            torch._foreach_mul_(gradients, min(1.0, self.config.optimiser.clip / (total + 1e-6)))
        return norms

    def _evaluated(self) -> Iterator[events.Event]:
        if self.evaluated_at == self.step:
            return
        model = self.inputs.model
        model.eval()
        with self.ema.swapped_in(), torch.no_grad():
            self.metrics = dict(self.inputs.evaluate(model, self.config))
            best = self.metrics["psnr"] > self.best
            if best:
                self.best = self.metrics["psnr"]
                if self.following is None:
                    model.save_pretrained(self.inputs.folder / "best")
        self.evaluated_at = self.step
        yield events.Evaluated(
            stage=self.config.name, step=self.step, metrics=self.metrics, best=best
        )

    def _saved(self) -> events.CheckpointSaved:
        path = self._write(model_only=False)
        return events.CheckpointSaved(path=path, stage=self.config.name, step=self.step)

    def _write(self, *, model_only: bool) -> Path:
        """Save the state; at a stage's end only what the next stage takes over."""
        index, step = (self.index + 1, 0) if model_only else (self.index, self.step)
        state: dict[str, Any] = {
            "stage": index,
            "step": step,
            "model": self.inputs.model.state_dict(),
        }
        if not model_only:
            state |= {
                "ema": self.ema.state_dict(),
                "optimiser": self.optimisation.optimiser.state_dict(),
                "seconds": self.seconds,
                "skipped": self.skipped,
                "best": self.best,
            }
        path = checkpoint_path(self.inputs.folder / "checkpoints", index, step)
        save_checkpoint(path, state, keep=self.inputs.recipe.keep_checkpoints)
        return path

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.step = saved["step"]
        self.seconds = saved["seconds"]
        self.skipped = saved["skipped"]
        self.best = saved["best"]
        self.ema.load_state_dict(saved["ema"])
        self.optimisation.optimiser.load_state_dict(saved["optimiser"])


def _trains(model: RPiAE, stage: StageConfig) -> bool:
    """Whether any role of the stage has parameters."""
    trained = {pattern.partition(".")[0] for pattern in stage.train}
    return any(next(model.roles[role].parameters(), None) is not None for role in trained)


class _StopSignal(contextlib.AbstractContextManager["_StopSignal"]):
    """Remembers the first SIGINT or SIGTERM; the second one acts as if nobody listened.

    Attributes:
        received: the signal's name; empty before one came.
    """

    received = ""

    def __enter__(self) -> _StopSignal:
        self._previous = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, self._previous[signal.Signals(number)])


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _split(batch: Batch, parts: int) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    size = math.ceil(len(batch.samples) / parts)
    for i in range(0, len(batch.samples), size):
        yield batch.images[i : i + size], batch.samples[i : i + size]


def _averaged(outcomes: list[tuple[float, Outcome]], name: str) -> dict[str, float]:
    labels = getattr(outcomes[0][1], name)
    return {
        label: sum(share * float(getattr(o, name)[label]) for share, o in outcomes)
        for label in labels
    }
