"""A task: what is trained, as the trainer sees it.

The trainer's run loop, exact resume, checkpoints, averages, signals and events serve any task;
``rpiae.tasks`` has those that ship.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attrs import evolve, frozen
from torch import nn

from rpiae.core.config.recipe import (
    OptimiserConfig,
    RecipeConfig,
    StageConfig,
    StageLength,
    stage_length,
)
from rpiae.core.model.contracts import BatchSource
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.balance import Balance, Entry, Layer, Meetings, Pass
from rpiae.core.training.checkpoint import SavedState
from rpiae.core.training.ema import Ema
from rpiae.core.training.freeze import FreezeReport, set_modes, trained_parameters
from rpiae.core.training.objective import Objective
from rpiae.core.training.player import MODEL, MicroBatch, Player


class Passed(NamedTuple):
    """A forward pass along a stage's path.

    Attributes:
        context: what loss terms look at.
        meetings: where its graph was cut, for adaptive weights.
        shown: what other players may look at, detached.
    """

    context: Any
    meetings: Meetings = Meetings()
    shown: Any = None


@frozen(kw_only=True)
class Opening:
    """A stage that begins, or goes on.

    Attributes:
        stage: its config.
        recipe: the recipe that it is of.
        num_samples: samples per pass over the data.
        report: what it trains.
        seed: of the run.
        runtime: where.
        saved: the state within the stage that it goes on from.
    """

    stage: StageConfig
    recipe: RecipeConfig
    num_samples: int
    report: FreezeReport
    seed: int
    runtime: Runtime
    saved: SavedState | None = None

    @property
    def length(self) -> StageLength:
        """The stage's lengths."""
        return stage_length(self.stage, self.recipe, self.num_samples)

    def length_with(self, optimiser: OptimiserConfig) -> StageLength:
        """The stage's lengths under another optimiser's schedule."""
        return stage_length(evolve(self.stage, optimiser=optimiser), self.recipe, self.num_samples)


class Task:
    """Base of tasks: says what is trained, and what a forward pass gives to the loss terms.

    Attributes:
        module: all that is trained and kept in checkpoints.
    """

    module: nn.Module

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        """Role name → module, in a fixed order; recipes name what they train by it."""
        return dict(self.module.named_children())

    def forward(self, stage: StageConfig, batch: MicroBatch, *, cut: bool) -> Passed:
        """One pass along a stage's path.

        Args:
            stage: says which path.
            batch: the samples.
            cut: whether the graph is to be cut at the task's meetings.
        """
        raise NotImplementedError

    def layers(self) -> Mapping[str, Layer]:
        """What the ``layer`` of an adaptive weight can name."""
        return {}

    def entry(self, needs: frozenset[str]) -> Entry:
        """Where the gradient of a term with these needs enters."""
        return "anywhere"

    def objective(self, opening: Opening) -> Objective:
        """The terms of a stage."""
        return Objective(
            opening.stage.terms, length=opening.length, layers=self.layers(), entry=self.entry,
            device=opening.runtime.device,
        )  # fmt: skip

    def players(self, opening: Opening, objective: Objective) -> Sequence[Player]:
        """Who learns in a stage, in turn; the first one is the model."""
        return [self.model_player(opening, objective)]

    def model_player(self, opening: Opening, objective: Objective) -> Player:
        """The task's own module as a player of a stage."""
        stage = opening.stage
        trained = dict(trained_parameters(self.roles))
        return Player(
            name=MODEL,
            module=Trainee(self, stage, objective),
            parameters=trained,
            config=stage.optimiser,
            length=opening.length,
            balance=Balance(self.layers(), reduce=opening.runtime.reduce),
            ema=Ema(trained.items(), decay=stage.ema, warmup=stage.ema_warmup),
            more={
                repr(decay): Ema(trained.items(), decay=decay, warmup=stage.ema_warmup)
                for decay in stage.more_ema
            },
            modes=lambda: set_modes(self.roles, opening.report),
            weighed=objective.weighed,
        )

    def before(
        self, stage: StageConfig | None, *, data: BatchSource, runtime: Runtime, seed: int
    ) -> Iterator[events.Notice]:
        """Do what has to be done before a stage, such as an analytic fit; None: after the last."""
        yield from ()

    def evaluate(self, stage: StageConfig, runtime: Runtime) -> Mapping[str, float]:
        """Held-out metrics of the weights as they are, on a stage's path; all processes call it, and
        get the same."""
        return {}

    def criterion(self, stage: StageConfig) -> str:
        """The metric that chooses a stage's best weights; ``-`` before it where less is better, and
        nothing where none are chosen."""
        return stage.best

    def remarks(self, metrics: Mapping[str, float]) -> Mapping[str, str]:
        """What held-out metrics give reason to say, by what it is about; each is said once."""
        return {}

    def save(self, folder: Path) -> None:
        """Write what is trained, in the form in which it is used.

        Raises:
            CheckpointError: if it cannot be written.
        """


@frozen(kw_only=True)
class TrainerInputs:
    """Everything a training run is a function of.

    Attributes:
        task: what is trained, in place; its weights start as the run's initialisation.
        recipe: what to do.
        data: samples.
        runtime: device, precision, processes.
        folder: the run's folder.
        seed: of every random draw.
    """

    task: Task
    recipe: RecipeConfig
    data: BatchSource
    runtime: Runtime
    folder: Path
    seed: int


class Trainee(nn.Module):
    """A task's module in one stage: its forward pass gives the stage's terms.

    Only roles with something to train are its submodules; the others are held aside, so that a
    distributed wrapper sees just what is trained.

    Args:
        task: requires_grad of its parameters is set for the stage.
        stage: the path.
        objective: the terms.
    """

    def __init__(self, task: Task, stage: StageConfig, objective: Objective) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(
            {
                role: module
                for role, module in task.roles.items()
                if any(p.requires_grad for p in module.parameters())
            }
        )
        self._held = (task,)
        self._stage = stage
        self._objective = objective

    def forward(self, step: int, batch: MicroBatch) -> Pass:
        """The terms of a micro-batch."""
        passed = self._held[0].forward(self._stage, batch, cut=self._objective.adaptive)
        return Pass(
            values=self._objective(passed.context, step), meetings=passed.meetings,
            shown=passed.shown,
        )  # fmt: skip
