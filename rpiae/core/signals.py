"""Signals that ask a process to come to a good end."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType


class StopSignal(contextlib.AbstractContextManager["StopSignal"]):
    """Remembers the first SIGINT or SIGTERM; the second one acts as if nobody listened.

    Attributes:
        received: the signal's name; empty before one came.
    """

    received = ""

    def __enter__(self) -> StopSignal:
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
        for each, handler in self._previous.items():
            signal.signal(each, handler)
