"""One stage at work: its steps, what is told of them, what is kept."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, define, field

from rpiae.core.config.recipe import StageConfig, StageLength, batch_size, stage_length
from rpiae.core.errors import CheckpointError, DataError, TrainingError, UsageError
from rpiae.core.model.blocks import compiling, recomputing
from rpiae.core.model.contracts import Batch, StageSteps
from rpiae.core.runtime.draws import key
from rpiae.core.runtime.signals import StopSignal
from rpiae.core.training import events
from rpiae.core.training.beside import best_folder, save_averages
from rpiae.core.training.checkpoint import (
    SavedState,
    checkpoint_path,
    digest,
    list_checkpoints,
    save_checkpoint,
)
from rpiae.core.training.ema import Ema
from rpiae.core.training.evaluations import Evaluations
from rpiae.core.training.feed import Feed
from rpiae.core.training.freeze import FreezeReport, wants_averages
from rpiae.core.training.guard import SpikeError, SpikeGuard
from rpiae.core.training.player import Learned, Player, micro_batches
from rpiae.core.training.readings import Readings
from rpiae.core.training.restoring import check_saved
from rpiae.core.training.schedules import due
from rpiae.core.training.task import Opening, TrainerInputs
from rpiae.core.training.watch import Watch


@define(kw_only=True)
class StageAtWork:
    """One stage at work."""

    inputs: TrainerInputs
    index: int
    config: StageConfig
    length: StageLength
    batch_size: int
    report: FreezeReport
    players: Sequence[Player]
    ema: Ema
    watch: Watch
    history: dict[str, dict[str, Any]]
    readings: Readings
    guard: SpikeGuard
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    lost: Sequence[str] = ()
    evaluations: Evaluations = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.evaluations = Evaluations(
            task=self.inputs.task, runtime=self.inputs.runtime, config=self.config, ema=self.ema,
            folder=best_folder(self.inputs.folder, self.config.name),
        )  # fmt: skip

    @classmethod
    def open(
        cls,
        inputs: TrainerInputs,
        index: int,
        report: FreezeReport,
        history: dict[str, dict[str, Any]],
        saved: SavedState | None,
    ) -> StageAtWork:
        saved = saved if saved is not None and saved.state["step"] > 0 else None
        task, runtime, recipe = inputs.task, inputs.runtime, inputs.recipe
        config = recipe.stages[index]
        length = stage_length(config, recipe, inputs.data.num_images)
        size = batch_size(config, recipe)
        if size < runtime.num_processes:
            raise UsageError(
                f"stage {config.name} has {size} images per step, fewer than the "
                f"{runtime.num_processes} processes: raise recipe.batch_size or start fewer"
            )
        opening = Opening(
            stage=config, recipe=recipe, num_samples=inputs.data.num_images, report=report,
            seed=inputs.seed, runtime=runtime, saved=saved,
        )  # fmt: skip
        objective = task.objective(opening)
        players = task.players(opening, objective)
        ema = players[0].ema
        assert ema is not None
        stage = cls(
            inputs=inputs, index=index, config=config, length=length, batch_size=size,
            report=report, history=history, players=players, ema=ema,
            readings=Readings(
                runtime, config.name, length.steps, size, each=recipe.spike_guard is not None
            ),
            watch=Watch(steps=length.steps, alarms=objective.alarms),
            guard=SpikeGuard(
                config=recipe.spike_guard, folder=inputs.folder / "checkpoints" / "guard", stage=index
            ),
        )  # fmt: skip
        if saved is not None:
            stage._restore(saved.state)
        for player in players:
            player.prepare(runtime)
        return stage

    def run(self, stop: StopSignal) -> Generator[events.Event, None, bool]:
        """The run loop; whether the stage came to its end."""
        try:
            return (yield from self._steps(stop))
        finally:
            self._clear()

    def _steps(self, stop: StopSignal) -> Generator[events.Event, None, bool]:
        yield events.StageStarted(
            stage=self.config.name, index=self.index, steps=self.length.steps, step=self.step,
            batch_size=self.batch_size, report=self.report,
        )  # fmt: skip
        if self.step == 0 and self.guard.helps and self.inputs.runtime.is_main:
            self.guard.begin(self._state(self.index, 0))
        while True:
            try:
                return (yield from self._on(stop))
            except SpikeError as error:
                yield self._taken_back(error)

    def _on(self, stop: StopSignal) -> Generator[events.Event, None, bool]:
        """Steps from here on; whether the stage came to its end."""
        recipe, runtime = self.inputs.recipe, self.inputs.runtime
        stopped = False
        every = recipe.read_every or runtime.read_every
        for batch, waited in self._batches(stop):
            if batch.skipped:
                self.skipped += len(batch.skipped)
                yield events.ImagesSkipped(
                    stage=self.config.name, images=batch.skipped, total=self.skipped
                )
            for text in batch.notices:
                yield events.Notice(text=f"stage {self.config.name}: {text}")
            with runtime.with_others(self._way_on):
                self._step(batch, waited)
            if not self._is_read(every):
                continue
            with runtime.with_others(self._way_on):
                done = self._read()
            yield done
            for text in self.watch.step(done.terms):
                yield events.Notice(text=f"stage {self.config.name}, step {self.step}: {text}")
            if self.step < self.length.steps and due(self.step, recipe.evaluate_every):
                yield from self._evaluated()
            with runtime.with_others(self._way_on):
                stopped = runtime.any(bool(stop.received))
            if stopped:
                break
            if self.step < self.length.steps and self._is_saved():
                yield self._saved()
        if self.step == self.length.steps and not stopped:
            yield from self._evaluated()
            yield self._ended()
            for text in self.lost:
                yield events.Notice(text=f"stage {self.config.name}: {text}")
            return True
        if self.step > 0:
            path = self._write()
            yield events.CheckpointSaved(path=path, stage=self.config.name, step=self.step)
        yield events.Interrupted(path=self.inputs.folder, signal=stop.received or "a peer")
        return False

    def _is_read(self, every: int) -> bool:
        """Whether this step's numbers are looked at: every so many steps, and before anything is
        evaluated or saved."""
        recipe = self.inputs.recipe
        return (
            self.step == self.length.steps
            or due(self.step, every)
            or due(self.step, recipe.evaluate_every)
            or self._is_saved()
        )

    def _is_saved(self) -> bool:
        """Whether the state after this step is saved on the way."""
        return due(self.step, self.inputs.recipe.checkpoint_every) or self.guard.due(self.step)

    def _step(self, batch: Batch, waited: float) -> None:
        """One optimiser step of every player that learns by now."""
        started = time.perf_counter()
        pieces = batch.split(self.inputs.recipe.accumulate)
        batches = micro_batches(pieces, self._seed, self.config.name, self.step)
        learned: dict[str, Learned] = {}
        for player in self.players:
            if self.step < player.start:
                continue
            for other in self.players[1:]:
                if other is not player:
                    other.rest()
            with (
                recomputing(self.inputs.recipe.recompute),
                compiling(self.inputs.runtime.compile),
            ):
                learned[player.name] = player.learn(
                    self.step,
                    batches,
                    self.inputs.runtime,
                    earlier=learned,
                    check=self._check,
                )
        self.step += 1
        self.readings.add(learned, seconds=time.perf_counter() - started, waited=waited)

    def _check(self, learned: Learned) -> None:
        """Where looking costs nothing, before the parameters change.

        Raises:
            TrainingError: if anything is not finite.
        """
        if self.inputs.runtime.read_every == 1:
            self._check_finite(self.readings.problems_of(learned))

    def _read(self) -> events.StepDone:
        done, problems = self.readings.read(self.step)
        self._check_finite(problems)
        leaps = self.guard.problems(done.totals)
        if leaps:
            raise SpikeError(", ".join(leaps))
        self.seconds += done.seconds
        remaining = self.seconds / self.step * (self.length.steps - self.step)
        return done.event(remaining_seconds=remaining)

    def _taken_back(self, error: SpikeError) -> events.TakenBack:
        """Go back to what is kept for that, and have the stage go on with other draws.

        Raises:
            TrainingError: if nothing is.
        """
        at, task = self.step, self.inputs.task
        self._clear()
        saved = self.guard.kept(at)
        if saved is None:
            raise TrainingError(self._stuck(f"{error}, and the state to go back to is lost"))
        check_saved(saved, task=task, recipe=self.inputs.recipe)
        task.module.load_state_dict(saved.state["model"])
        for player in self.players[1:]:
            player.load_whole(saved.state["players"][player.name])
        self._restore(saved.state)
        self.guard.retries += 1
        self.readings.forget()
        self.evaluations.at = -1
        return events.TakenBack(stage=self.config.name, step=at, to=self.step, reason=str(error))

    @property
    def _seed(self) -> int:
        """Of the stage's draws; another one after it was taken back."""
        seed, retries = self.inputs.seed, self.guard.retries
        return key(seed, "retry", retries) if retries else seed

    def _check_finite(self, problems: Sequence[str]) -> None:
        if problems:
            text = f"not finite ({', '.join(problems)})"
            raise SpikeError(text) if self.guard.helps else TrainingError(self._stuck(text))

    def _stuck(self, problem: str) -> str:
        """Message for a stage that cannot go on as it is."""
        return (
            f"stage {self.config.name}, step {self.step}: {problem}. {self._way_on()} --precision fp32, or "
            "begin another run with a lower learning rate or gradient clipping (optimiser.clip)"
        )

    def _way_on(self) -> str:
        folder = self.inputs.folder
        if not list_checkpoints(folder / "checkpoints"):
            return f"No checkpoint was due yet: --resume {folder} begins anew"
        return (
            f"The last good checkpoint in {folder / 'checkpoints'} is kept; go on from it with --resume "
            f"{folder}"
        )

    def _batches(self, stop: StopSignal) -> Iterator[tuple[Batch, float]]:
        """The stage's batches from here on, and the seconds each was waited for.

        They end early where the processes that load them were told to end along with this one.
        """
        runtime = self.inputs.runtime
        steps = StageSteps(
            seed=self._seed, stage=self.config.name, batch_size=self.batch_size,
            start=self.step, steps=self.length.steps,
            rank=runtime.rank, num_processes=runtime.num_processes,
            image_share=self.config.image_share or 0.0,
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
            raise DataError(f"{error}. {self._way_on()}") from None
        finally:
            feed.close()

    def _evaluated(self) -> Iterator[events.Event]:
        if self.evaluations.at == self.step:
            return
        with self.inputs.runtime.with_others(self._way_on):
            best, problem = self.evaluations.measure(self.step)
        metrics = self.evaluations.metrics
        yield events.Evaluated(stage=self.config.name, step=self.step, metrics=metrics, best=best)
        remarks = self.watch.remarks(self.inputs.task.remarks(metrics))
        for text in (*remarks, *([problem] if problem else [])):
            yield events.Notice(text=f"stage {self.config.name}, step {self.step}: {text}")

    def _saved(self) -> events.Event:
        """A checkpoint on the way: one that cannot be written does not end the run."""
        try:
            path = self._write()
        except CheckpointError as error:
            return events.Notice(text=f"{error}. The run goes on and tries again when one is due")
        return events.CheckpointSaved(path=path, stage=self.config.name, step=self.step)

    def _ended(self) -> events.StageEnded:
        """The stage's end is saved; the task goes on with what the next stage takes over."""
        task = self.inputs.task
        self._clear()
        ended = events.StageEnded(
            stage=self.config.name, index=self.index, steps=self.step, seconds=self.seconds,
            images_per_second=self.step * self.batch_size / self.seconds if self.seconds else 0.0,
            trained=self.report.trained, metrics=self.evaluations.metrics,
            digests={
                "weights": digest(task.module.state_dict()),
                "ema": digest(self.ema.state_dict()),
                "optimiser": digest(self.players[0].optimiser.state_dict()),
                **{player.name: digest(player.whole()) for player in self.players[1:]},
            },
        )  # fmt: skip
        self.history[self.config.name] = asdict(ended)
        self.inputs.runtime.release()
        self.lost = self.inputs.runtime.on_main(
            lambda: save_averages(task, self.players[0], self.inputs.folder, self.config.name)
        )
        self._write(ended=True)
        self.inputs.runtime.on_main(self.guard.forget)
        if wants_averages(task.roles, self.inputs.recipe.stages[self.index + 1 :]):
            self.ema.swap()
        task.module.requires_grad_(False)
        return ended

    def _clear(self) -> None:
        """Leave no gradients to whoever comes next."""
        for player in self.players:
            player.clear()

    def _write(self, *, ended: bool = False) -> Path:
        """Save the state; at a stage's end its weights and their moving average alone."""
        index, step = (self.index + 1, 0) if ended else (self.index, self.step)
        path = checkpoint_path(self.inputs.folder / "checkpoints", index, step)
        if not self.inputs.runtime.is_main:
            return path
        if problems := self.readings.problems():  # of steps that nobody has looked at yet
            raise TrainingError(self._stuck(f"not finite ({', '.join(problems)})"))
        state = self._state(index, step, within=not ended)
        save_checkpoint(path, state, keep=self.inputs.recipe.keep_checkpoints)
        if not ended and self.guard.due(step):
            self.guard.keep(path, step)
        return path

    def _state(self, index: int, step: int, *, within: bool = True) -> dict[str, Any]:
        """What is saved of a step; of one within a stage with all that learns in it."""
        state: dict[str, Any] = {
            "stage": index,
            "step": step,
            "model": self.inputs.task.module.state_dict(),
            "ema": self.ema.state_dict(),
            "num_images": self.inputs.data.num_images,
            "history": self.history,
        }
        if within:
            state |= {
                **self.players[0].state_dict(),
                "players": {player.name: player.whole() for player in self.players[1:]},
                "seconds": self.seconds + self.readings.seconds,
                "skipped": self.skipped,
                "best": self.evaluations.best,
                "guard": self.guard.state_dict(),
            }
        return state

    def _restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from a state; players besides the first were opened with theirs."""
        self.step = saved["step"]
        self.seconds = saved["seconds"]
        self.skipped = saved["skipped"]
        self.evaluations.best = saved["best"]
        self.guard.load_state_dict(saved["guard"])
        self.ema.load_state_dict(saved["ema"])
        self.players[0].load_state_dict(saved)
