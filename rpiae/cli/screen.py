"""Terminal output: results on stdout, progress and notices on stderr.

Text is text: names and messages come from files and users, so nothing in them is markup or emoji.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

stdout = Console(highlight=False, markup=False, emoji=False)
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)


def count(number: int) -> str:
    """A parameter count: 86.6 M, 4.2 M, 320 k."""
    for limit, suffix in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if number >= limit:
            value = number / limit
            return f"{value:.0f} {suffix}" if value >= 100 else f"{value:.1f} {suffix}"
    return str(number)


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_bar() -> Progress:
    """A bar on stderr whose tasks have a field ``status``."""
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[status]}", markup=False), console=stderr,
    )  # fmt: skip
