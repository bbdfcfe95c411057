"""A progress bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math

from rpiae.cli.screen import duration, progress_bar, stderr


class Bar:
    """Images done, with a status, on stderr.

    Args:
        title: what is going on.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._plain = not stderr.is_terminal
        self._tenth = -1.0
        self._progress = progress_bar()
        self._task = self._progress.add_task(title, total=1, status="")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: float, total: int, status: str) -> None:
        """Where things are; what is begun may count by its share that is done."""
        if not self._plain:
            self._progress.start()
            self._progress.update(self._task, completed=done, total=total, status=status)
        elif done * 10 // max(total, 1) != self._tenth:
            self._tenth = done * 10 // max(total, 1)
            stderr.print(f"{self._title} {int(done)}/{total}: {status}", soft_wrap=True)

    def images(self, done: int, total: int, rate: float, *, what: str = "images") -> None:
        """How many images are done, or clips, at a rate in images per second."""
        left = f" · {duration((total - done) / rate)} left" if rate else ""
        self.show(done, total, f"{rate:.3g} {what}/s{left}")

    def frames(self, done: float, total: int, rate: float, remaining: float) -> None:
        """How many videos are done, at a rate in frames per second, and the seconds that are left."""
        left = f" · {duration(remaining)} left" if math.isfinite(remaining) else ""
        self.show(done, total, f"{rate:.3g} frames/s{left}")

    def say(self, text: str) -> None:
        """A line above the bar."""
        stderr.print(text, soft_wrap=True)
