"""When a stage has to be taken back: a loss that leaps, or that is not finite."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

from attrs import define, field

from rpiae.core.errors import TrainingError

#: Losses that the usual one is the median of, and the fewest that make one.
REMEMBERED = 100
FEWEST = 20


class SpikeError(TrainingError):
    """Training went wrong at a step, and may go on from an earlier one."""


@define(kw_only=True)
class SpikeGuard:
    """Knows the usual loss of a stage.

    Attributes:
        factor: how many times the usual loss a loss may be; None where nothing is guarded.
        retries: how often the stage was taken back so far.
    """

    factor: float | None
    retries: int = 0
    _recent: deque[float] = field(factory=lambda: deque(maxlen=REMEMBERED), init=False)

    @property
    def helps(self) -> bool:
        """Whether the stage can still be taken back; it is once."""
        return self.factor is not None and not self.retries

    def problems(self, loss: float) -> Sequence[str]:
        """How a step's loss leaps beyond what is usual, in words; nothing where it does not."""
        usual = statistics.median(self._recent) if len(self._recent) >= FEWEST else None
        self._recent.append(loss)
        if self.factor is None or usual is None or loss <= self.factor * usual:
            return []
        return [f"its loss is {loss:.4g}, where {usual:.4g} is usual"]

    def taken_back(self) -> None:
        """Count it, and forget what was usual."""
        self.retries += 1
        self._recent.clear()
