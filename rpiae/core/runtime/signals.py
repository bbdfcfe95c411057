"""Signals that ask a process to come to a good end."""

from __future__ import annotations

import contextlib
import signal
import time
from types import FrameType

#: What asks a process to end: Ctrl-C, a scheduler or service manager, a terminal that is closed.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

#: Seconds within which a further signal is the first one told twice: where a whole group of processes
#: is told to end, its launcher passes that on too.
SAME = 1.0


class StopSignal(contextlib.AbstractContextManager["StopSignal"]):
    """Remembers the first signal that asks to end; a later one acts as if nobody listened.

    A signal that the process was started to ignore (``nohup``) stays ignored.

    Attributes:
        received: the signal's name; empty before one came.
    """

    received = ""

    def __enter__(self) -> StopSignal:
        self._previous = {}
        for number in STOP_SIGNALS:
            if signal.getsignal(number) in (signal.SIG_IGN, None):
                continue
            with contextlib.suppress(ValueError):  # not the main thread: leave signals alone
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if not self.received:
            self.received = signal.Signals(number).name
            self._at = time.monotonic()
        elif time.monotonic() - self._at > SAME:
            self.__exit__()
            signal.raise_signal(number)
