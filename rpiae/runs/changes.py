"""What may change when a run is resumed: nothing that what is already trained depends on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs import frozen

from rpiae.core.config.identity import Effect, effect
from rpiae.core.errors import UsageError
from rpiae.core.model.stages import AnyRun

_STAGE = re.compile(r"recipe\.stages\[(\d+)\]")


@frozen(kw_only=True)
class Change:
    """A field of a config with two values; None is "not given".

    Attributes:
        path: of the field.
        before, after: the values.
        affects: what depends on the field.
    """

    path: str
    before: Any
    after: Any
    affects: Effect = "result"

    def __str__(self) -> str:
        return f"{self.path} {_shown(self.before)} → {_shown(self.after)}"


def differences(
    before: Any, after: Any, path: str = "", affects: Effect = "result"
) -> Iterator[Change]:
    """Fields that differ between two configs or trees of them, in the order of the first."""
    here, there = _items(before), _items(after)
    if here is None or there is None:
        if before != after:
            yield Change(path=path, before=before, after=after, affects=affects)
        return
    alike = type(before) is type(after) and attrs.has(type(before))
    declared = attrs.fields_dict(type(before)) if alike else {}
    for name in dict.fromkeys([*here, *there]):
        one, other = here.get(name), there.get(name)
        if one != other:
            inside = effect(declared[name], before, after) if name in declared else affects
            yield from differences(one, other, _within(path, name), inside)


def allowed_changes(
    before: AnyRun, after: AnyRun, *, stage: int, step: int, source: str
) -> list[Change]:
    """The changes between a run's config and the one it is to go on with.

    Args:
        before, after: the configs.
        stage, step: how far the run is; later stages, and one of which no step is taken, are free.
        source: the run, for messages.

    Raises:
        UsageError: if a change would concern what is already trained; it names all of them.
    """
    found = list(differences(before, after))
    refused = [change for change in found if not _free(change, stage, step)]
    if refused:
        raise UsageError(
            f"{source} cannot go on with {' · '.join(map(str, refused))}: what is already trained "
            f"depends on it. Leave it as it was, or start another run from its weights with --init"
        )
    return found


def _free(change: Change, stage: int, step: int) -> bool:
    if change.affects != "result":
        return True
    found = _STAGE.match(change.path)
    return found is not None and int(found[1]) >= stage + (step > 0)


def _items(value: Any) -> dict[str, Any] | None:
    """What a config, a table or a list of these holds, by name or index in brackets."""
    if attrs.has(type(value)):
        return {a.name: getattr(value, a.name) for a in attrs.fields(type(value))}
    if isinstance(value, Mapping):
        return dict(value)
    tables = isinstance(value, (list, tuple)) and any(_items(item) is not None for item in value)
    return {f"[{i}]": item for i, item in enumerate(value)} if tables else None


def _within(path: str, name: str) -> str:
    return path + name if name.startswith("[") or not path else f"{path}.{name}"


def _shown(value: Any) -> str:
    if value is None:
        return "(not given)"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
