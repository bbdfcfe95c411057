"""A player: whoever learns in a stage, with all that its learning takes.

Model and critic are two of them. A player clears, measures and clips the gradients of what it trains,
and nobody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from rpiae.core.config.recipe import AdaptiveConfig, OptimiserConfig, StageLength
from rpiae.core.model.contracts import Batch
from rpiae.core.runtime.draws import StepRandomness
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.balance import Balance, Pass
from rpiae.core.training.ema import Ema
from rpiae.core.training.schedules import learning_rate


class MicroBatch(NamedTuple):
    """Samples of a step that go through a player together.

    Attributes:
        inputs: (b, …), on the run's device.
        draws: of these samples.
        share: of them in the step's samples, times the number of processes.
        labels: (b,), −1 where there is none; None where none is known.
    """

    inputs: Tensor
    draws: StepRandomness
    share: float
    labels: Tensor | None = None


def micro_batches(pieces: Sequence[Batch], seed: int, stage: str, step: int) -> list[MicroBatch]:
    """The pieces of a step's batch, with the draws of their samples."""
    return [
        MicroBatch(
            piece.inputs, StepRandomness(seed, stage, step, piece.samples), piece.share, piece.labels
        )
        for piece in pieces
    ]  # fmt: skip


#: Name of the player that a task's own module is.
MODEL = "model"


@frozen(kw_only=True)
class Learned:
    """What came of a player's step; tensors, so that nobody has to wait for the device.

    Attributes:
        player: whose.
        terms: raw values of its loss terms, of this process's samples.
        weights: their weights.
        facts: what else its passes told, weighted like the terms.
        gradient_norms: by role.
        learning_rate: of the step.
        shown: what its passes showed, per micro-batch.
    """

    player: str
    terms: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    facts: Mapping[str, Tensor]
    gradient_norms: Mapping[str, Tensor]
    learning_rate: float
    shown: Sequence[Any]


#: Gives what a player's module is called with for each micro-batch, when it is its turn: the
#: micro-batches, and what those who learned before it in this step showed.
Inputs = Callable[
    [Sequence[MicroBatch], Mapping[str, Learned]], Sequence[Callable[[], tuple[Any, ...]]]
]


def of_the_batch(
    batches: Sequence[MicroBatch], _: Mapping[str, Learned]
) -> Sequence[Callable[[], tuple[Any, ...]]]:
    """The micro-batches themselves."""
    return [lambda batch=batch: (batch,) for batch in batches]  # type: ignore[misc]  # bound as a default


@define(kw_only=True)
class Player:
    """A module that learns.

    Attributes:
        name: what it is called in logs and checkpoints.
        module: its forward pass takes (step, *inputs) and gives a ``Pass``; what a distributed wrapper
            sees. Its parameters that require gradients are those that are trained.
        parameters: what it trains, by role-prefixed name.
        config: optimiser and schedule.
        length: the stage's lengths with that schedule.
        start: first step of the stage in which it learns; its schedule counts from there.
        balance: weighs its terms.
        ema: average of its parameters, where one is kept.
        more: further averages, by their decay.
        modes: sets train and eval modes before it learns.
        inputs: what its module is called with.
        weighed: its terms that have an adaptive weight in a step, by label.
    """

    name: str
    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    config: OptimiserConfig
    length: StageLength
    start: int = 0
    balance: Balance = field(factory=Balance)
    ema: Ema | None = None
    more: Mapping[str, Ema] = field(factory=dict)
    modes: Callable[[], object]
    inputs: Inputs = of_the_batch
    weighed: Callable[[int], Mapping[str, AdaptiveConfig]] = lambda _: {}
    optimiser: torch.optim.AdamW = field(init=False)
    _wrapped: Any = field(init=False)
    _stepping: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=self.config.learning_rate,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        self._wrapped, self._stepping = self.module, self.optimiser

    def prepare(self, runtime: Runtime) -> None:
        """Wrap the module for the run's processes."""
        self.wake()  # a distributed wrapper listens to what is trained as it wraps
        self._wrapped, self._stepping = runtime.prepare(self.module, self.optimiser)

    def wake(self) -> None:
        """Have the parameters listen to gradients, in the modes of learning."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.modes()

    def rest(self) -> None:
        """Have gradients pass through to the inputs, and to nothing else, in eval mode."""
        self.module.eval()
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)

    def learn(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        runtime: Runtime,
        *,
        earlier: Mapping[str, Learned] | None = None,
        check: Callable[[Learned], None] = lambda _: None,
    ) -> Learned:
        """One optimiser step.

        Args:
            step: of the stage.
            batches: this process's samples.
            runtime: where.
            earlier: what others learned in this step.
            check: called with what was learned, before the parameters change.
        """
        self.wake()
        rate = self.learning_rate(step - self.start)
        for group in self._stepping.param_groups:
            group["lr"] = rate
        self.clear()
        learned = self._gradients(step, batches, runtime, earlier or {}, rate)
        check(learned)
        self._clip(learned.gradient_norms)
        self._stepping.step()
        for average in (self.ema, *self.more.values()):
            if average is not None:
                average.update()
        return learned

    def _gradients(
        self, step: int, batches: Sequence[MicroBatch], runtime: Runtime,
        earlier: Mapping[str, Learned], rate: float,
    ) -> Learned:  # fmt: skip
        """Gradients of all the step's samples."""
        waiting = self.inputs(batches, earlier)
        weigh = self.balance.due(self.weighed(step), step)
        if weigh and len(batches) > 1:
            self._weigh_first(step, batches, waiting, runtime)
            weigh = False
        terms: dict[str, Tensor] = {}
        facts: dict[str, Tensor] = {}
        weights: Mapping[str, Tensor] = {}
        shown = []
        for number, (batch, inputs) in enumerate(zip(batches, waiting, strict=True), start=1):
            with runtime.unsynchronised_if(self._wrapped, number < len(batches)):
                with runtime.autocast():
                    passed: Pass = self._wrapped(step, *inputs())
                weights = self.balance.backward(passed, share=batch.share, weigh=weigh)
            _add(terms, {v.label: v.value.detach() for v in passed.values}, batch.share)
            _add(facts, passed.facts, batch.share)
            shown.append(passed.shown)
        return Learned(
            player=self.name, terms=terms, weights=weights, facts=facts, gradient_norms=self.norms(),
            learning_rate=rate, shown=shown,
        )  # fmt: skip

    def _weigh_first(
        self, step: int, batches: Sequence[MicroBatch],
        waiting: Sequence[Callable[[], tuple[Any, ...]]], runtime: Runtime,
    ) -> None:  # fmt: skip
        """Take the ratios of an accumulated batch, by a pass that leaves no gradients."""
        for batch, inputs in zip(batches, waiting, strict=True):
            with runtime.autocast():
                passed: Pass = self.module(step, *inputs())
            self.balance.measure(passed, share=batch.share)
        self.balance.settle(passed.values)

    def clear(self) -> None:
        """Forget the gradients, and free their memory."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def norms(self) -> dict[str, Tensor]:
        """Norm of the gradients per role; roles without any are left out."""
        gradients: dict[str, list[Tensor]] = {}
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                gradients.setdefault(name.partition(".")[0], []).append(parameter.grad)
        return {role: nn.utils.get_total_norm(each) for role, each in gradients.items()}

    def _clip(self, norms: Mapping[str, Tensor]) -> None:
        """Scale the gradients down to the norm that is wanted, if any."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        if self.config.clip and gradients:
            total = torch.linalg.vector_norm(torch.stack([norms[role] for role in norms]))
            factor = (self.config.clip / (total + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)

    def learning_rate(self, step: int) -> float:
        """Learning rate of one of the player's own steps."""
        return learning_rate(
            step,
            base=self.config.learning_rate,
            final=self.config.final_learning_rate,
            warmup_steps=self.length.warmup,
            decay_steps=self.length.decay,
            shape=self.config.shape,
            warmup_from_zero=self.config.warmup_from_zero,
        )

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, ratios and further averages, for a checkpoint; what is trained is saved by whoever
        has it."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "balance": self.balance.state_dict(),
            "more": {decay: average.state_dict() for decay, average in self.more.items()},
        }

    def whole(self) -> dict[str, Any]:
        """The same with the module's weights, for a player that the task's own state does not hold."""
        return {"weights": self.module.state_dict(), **self.state_dict()}

    def load_whole(self, saved: Mapping[str, Any]) -> None:
        """Inverse of ``whole``."""
        self.module.load_state_dict(saved["weights"])
        self.load_state_dict(saved)

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on with the moments of a saved state, and with the settings that there are now; averages
        that it does not have begin with the weights as they are."""
        own = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": saved["optimiser"]["state"], "param_groups": own})
        self.balance.load_state_dict(saved["balance"])
        for decay, average in self.more.items():
            if decay in saved["more"]:
                average.load_state_dict(saved["more"][decay])
            else:
                average.begin()


def _add(sums: dict[str, Tensor], values: Mapping[str, Tensor], share: float) -> None:
    for label, value in values.items():
        scaled = share * value
        sums[label] = sums[label] + scaled if label in sums else scaled
