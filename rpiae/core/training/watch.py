"""Signs that a stage goes wrong, said once, with what to change."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from attrs import define, field

from rpiae.core.config.parts import Alarm

#: A stage is looked at in this many windows.
WINDOWS = 20

#: Windows at the start in which anything may happen: a pivot loss starts at zero and has to rise.
SETTLING = 6

#: Windows in a row that must show a sign.
IN_A_ROW = 4


@define(kw_only=True)
class Watch:
    """Watches one stage.

    Args:
        steps: its length.
        alarms: by label of the term.
    """

    steps: int
    alarms: Mapping[str, Alarm]
    _sums: dict[str, float] = field(factory=dict, init=False)
    _count: int = field(default=0, init=False)
    _means: dict[str, list[float]] = field(factory=dict, init=False)
    _said: set[str] = field(factory=set, init=False)

    def step(self, terms: Mapping[str, float]) -> Iterator[str]:
        """Take in a step's raw terms; what there is to say."""
        for label in self.alarms.keys() & terms.keys():
            self._sums[label] = self._sums.get(label, 0.0) + terms[label]
        self._count += 1
        if self._count < max(1, math.ceil(self.steps / WINDOWS)):
            return
        for label, total in self._sums.items():
            means = self._means.setdefault(label, [])
            means.append(total / self._count)
            alarm = self.alarms[label]
            if label not in self._said and _shows(alarm, means):
                self._said.add(label)
                first, last = means[-IN_A_ROW - 1 :: IN_A_ROW] or means[-1:] * 2
                yield f"{label} {_words(alarm, first, last)}: {alarm.advice}"
        self._sums.clear()
        self._count = 0

    def evaluation(self, metrics: Mapping[str, float]) -> Iterator[str]:
        """Take in held-out metrics; what there is to say."""
        dead = int(metrics.get("dead_channels", 0))
        if dead and "dead_channels" not in self._said:
            self._said.add("dead_channels")
            yield (
                f"{dead} latent channels carry nothing on the held-out images: lower the weight of "
                "the KL term, or take a bridge with fewer channels"
            )


def _shows(alarm: Alarm, means: list[float]) -> bool:
    if len(means) < SETTLING + IN_A_ROW:
        return False
    recent = means[-IN_A_ROW - 1 :]
    if alarm.sign == "vanishing":
        return all(mean < alarm.bound for mean in recent[1:])
    pairs = itertools.pairwise(recent)
    return all(after > (1 + alarm.bound) * before for before, after in pairs)


def _words(alarm: Alarm, first: float, last: float) -> str:
    if alarm.sign == "vanishing":
        return f"is down to {last:.2g}"
    return f"keeps rising ({first:.3g} → {last:.3g})"
