"""Standard output and error that take every character, and whose failure ends nothing."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from attrs import define

from rpiae.core.runtime.names import printable

#: What an output without Unicode gets in place of the signs that messages use.
_PLAIN = {
    "·": "-", "…": "...", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "−": "-", "–": "-", "—": "-",
    "²": "^2", "³": "^3", "±": "+-", "σ": "sigma", "τ": "tau", "λ": "lambda", "∇": "grad",
    "━": "-", "╸": "-", "╺": "-",
}  # fmt: skip
_ERRORS = "rpiae.printable"


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    text = "".join(_PLAIN.get(character, printable(character)) for character in lost)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(_ERRORS, _replaced)


@define
class Failures:
    """What could not be written.

    Attributes:
        stdout, stderr: the first error of each, or None.
    """

    stdout: OSError | None = None
    stderr: OSError | None = None

    @property
    def results_lost(self) -> bool:
        """Whether something meant for standard output did not get there."""
        return self.stdout is not None


@contextlib.contextmanager
def steady_output() -> Iterator[Failures]:
    """Within the block, ``sys.stdout`` and ``sys.stderr`` are there and writing to them succeeds.

    A stream that was closed before the process began takes everything and keeps nothing. One that
    fails (a full disk, a reader that has gone) does so from its first error on; the error is kept.
    A character that its encoding lacks is replaced by a plain one, or by its number.
    """
    failures = Failures()
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name) or stack.enter_context(_nothing())
            stack.enter_context(_taking_all_characters(stream))
            setattr(sys, name, _Steady(stream, name, failures))
        try:
            yield failures
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def _nothing() -> TextIO:
    """A stream in place of one that is closed; its number is taken, lest a file of ours gets it."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    return os.fdopen(handle, "w", encoding="utf-8")


@contextlib.contextmanager
def _taking_all_characters(stream: Any) -> Iterator[None]:
    """Have a text file replace what its encoding lacks; streams of notebooks take everything."""
    if not hasattr(stream, "reconfigure"):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors=_ERRORS)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):  # it may be the stream that failed
            stream.reconfigure(errors=errors)


class _Steady:
    """A stream that keeps the first error of writing, and from then on takes everything."""

    def __init__(self, stream: Any, name: str, failures: Failures) -> None:
        self._stream = stream
        self._name = name
        self._failures = failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or keep why not."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or keep why not."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        if getattr(self._failures, self._name) is not None:
            return
        try:
            action()
        except OSError as error:
            setattr(self._failures, self._name, error)
            if self._stream is getattr(sys, f"__{self._name}__"):
                # What it still holds is written once more as the process ends.
                with open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), self._stream.fileno())
