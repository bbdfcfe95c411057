"""The exceptions of rpiae, and the wording they share.

RpiaeError                    everything raised on purpose; the CLI prints it without traceback
├── UsageError (ValueError)   the call was wrong; exit code 2
│   ├── UnknownNameError      a name that nothing is registered under
│   ├── ConfigError           a config has problems (all of them, each with its path)
│   ├── RegistrationError     a registration that collides or is malformed
│   └── MissingExtraError     a part needs a package that is not installed
└── RunError (RuntimeError)   the call was right and it failed; exit code 1
    ├── FetchError            weights or data could not be fetched
    │   ├── AbsentFileError       the repository has no such file
    │   └── UnwritableCacheError  they are not in the cache, and it cannot be written
    ├── CheckpointError       a saved file is missing, damaged or of something else
    ├── DataError             images that cannot be used
    ├── PluginError           an installed plugin is broken
    └── TrainingError         training cannot go on (a NaN, for example)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

#: Letters above which a text is not compared with names: that takes time that grows with its square.
LONGEST = 200


class RpiaeError(Exception):
    """Base of every error that rpiae raises on purpose."""

    exit_code = 1


class UsageError(RpiaeError, ValueError):
    """The call was wrong: a name, an option or a value."""

    exit_code = 2


class UnknownNameError(UsageError):
    """No entry of that name; the message carries the nearest names."""


class ConfigError(UsageError):
    """A configuration has problems.

    Attributes:
        problems: one line per problem, each starting with the field's path.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{source} has {count}: " + " · ".join(problems))


class RegistrationError(UsageError):
    """A part was registered under a taken or malformed name."""


class MissingExtraError(UsageError):
    """A part needs an optional dependency that is not installed."""


class RunError(RpiaeError, RuntimeError):
    """The call was right, and it failed."""


class FetchError(RunError):
    """Weights or data could not be fetched."""


class AbsentFileError(FetchError):
    """What is to be fetched is not in its repository."""


class UnwritableCacheError(FetchError):
    """What is to be fetched is not in the cache, and the cache cannot be written."""


class CheckpointError(RunError):
    """A saved file is missing, damaged, or belongs to something else."""


class DataError(RunError):
    """A data source has nothing usable in it."""


class PluginError(RunError):
    """An installed plugin is broken."""


class TrainingError(RunError):
    """Training cannot go on; what was saved before stays."""


def nearest(name: str, choices: Iterable[str], *, limit: int = 2) -> list[str]:
    """The choices whose spelling is close to ``name``, nearest first; none for what is no name."""
    if len(name) > LONGEST:
        return []
    return difflib.get_close_matches(name, list(choices), n=limit, cutoff=0.6)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'a' or 'b'?`` with a leading space, or nothing."""
    close = nearest(name, choices)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """Message for a name outside a small closed set, which is listed whole."""
    choices = sorted(choices)
    return f"no {what} named {name!r}.{did_you_mean(name, choices)} Available: {', '.join(choices)}"
