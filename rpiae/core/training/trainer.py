"""The staged trainer: runs any recipe over any model, and knows no part and no stage by name."""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, define, evolve, field, frozen
from torch import Tensor, nn

from rpiae.core.config.recipe import (
    RecipeConfig,
    StageConfig,
    StageLength,
    batch_size,
    stage_length,
)
from rpiae.core.errors import CheckpointError, ConfigError, DataError, TrainingError, UsageError
from rpiae.core.model.blocks import recomputing
from rpiae.core.model.contracts import Batch, Dataset, Replica, StageSteps
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.runtime.files import plain_name
from rpiae.core.runtime.processes import Runtime
from rpiae.core.runtime.signals import StopSignal
from rpiae.core.training import events
from rpiae.core.training.adaptive import SeparateGradients, adaptive_layers
from rpiae.core.training.checkpoint import (
    SavedState,
    checkpoint_path,
    digest,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from rpiae.core.training.critic import CriticTraining, ShownImages
from rpiae.core.training.ema import Ema
from rpiae.core.training.feed import Feed
from rpiae.core.training.fitting import fit_bridge
from rpiae.core.training.freeze import FreezeReport, apply_stage, set_modes, trained_parameters
from rpiae.core.training.objective import Objective
from rpiae.core.training.player import ModelPlayer, Optimisation, stage_forward
from rpiae.core.training.restoring import check_saved
from rpiae.core.training.watch import Watch

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
        resume: continue from the newest checkpoint in the run's folder; the stages that had ended
            are told again.

    Raises:
        ConfigError: if a stage's patterns match nothing.
        TrainingError: if a loss is not finite, or another process is gone; the last good checkpoint
            stays.
        DataError: if no image can be read any more; the state is saved before.
        CheckpointError: if a checkpoint cannot be read or written.
    """
    inputs.model.to(inputs.runtime.device)
    saved = _load(inputs) if resume else None
    first = saved.state["stage"] if saved else 0
    history: dict[str, dict[str, Any]] = saved.state["history"] if saved else {}
    for text in saved.notices if saved else ():
        yield events.Notice(text=text)
    with StopSignal() as stop:
        for index, stage in enumerate(inputs.recipe.stages):
            report = _apply(inputs.model, stage, index)
            if report.skipped:
                trains = ", ".join(stage.train)
                reason = f"{trains} has no parameters" if stage.train else "it trains nothing"
                yield events.StageSkipped(stage=stage.name, index=index, reason=reason)
            elif index < first:
                yield events.StageEnded(**history[stage.name])
            else:
                if stage.use_bridge:
                    yield from fit_bridge(inputs.model, inputs.data, inputs.runtime, inputs.seed)
                state = saved if index == first else None
                if not (yield from _Stage.open(inputs, index, report, history, state).run(stop)):
                    return
        yield from fit_bridge(inputs.model, inputs.data, inputs.runtime, inputs.seed)
        if inputs.runtime.any(bool(stop.received)):
            yield events.Interrupted(path=inputs.folder, signal=stop.received or "a peer")


def _load(inputs: TrainerInputs) -> SavedState | None:
    """The newest state that the run can go on from; its weights are the model's then."""
    found = load_checkpoint(
        inputs.folder / "checkpoints",
        check=functools.partial(check_saved, model=inputs.model, recipe=inputs.recipe),
    )
    if found is None:
        return None
    path, state, _ = found
    if state["num_images"] != inputs.data.num_images:
        raise CheckpointError(
            f"{path} was trained on {state['num_images']} images and the data now have "
            f"{inputs.data.num_images}, so its epochs cannot go on: bring back the data, or start "
            f"another run from its weights with --init"
        )
    inputs.model.load_state_dict(state["model"])
    if state["step"] == 0 and _wants_averages(inputs.model, inputs.recipe.stages[state["stage"] :]):
        names = dict(inputs.model.named_parameters())
        with torch.no_grad():
            for name, average in state["ema"]["values"].items():
                names[name].copy_(average)
    return found


def _apply(model: RPiAE, stage: StageConfig, index: int) -> FreezeReport:
    try:
        return apply_stage(model.roles, stage.train)
    except ConfigError as error:
        problems = [f"recipe.stages[{index}].{problem}" for problem in error.problems]
        raise ConfigError("the recipe", problems) from None


@frozen(kw_only=True)
class _Part:
    """Images of a batch that go through the model together."""

    images: Tensor
    draws: StepRandomness
    share: float


@define(kw_only=True)
class _Stage:
    """One stage at work."""

    inputs: TrainerInputs
    index: int
    config: StageConfig
    length: StageLength
    batch_size: int
    report: FreezeReport
    player: nn.Module
    optimiser: Any
    optimisation: Optimisation
    ema: Ema
    critic: CriticTraining | None
    watch: Watch
    history: dict[str, dict[str, Any]]
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
        history: dict[str, dict[str, Any]],
        saved: SavedState | None,
    ) -> _Stage:
        saved = saved if saved is not None and saved.state["step"] > 0 else None
        model, config, runtime = inputs.model, inputs.recipe.stages[index], inputs.runtime
        length = stage_length(config, inputs.recipe, inputs.data.num_images)
        size = batch_size(config, inputs.recipe)
        if size < runtime.num_processes:
            raise UsageError(
                f"stage {config.name} has {size} images per step, fewer than the "
                f"{runtime.num_processes} processes: raise recipe.batch_size or start fewer"
            )
        objective = Objective(
            config.terms,
            length=length,
            layers=adaptive_layers(model.encoder, model.decoder),
            reduce=runtime.reduce,
            device=runtime.device,
        )
        critic = None
        if objective.adversary is not None:
            loss, term = objective.adversary
            optimiser = loss.optimiser or config.optimiser
            critic = CriticTraining.open(
                loss, term, stage=config.name, seed=inputs.seed, optimiser=optimiser,
                length=stage_length(
                    evolve(config, optimiser=optimiser), inputs.recipe, inputs.data.num_images
                ),
                device=runtime.device, saved=saved,
            )  # fmt: skip
        player = ModelPlayer(
            model, stage=config, objective=objective, replica=inputs.replica,
            critic=critic.freeze() if critic else None,
        )  # fmt: skip
        optimisation = Optimisation.of(trained_parameters(model.roles), config.optimiser, length)
        ema = Ema(trained_parameters(model.roles), decay=config.ema, warmup=config.ema_warmup)
        stage = cls(
            inputs=inputs, index=index, config=config, length=length, batch_size=size,
            report=report, history=history,
            player=player, optimiser=optimisation.optimiser, optimisation=optimisation, ema=ema,
            critic=critic,
            watch=Watch(steps=length.steps, alarms=objective.alarms),
        )  # fmt: skip
        if saved is not None:
            stage._restore(saved.state)
        stage.player, stage.optimiser = runtime.prepare(player, optimisation.optimiser)
        if critic is not None:
            critic.prepare(runtime)
        return stage

    def run(self, stop: StopSignal) -> Generator[events.Event, None, bool]:
        """The run loop; whether the stage came to its end."""
        try:
            return (yield from self._steps(stop))
        finally:
            self._clear()

    def _steps(self, stop: StopSignal) -> Generator[events.Event, None, bool]:
        recipe, runtime = self.inputs.recipe, self.inputs.runtime
        yield events.StageStarted(
            stage=self.config.name, index=self.index, steps=self.length.steps, step=self.step,
            batch_size=self.batch_size, report=self.report,
        )  # fmt: skip
        stopped = False
        for batch, waited in self._batches(stop):
            if batch.skipped:
                yield self._skipped(batch)
            for text in batch.notices:
                yield events.Notice(text=f"stage {self.config.name}: {text}")
            with runtime.with_others(self._way_on):
                done = self._step(batch, waited)
            yield done
            for text in self.watch.step(done.terms):
                yield events.Notice(text=f"stage {self.config.name}, step {self.step}: {text}")
            if self.step < self.length.steps and _due(self.step, recipe.evaluate_every):
                yield from self._evaluated()
            with runtime.with_others(self._way_on):
                stopped = runtime.any(bool(stop.received))
            if stopped:
                break
            if self.step < self.length.steps and _due(self.step, recipe.checkpoint_every):
                yield self._saved()
        if self.step == self.length.steps and not stopped:
            yield from self._evaluated()
            yield self._ended()
            return True
        if self.step > 0:
            path = self._write()
            yield events.CheckpointSaved(path=path, stage=self.config.name, step=self.step)
        yield events.Interrupted(path=self.inputs.folder, signal=stop.received or "a peer")
        return False

    def _step(self, batch: Batch, waited: float) -> events.StepDone:
        """One optimiser step."""
        started = time.perf_counter()
        set_modes(self.inputs.model.roles, self.report)
        rate = self.optimisation.learning_rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimisation.clear()
        if self.critic is not None:
            self.critic.freeze()
        parts = list(self._parts(batch))
        terms, weights, made = self._backward(parts)
        self._check_finite(terms, weights)
        norms = self.optimisation.norms()
        self._check_finite({f"gradient norm of {role}": n for role, n in norms.items()}, {})
        self.optimisation.clip(norms)
        self.optimiser.step()
        self.ema.update()
        critic = self._critic_step(parts, made)
        self.step += 1
        self.inputs.runtime.synchronise()
        elapsed = time.perf_counter() - started + waited
        self.seconds += elapsed
        return events.StepDone(
            stage=self.config.name, step=self.step, steps=self.length.steps,
            total=sum(weights[name] * value for name, value in terms.items()),
            terms=terms, weights=weights, learning_rate=rate, gradient_norms=norms, critic=critic,
            images_per_second=self.batch_size / elapsed, data_seconds=waited,
            remaining_seconds=self.seconds / self.step * (self.length.steps - self.step),
            memory=self.inputs.runtime.memory(),
        )  # fmt: skip

    def _parts(self, batch: Batch) -> Iterator[_Part]:
        """The batch as it is accumulated."""
        for part in batch.split(self.inputs.recipe.accumulate):
            draws = StepRandomness(self.inputs.seed, self.config.name, self.step, part.samples)
            yield _Part(images=part.inputs, draws=draws, share=part.share)

    def _backward(
        self, parts: Sequence[_Part]
    ) -> tuple[dict[str, float], dict[str, float], list[Tensor | None]]:
        """Gradients of the whole batch; its terms over all processes, their weights, and what was
        reconstructed."""
        runtime = self.inputs.runtime
        apart = SeparateGradients(
            list(self.optimisation.parameters.values()), reduce=runtime.reduce
        )
        terms: dict[str, float] = defaultdict(float)
        weights: dict[str, Tensor] = {}
        made: list[Tensor | None] = []
        for number, part in enumerate(parts, start=1):
            with runtime.unsynchronised_if(self.player, number < len(parts)):
                with runtime.autocast(), recomputing(self.inputs.recipe.recompute):
                    outcome = self.player(
                        part.images, part.draws, self.step, share=part.share,
                        whole=self.inputs.recipe.accumulate == 1,
                    )  # fmt: skip
                apart.add(outcome.pending)
                if outcome.total.requires_grad:
                    runtime.backward(outcome.total)
            for label, value in outcome.terms.items():
                terms[label] += part.share * value.item()
            weights = outcome.weights
            made.append(outcome.reconstruction)
        weights |= apart.settle()
        found = {label: value.item() for label, value in weights.items()}
        return runtime.means(terms), found, made

    def _critic_step(
        self, parts: Sequence[_Part], made: Sequence[Tensor | None]
    ) -> dict[str, float]:
        """Have the critic learn, where it has begun to; how it does."""
        if self.critic is None or self.step < self.critic.start:
            return {}
        shared = self.critic.config.critic_input == "shared"

        def shown(part: _Part, own: Tensor | None) -> ShownImages:
            made = own if shared and own is not None else self._clean(part)
            return ShownImages(part.images, made, part.draws, part.share)

        waiting = [functools.partial(shown, p, m) for p, m in zip(parts, made, strict=True)]
        scores = self.critic.learn(self.step, waiting, self.inputs.runtime)
        self._check_finite({f"critic's {name}": value for name, value in scores.items()}, {})
        return scores

    def _clean(self, part: _Part) -> Tensor:
        """Reconstructions by the model as it stands, without noise, in eval mode."""
        model = self.inputs.model
        model.eval()
        with torch.no_grad(), self.inputs.runtime.autocast():
            context = stage_forward(
                model, part.images, stage=evolve(self.config, noise=0.0, posterior="mode"),
                draws=part.draws, replica=self.inputs.replica,
            )  # fmt: skip
        assert context.reconstruction is not None
        return context.reconstruction

    def _check_finite(self, terms: Mapping[str, float], weights: Mapping[str, float]) -> None:
        bad = [f"{n} = {v}" for n, v in terms.items() if not math.isfinite(v)]
        bad += [f"weight of {n} = {v}" for n, v in weights.items() if not math.isfinite(v)]
        if bad:
            raise TrainingError(
                f"stage {self.config.name}, step {self.step}: not finite "
                f"({', '.join(bad)}). {self._way_on} --precision fp32, or begin another run with a lower "
                "learning rate or gradient clipping (optimiser.clip)"
            )

    @property
    def _way_on(self) -> str:
        checkpoints = self.inputs.folder / "checkpoints"
        if not list_checkpoints(checkpoints):
            return f"No checkpoint was due yet: --resume {self.inputs.folder} begins anew"
        return (
            f"The last good checkpoint in {checkpoints} is kept; go on from it with "
            f"--resume {self.inputs.folder}"
        )

    def _batches(self, stop: StopSignal) -> Iterator[tuple[Batch, float]]:
        """The stage's batches from here on, and the seconds each was waited for.

        They end early where the processes that load them were told to end along with this one.
        """
        runtime = self.inputs.runtime
        steps = StageSteps(
            seed=self.inputs.seed, stage=self.config.name, batch_size=self.batch_size,
            start=self.step, steps=self.length.steps,
            rank=runtime.rank, num_processes=runtime.num_processes,
        )  # fmt: skip
        feed = Feed(self.inputs.data.batches(steps), runtime.device, share=steps.share)
        try:
            for batch in feed:
                yield batch, feed.waited
        except DataError as error:
            if stop.received:
                return
            if runtime.is_main and self.step > 0:
                self._write()
            raise DataError(f"{error}. {self._way_on}") from None
        finally:
            feed.close()

    def _skipped(self, batch: Batch) -> events.ImagesSkipped:
        self.skipped += len(batch.skipped)
        return events.ImagesSkipped(
            stage=self.config.name, images=batch.skipped, total=self.skipped
        )

    def _evaluated(self) -> Iterator[events.Event]:
        if self.evaluated_at == self.step:
            return
        with self.inputs.runtime.with_others(self._way_on):
            self.metrics, problem = self.inputs.runtime.on_main(self._evaluate)
        best = self.metrics["psnr"] > self.best
        self.best = max(self.best, self.metrics["psnr"])
        self.evaluated_at = self.step
        yield events.Evaluated(
            stage=self.config.name, step=self.step, metrics=self.metrics, best=best
        )
        for text in (*self.watch.evaluation(self.metrics), *([problem] if problem else [])):
            yield events.Notice(text=f"stage {self.config.name}, step {self.step}: {text}")

    def _evaluate(self) -> tuple[dict[str, float], str]:
        """Held-out metrics of the EMA weights, and what kept the best ones from being saved."""
        model = self.inputs.model
        model.eval()
        with self.ema.swapped_in(), torch.no_grad():
            metrics = dict(self.inputs.evaluate(model, self.config))
            if metrics["psnr"] > self.best:
                try:
                    save_tokenizer(model, best_folder(self.inputs.folder, self.config.name))
                except CheckpointError as error:
                    return metrics, f"the best weights so far are not saved: {error}"
        return metrics, ""

    def _saved(self) -> events.Event:
        """A checkpoint on the way: one that cannot be written does not end the run."""
        try:
            path = self._write()
        except CheckpointError as error:
            return events.Notice(text=f"{error}. The run goes on and tries again when one is due")
        return events.CheckpointSaved(path=path, stage=self.config.name, step=self.step)

    def _ended(self) -> events.StageEnded:
        """The stage's end is saved; the model goes on with what the next stage takes over."""
        model = self.inputs.model
        self._clear()
        ended = events.StageEnded(
            stage=self.config.name, index=self.index, steps=self.step, seconds=self.seconds,
            images_per_second=self.step * self.batch_size / self.seconds if self.seconds else 0.0,
            trained=self.report.trained, metrics=self.metrics,
            digests={
                "weights": digest(model.state_dict()),
                "ema": digest(self.ema.state_dict()),
                "optimiser": digest(self.optimisation.optimiser.state_dict()),
                **({"critic": digest(self.critic.state_dict())} if self.critic else {}),
            },
        )  # fmt: skip
        self.history[self.config.name] = asdict(ended)
        self.inputs.runtime.release()
        self._write(ended=True)
        if _wants_averages(model, self.inputs.recipe.stages[self.index + 1 :]):
            self.ema.swap()
        model.requires_grad_(False)
        return ended

    def _clear(self) -> None:
        """Leave no gradients to whoever comes next."""
        self.optimisation.clear()
        if self.critic is not None:
            self.critic.clear()

    def _write(self, *, ended: bool = False) -> Path:
        """Save the state; at a stage's end its weights and their moving average alone."""
        index, step = (self.index + 1, 0) if ended else (self.index, self.step)
        path = checkpoint_path(self.inputs.folder / "checkpoints", index, step)
        if not self.inputs.runtime.is_main:
            return path
        state: dict[str, Any] = {
            "stage": index,
            "step": step,
            "model": self.inputs.model.state_dict(),
            "ema": self.ema.state_dict(),
            "num_images": self.inputs.data.num_images,
            "history": self.history,
        }
        if not ended:
            state |= {
                "optimiser": self.optimisation.optimiser.state_dict(),
                "critic": self.critic.state_dict() if self.critic else None,
                "seconds": self.seconds,
                "skipped": self.skipped,
                "best": self.best,
            }
        save_checkpoint(path, state, keep=self.inputs.recipe.keep_checkpoints)
        return path

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.step = saved["step"]
        self.seconds = saved["seconds"]
        self.skipped = saved["skipped"]
        self.best = saved["best"]
        self.ema.load_state_dict(saved["ema"])
        self.optimisation.load_state_dict(saved["optimiser"])


def best_folder(run: Path, stage: str) -> Path:
    """Where the best evaluated weights of a stage are, in a run's folder."""
    return run / "best" / plain_name(stage)


def _wants_averages(model: RPiAE, later: Sequence[StageConfig]) -> bool:
    """Whether what comes after a stage takes over its moving average: a stage that says so, or, where
    none is left that trains something, the finished tokenizer."""
    following = next((stage for stage in later if _trains(model, stage)), None)
    return following is None or following.start_from == "ema"


def _trains(model: RPiAE, stage: StageConfig) -> bool:
    """Whether any role of the stage has parameters."""
    trained = {pattern.partition(".")[0] for pattern in stage.train}
    return any(next(model.roles[role].parameters(), None) is not None for role in trained)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
