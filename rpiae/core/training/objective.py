"""The weighted loss terms of a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from rpiae.core.config.parts import Alarm
from rpiae.core.config.recipe import AdaptiveConfig, StageLength, TermConfig
from rpiae.core.errors import UsageError
from rpiae.core.training.balance import Entry, Layer, Value
from rpiae.core.training.schedules import term_weight


class Objective:
    """The loss terms of one stage.

    Args:
        terms: their configs.
        length: the stage's lengths, for starts and ramps.
        layers: what adaptive weights can refer to.
        entry: where the gradient of a term with some needs enters.
        device: where terms with weights of their own are put.

    Raises:
        UsageError: if an adaptive weight refers to a layer that the stage does not train.
    """

    def __init__(
        self,
        terms: Sequence[TermConfig],
        *,
        length: StageLength,
        layers: Mapping[str, Layer],
        entry: Callable[[frozenset[str]], Entry] = lambda _: "anywhere",
        device: torch.device | str = "cpu",
    ) -> None:
        self._length = length
        self.terms: list[tuple[str, TermConfig, Any]] = []
        self._entries: dict[str, Entry] = {}
        for config in terms:
            label = self._label(config)
            if config.adaptive and not layers[config.adaptive.layer].weight.requires_grad:
                raise UsageError(
                    f"the adaptive weight of {label!r} refers to the {config.adaptive.role}'s last "
                    "layer, which this stage does not train: remove `adaptive` from the term, or "
                    f"train the {config.adaptive.role}"
                )
            term = config.loss.build()
            if isinstance(term, nn.Module):
                term.to(device).requires_grad_(False).eval()
            self.terms.append((label, config, term))
            self._entries[label] = entry(config.loss.needs)

    @property
    def alarms(self) -> dict[str, Alarm]:
        """What the terms want to be listened to for, by label."""
        return {label: config.loss.alarm for label, config, _ in self.terms if config.loss.alarm}

    @property
    def adaptive(self) -> bool:
        """Whether any term has an adaptive weight."""
        return any(config.adaptive for _, config, _ in self.terms)

    def __call__(self, context: Any, step: int) -> tuple[Value, ...]:
        """All active terms of a step, in fp32.

        Args:
            context: what the terms look at.
            step: optimiser step of the stage.
        """
        weighed = self.weighed(step)
        return tuple(
            Value(
                label=label,
                value=term(context).float(),
                weight=self._scheduled(config, step),
                reference=config.reference,
                adaptive=weighed.get(label),
                entry=self._entries[label],
            )
            for label, config, term in self._started(step)
        )

    def weighed(self, step: int) -> dict[str, AdaptiveConfig]:
        """The terms that have an adaptive weight in a step, by label: those past its warm-up, where
        there is a reference."""
        started = self._started(step)
        if not any(config.reference for _, config, _ in started):
            return {}
        return {
            label: config.adaptive
            for label, config, _ in started
            if config.adaptive and step >= self._warmup(config.adaptive)
        }

    def _started(self, step: int) -> list[tuple[str, TermConfig, Any]]:
        return [t for t in self.terms if step >= self._length.start(t[1])]

    def _label(self, config: TermConfig) -> str:
        taken = [label for label, _, _ in self.terms]
        label, number = config.loss.label, 2
        while label in taken:
            label, number = f"{config.loss.label}-{number}", number + 1
        return label

    def _scheduled(self, config: TermConfig, step: int) -> float:
        ramp = round(config.ramp_steps * self._length.scale)
        start = self._length.start(config)
        return term_weight(step, weight=config.weight, start=start, ramp=ramp)

    def _warmup(self, adaptive: AdaptiveConfig) -> int:
        return round(adaptive.warmup_steps * self._length.scale)
