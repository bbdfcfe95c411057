"""Records of a registry, one beside another: which names they answer to, and where these clash."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import get_args

import attrs
from attrs import frozen

from rpiae.core.config.parts import PartConfig
from rpiae.core.config.tree import Tree, dotted
from rpiae.core.errors import PluginError, did_you_mean
from rpiae.core.registry.entries import Entry, Preset, normalised
from rpiae.core.runtime.names import printable


@frozen(kw_only=True)
class InProcessEntry(Entry):
    """An entry that holds its class, for notebooks, where no import string would find it."""

    config: type[PartConfig]

    @property
    def importable(self) -> bool:
        return False

    def config_class(self) -> type[PartConfig]:
        return self.config


def importable(package: str) -> bool:
    """Whether a package is installed; it is not imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a parent package is not there, or has no spec
        return False


def as_argument(name: str, entries: Iterable[Entry]) -> str:
    """What to write for a file or folder that is there; nothing where none of the parts reads it."""
    try:
        path = Path(name).expanduser()
        whole = path.is_dir()
        inside = [entry.name for entry in islice(path.iterdir(), 64)] if whole else [path.name]
        if not path.exists():
            return ""
    except (OSError, ValueError, RuntimeError):  # no name of a file, or none that may be looked at
        return ""
    for entry in entries:
        for ending in entry.files:
            if ending != "/" and any(file.lower().endswith(ending) for file in inside):
                return f"{entry.name}:{printable(name)}"
    folders = [entry.name for entry in entries if "/" in entry.files]
    return f"{folders[0]}:{printable(name)}" if whole and folders else ""


def names_of(record: Entry | Preset) -> set[str]:
    """The names that a record answers to, normalised; a parametric one is not among them."""
    aliases = record.aliases if isinstance(record, Entry) else ()
    return {normalised(n) for n in (record.name, *aliases)}


def pattern_of(entry: Entry) -> re.Pattern[str]:
    """``vb{latent_channels}`` as an expression with one named group per field."""
    texts_and_fields = re.split(r"\{(\w+)\}", entry.pattern)
    return re.compile(
        "".join(
            f"(?P<{text}>[1-9][0-9]{{0,999}})" if position % 2 else re.escape(text)
            for position, text in enumerate(texts_and_fields)
        )
    )


def shared_name(record: Entry | Preset, taken: Entry | Preset) -> str:
    """The name two records would both answer to, or nothing."""
    shared = sorted(names_of(record) & names_of(taken))
    if shared:
        return shared[0]
    for one, other in ((record, taken), (taken, record)):
        if not (isinstance(one, Entry) and one.pattern):
            continue
        if isinstance(other, Entry) and other.pattern and _form(one) == _form(other):
            return one.pattern
        matching = sorted(name for name in names_of(other) if pattern_of(one).fullmatch(name))
        if matching:
            return matching[0]
    return ""


def _form(entry: Entry) -> str:
    return re.sub(r"\{\w+\}", "{}", entry.pattern)


def check_fields(values: Tree, cls: type[attrs.AttrsInstance], what: str, path: str = "") -> None:
    """Whether what a preset sets are fields of its config, and of the configs inside that.

    Raises:
        PluginError: if not; ``what`` names the preset.
    """
    known = [a.name for a in attrs.fields(cls)]
    strange = sorted(set(values) - set(known))
    if strange:
        where = f"{what}: {path}" if path else what
        raise PluginError(
            f"{where} sets {', '.join(strange)}: no such field in {cls.__name__}."
            f"{did_you_mean(strange[0], known)} It has {', '.join(sorted(known))}"
        )
    for name, inner in _inner_configs(cls).items():
        given = values.get(name)
        if isinstance(given, dict):
            check_fields(given, inner, what, dotted(path, name))
        for i, item in enumerate(given if isinstance(given, list) else ()):
            if isinstance(item, dict):
                check_fields(item, inner, what, f"{dotted(path, name)}[{i}]")


@functools.cache
def _inner_configs(cls: type[attrs.AttrsInstance]) -> dict[str, type[attrs.AttrsInstance]]:
    """Fields that hold configs or tuples of them, which are no parts of another family."""
    found = {}
    with contextlib.suppress(NameError):  # of a stranger's annotation
        cls = attrs.resolve_types(cls)
    for a in attrs.fields(cls):
        inner = (get_args(a.type) or (a.type,))[0]
        if isinstance(inner, type) and attrs.has(inner) and not issubclass(inner, PartConfig):
            found[a.name] = inner
    return found


def same(record: Entry | Preset, taken: Entry | Preset) -> bool:
    """Whether two records are the same thing under the same name."""
    if isinstance(record, Entry) and isinstance(taken, Entry):
        if isinstance(record, InProcessEntry) and isinstance(taken, InProcessEntry):
            return record.config is taken.config and record.name == taken.name
        return record.target == taken.target and record.name == taken.name
    return record == taken


def origin(record: Entry | Preset) -> str:
    """Who brings a record, and what it stands for."""
    what = record.target if isinstance(record, Entry) else f"preset of {record.part}"
    return f"{record.distribution} ({what})"
