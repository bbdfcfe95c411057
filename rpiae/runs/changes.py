"""What may change when a run is resumed: nothing that what is already trained depends on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from rpiae.core.config.identity import fields_without_effect
from rpiae.core.config.recipe import RecipeConfig, RunConfig
from rpiae.core.errors import UsageError

#: Fields that no trained weight depends on (but for rounding), or that the run's folder holds.
FREE = frozenset(
    {
        "precision", "recipe.accumulate", "data.path", "data.workers", "encoder.weights",
        *fields_without_effect(RunConfig),
        *(f"recipe.{name}" for name in fields_without_effect(RecipeConfig)),
    }
)  # fmt: skip

_STAGE = re.compile(r"recipe\.stages\[(\d+)\]")


@frozen(kw_only=True)
class Change:
    """A field of a config tree with two values; None is "not given"."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path} {_shown(self.before)} → {_shown(self.after)}"


def differences(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """Fields that differ between two config trees, in the order of the first."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            inside = f"{path}.{key}" if path else str(key)
            yield from differences(before.get(key), after.get(key), inside)
    elif _tables(before) and _tables(after):
        for i in range(max(len(before), len(after))):
            one, other = (side[i] if i < len(side) else None for side in (before, after))
            yield from differences(one, other, f"{path}[{i}]")
    elif before != after:
        yield Change(path=path, before=before, after=after)


def allowed_changes(before: Any, after: Any, *, stage: int, step: int, source: str) -> list[Change]:
    """The changes between a run's config and the one it is to go on with.

    Args:
        before, after: the config trees.
        stage, step: how far the run is; later stages, and one of which no step is taken, are free.
        source: the run, for messages.

    Raises:
        UsageError: if a change would concern what is already trained; it names all of them.
    """
    found = list(differences(before, after))
    refused = [change for change in found if not _free(change.path, stage, step)]
    if refused:
        raise UsageError(
            f"{source} cannot go on with {' · '.join(map(str, refused))}: what is already trained "
            f"depends on it. Leave it as it was, or start another run from its weights with --init"
        )
    return found


def _free(path: str, stage: int, step: int) -> bool:
    if path in FREE:
        return True
    found = _STAGE.match(path)
    return found is not None and int(found[1]) >= stage + (step > 0)


def _tables(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and any(isinstance(item, Mapping) for item in value)
    )


def _shown(value: Any) -> str:
    if value is None:
        return "(not given)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
