"""What steps report, read from the device every few steps at once.

Reading a number makes an accelerator wait for all that is queued, so steps leave tensors here, and
they are read together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.player import MODEL, Learned


@frozen(kw_only=True)
class Window:
    """The steps since the last reading.

    Attributes:
        seconds: that they took, waiting for data included.
        totals: weighted loss of each, over all processes, where every step's is wanted.
    """

    seconds: float
    totals: Sequence[float]
    _facts: Mapping[str, Any]

    def event(self, *, remaining_seconds: float) -> events.StepDone:
        """As an event."""
        return events.StepDone(remaining_seconds=remaining_seconds, **self._facts)


@define
class Readings:
    """Numbers of a stage's steps.

    Args:
        runtime: where they come from.
        stage: its name.
        steps: its length.
        batch_size: samples per step over all processes.
        each: whether the loss of every step is wanted, and not that of the last one alone.
    """

    _runtime: Runtime
    _stage: str
    _steps: int
    _batch_size: int
    _each: bool = False
    _learned: Mapping[str, Learned] = field(factory=dict, init=False)
    _count: int = field(default=0, init=False)
    _seconds: float = field(default=0.0, init=False)
    _waited: float = field(default=0.0, init=False)
    _finite: Tensor | None = field(default=None, init=False)
    _totals: list[Tensor] = field(factory=list, init=False)

    def add(self, learned: Mapping[str, Learned], *, seconds: float, waited: float) -> None:
        """Take in a step.

        Args:
            learned: by player; the first one is the model.
            seconds: spent on it so far, without waiting for the device.
            waited: seconds spent waiting for its data.
        """
        self._learned = learned
        self._count += 1
        self._seconds += seconds + waited
        self._waited += waited
        if self._each:
            first = next(iter(learned.values()))
            weighed = [first.weights[name] * value for name, value in first.terms.items()]
            self._totals.append(torch.stack([w.double().reshape(()) for w in weighed]).sum())
        if self._runtime.read_every > 1:
            numbers = [n.float() for each in learned.values() for n in _numbers(each).values()]
            finite = torch.stack(numbers).isfinite().all()
            self._finite = finite if self._finite is None else self._finite & finite

    def forget(self) -> None:
        """Leave out the steps since the last reading."""
        self._learned = {}
        self._totals = []
        self._count, self._seconds, self._waited, self._finite = 0, 0.0, 0.0, None

    @property
    def seconds(self) -> float:
        """Spent since the last reading."""
        return self._seconds

    def problems(self) -> list[str]:
        """What is not finite in this process's steps since the last reading, in words; waits for the
        device, and not for other processes."""
        if not self._count:
            return []
        problems = [text for each in self._learned.values() for text in self.problems_of(each)]
        if self._finite is not None and not self._finite.item() and not problems:
            problems = [f"a loss or gradient of the last {self._count} steps"]
        return problems

    def problems_of(self, learned: Learned) -> list[str]:
        """What of a player's step is not finite, in words."""
        whose = "" if learned.player == MODEL else f"{learned.player}'s "
        numbers = _floats(_numbers(learned))
        return [f"{whose}{n} = {v}" for n, v in numbers.items() if not math.isfinite(v)]

    def _row(self, learned: Learned) -> dict[str, float]:
        """How a player besides the model does, over all processes."""
        numbers = _floats(_numbers(learned))
        norms = [numbers[f"gradient norm of {role}"] for role in learned.gradient_norms]
        means = self._runtime.means({n: numbers[n] for n in (*learned.terms, *learned.facts)})
        return {
            **means,
            "gradient_norm": math.hypot(*norms),
            "learning_rate": learned.learning_rate,
        }

    def read(self, step: int) -> tuple[Window, list[str]]:
        """Wait for the device: the last step's numbers over all processes, and what was not finite in
        any step since the last reading.

        Args:
            step: optimiser steps done.
        """
        began = time.perf_counter()
        self._runtime.synchronise()
        self._seconds += time.perf_counter() - began
        first, *others = self._learned.values()
        numbers = _floats(_numbers(first))
        problems = self.problems()
        rows = {other.player: self._row(other) for other in others}
        totals = {f"step {i}": total for i, total in enumerate(_listed(self._totals))}
        means = self._runtime.means({**{n: numbers[n] for n in first.terms}, **totals})
        terms = {n: means[n] for n in first.terms}
        weights = {n: numbers[f"weight of {n}"] for n in first.weights}
        window = Window(
            seconds=self._seconds,
            totals=[means[name] for name in totals],
            facts={
                "stage": self._stage, "step": step, "steps": self._steps,
                "total": sum(weights[name] * value for name, value in terms.items()),
                "terms": terms, "weights": weights, "learning_rate": first.learning_rate,
                "gradient_norms": {
                    role: numbers[f"gradient norm of {role}"] for role in first.gradient_norms
                },
                "others": rows,
                "images_per_second": self._count * self._batch_size / self._seconds,
                "data_seconds": self._waited / self._count,
                "memory": self._runtime.memory(),
            },
        )  # fmt: skip
        self.forget()
        return window, problems


def _numbers(learned: Learned) -> dict[str, Tensor]:
    """All numbers of a player's step, by what they are called in messages."""
    return {
        **learned.terms,
        **{f"weight of {name}": value for name, value in learned.weights.items()},
        **{f"gradient norm of {role}": norm for role, norm in learned.gradient_norms.items()},
        **learned.facts,
    }


def _listed(numbers: Sequence[Tensor]) -> list[float]:
    """Numbers of the device, waited for once."""
    return torch.stack(list(numbers)).tolist() if numbers else []


def _floats(numbers: Mapping[str, Tensor]) -> dict[str, float]:
    if not numbers:
        return {}
    read = torch.stack([number.double().reshape(()) for number in numbers.values()]).tolist()
    return dict(zip(numbers, read, strict=True))
