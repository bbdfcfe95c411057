"""Entries, manifests and registries: names to config classes, with plugin discovery.

A registry maps a name to a **config class** by import string; nothing here imports torch or the
parts. There is one registry per family, found by the family's name with
[`registry`][rpiae.core.registry.registry].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from attrs import evolve, frozen

from rpiae.core.config.parts import PartConfig, load_object
from rpiae.core.config.tree import Tree
from rpiae.core.errors import (
    MissingExtraError,
    PluginError,
    RegistrationError,
    RpiaeError,
    UnknownNameError,
    nearest,
)
from rpiae.core.registry.discovery import API, GROUP, Plugin, installed_plugins
from rpiae.core.registry.entries import (
    FAMILIES,
    OWN,
    THIS_PROCESS,
    Entry,
    Manifest,
    Preset,
    normalised,
    read_presets,
)
from rpiae.core.registry.records import (
    InProcessEntry,
    as_argument,
    check_fields,
    importable,
    names_of,
    origin,
    pattern_of,
    same,
    shared_name,
)
from rpiae.core.runtime.names import shown

__all__ = [
    "API",
    "FAMILIES",
    "GROUP",
    "OWN",
    "Entry",
    "Manifest",
    "Plugin",
    "Preset",
    "Registry",
    "Selection",
    "installed_plugins",
    "normalised",
    "read_presets",
    "registry",
]

C = TypeVar("C", bound=type[PartConfig])
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_PATTERN = re.compile(r"[a-z0-9.-]*\{[a-z_][a-z0-9_]*\}([a-z.-]+\{[a-z_][a-z0-9_]*\})*[a-z0-9.-]*")


@frozen(kw_only=True)
class Selection:
    """What a name stands for.

    Attributes:
        entry: the part.
        tree: config fields, with ``name`` and, where one was named, ``preset``.
        preset: the preset's record, where the name was one.
    """

    entry: Entry
    tree: Tree
    preset: Preset | None = None


class Registry:
    """Names of one family.

    Args:
        family: plural name, such as ``"encoders"``.
        entries: the built-in parts.
        presets: the built-in presets.
        part: the part of presets that name none; empty where each has to.
        check: what is wrong with the values of a preset of its own accord, or nothing.
        plugins: gives the installed plugins; called on the first lookup, never at import.
    """

    def __init__(
        self,
        family: str,
        entries: Iterable[Entry] = (),
        presets: Iterable[Preset] = (),
        *,
        part: str = "",
        check: Callable[[Tree], str] = lambda _: "",
        plugins: Callable[[], tuple[Plugin, ...]] | None = None,
    ) -> None:
        self.family = family
        self.part = part
        self._check = check
        self.singular = family[:-2] if family.endswith("sses") else family.removesuffix("s")
        self._entries: dict[str, Entry] = {}
        self._presets: dict[str, Preset] = {}
        self._plugins = plugins
        self._discovered = plugins is None
        self._broken: list[tuple[Plugin, str]] = []
        for entry in entries:
            self._add(self._entries, entry)
        for preset in presets:
            self._add(self._presets, preset)

    @overload
    def register(self, name: str, config: None = None, **details: Any) -> Callable[[C], C]: ...
    @overload
    def register(self, name: str, config: C, **details: Any) -> C: ...
    def register(self, name: str, config: C | None = None, **details: Any) -> C | Callable[[C], C]:
        """Register a config class of this process, as a call or as a decorator.

        Registering the same class under the same name again does nothing.

        Args:
            name: the part's name; lower case, digits, ``-`` and ``.``.
            config: an attrs class derived from the family's config base.
            details: further fields of ``Entry``, such as ``summary`` or ``pattern``.

        Raises:
            RegistrationError: if the name is malformed or taken, or the class does not fit.
        """

        def add(cls: C) -> C:
            if not (isinstance(cls, type) and issubclass(cls, PartConfig)):
                raise RegistrationError(
                    f"{self.singular} {name!r}: register a config class derived from PartConfig, "
                    f"not {cls!r}"
                )
            if cls.family != self.family:
                raise RegistrationError(
                    f"{cls.__name__} is a config of the family {cls.family!r}, not {self.family!r}"
                )
            summary = details.pop("summary", (cls.__doc__ or "").strip().partition("\n")[0])
            entry = InProcessEntry(
                name=name, target=f"{cls.__module__}:{cls.__qualname__}", summary=summary,
                distribution=THIS_PROCESS, config=cls, **details,
            )  # fmt: skip
            self._add(self._entries, entry)
            return cls

        return add if config is None else add(config)

    def alone(self, plugins: Callable[[], tuple[Plugin, ...]]) -> Registry:
        """A registry of the same family and rules that holds nothing but what these plugins bring."""
        return Registry(self.family, part=self.part, check=self._check, plugins=plugins)

    def add_preset(self, preset: Preset) -> None:
        """Register a preset.

        Raises:
            RegistrationError: if the name is malformed or taken.
        """
        self._add(self._presets, preset)

    def entries(self) -> list[Entry]:
        """All parts, sorted by name."""
        self._discover()
        return [self._entries[name] for name in sorted(self._entries)]

    def presets(self) -> list[Preset]:
        """All presets, sorted by name."""
        self._discover()
        return [self._presets[name] for name in sorted(self._presets)]

    def names(self) -> list[str]:
        """All names that can be asked for; parametric ones by their pattern."""
        self._discover()
        found = set(self._entries) | set(self._presets)
        for entry in self._entries.values():
            found |= set(entry.aliases) | ({entry.pattern} if entry.pattern else set())
        return sorted(found)

    def entry(self, name: str) -> Entry:
        """The part of that name or alias.

        Raises:
            UnknownNameError: with the nearest names.
        """
        self._discover()
        wanted = normalised(name)
        for entry in self._entries.values():
            if wanted == entry.name or wanted in map(normalised, entry.aliases):
                return entry
        raise self._unknown(name)

    def select(self, text: str) -> Selection:
        """What ``text`` stands for: a preset, a part, ``part:argument`` or a parametric name.

        Raises:
            UnknownNameError: with the nearest names.
        """
        self._discover()
        name, colon, argument = text.partition(":")
        wanted = normalised(name)
        preset = self._presets.get(wanted)
        if preset is not None and not colon:
            entry = self._configured(preset)
            tree = {"name": entry.name, "preset": preset.name}
            return Selection(entry=entry, tree=tree | _copied(preset.values), preset=preset)
        if not colon:
            parametric = self._parametric(wanted)
            if parametric is not None:
                return parametric
            return Selection(entry=(entry := self.entry(name)), tree={"name": entry.name})
        entry = self.entry(name)
        if not entry.argument:
            raise UnknownNameError(f"{self.singular} {entry.name!r} takes no argument after ':'")
        return Selection(entry=entry, tree={"name": entry.name, entry.argument: argument})

    def config_class(self, name: str, *, called: str = "") -> type[PartConfig]:
        """The config class of a part; ``called`` is what the user wrote, such as a preset's name.

        Raises:
            UnknownNameError: if there is none of that name.
            MissingExtraError: if its package is not installed.
            PluginError: if its plugin cannot be loaded.
        """
        entry = self.entry(name)
        if entry.requires and not importable(entry.requires):
            raise MissingExtraError(
                f"{self.singular} {(called or entry.name)!r} needs "
                f"{entry.package or entry.requires}, which is not installed: "
                f'pip install "{entry.distribution}[{entry.extra}]"'
            )
        return self.load(entry)

    def load(self, entry: Entry) -> type[PartConfig]:
        """The config class of one of the entries, whether or not what the part needs is installed.

        Raises:
            PluginError: if it cannot be imported, or is no config of this family.
        """
        cls = entry.config_class()
        if not (isinstance(cls, type) and issubclass(cls, PartConfig)):
            raise PluginError(f"{self.singular} {entry.name!r} of {origin(entry)} is no PartConfig")
        if cls.family != self.family:
            raise PluginError(
                f"{self.singular} {entry.name!r} of {origin(entry)} is a config of the family "
                f"{cls.family!r}: its manifest lists it in the wrong place"
            )
        return cls

    def _configured(self, preset: Preset) -> Entry:
        """The part of a preset; what a plugin's preset sets must be fields of it."""
        if preset.distribution == OWN:
            return self.entry(preset.part)
        what = f"preset {preset.name!r} of {preset.distribution}"
        try:
            entry = self.entry(preset.part)
        except UnknownNameError as error:
            raise PluginError(f"{what} is for a part that is not there: {error}") from None
        check_fields(preset.values, self.load(entry), what)
        return entry

    def _parametric(self, wanted: str) -> Selection | None:
        for entry in self._entries.values():
            if not entry.pattern:
                continue
            match = pattern_of(entry).fullmatch(wanted)
            if match:
                numbers = {field: int(number) for field, number in match.groupdict().items()}
                tree = {"name": entry.name, "preset": wanted, **numbers}
                return Selection(entry=entry, tree=tree)
        return None

    def _unknown(self, name: str) -> RpiaeError:
        names = self.names()
        # A parametric name is closer to `vb64` than to its pattern.
        close = nearest(normalised(name), [re.sub(r"\{\w+\}", "64", n) for n in names])
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        if there := as_argument(name, self.entries()):
            hint = f" For what is there under that name, write {there}."
        elif "/" in name:
            forms = [
                f"{entry.name}:{entry.argument.upper()}"
                for entry in self.entries()
                if entry.argument
            ]
            hint += f" For a path, write {' or '.join(forms)}." if forms else ""
        for plugin, error in self._broken:
            named = normalised(name).startswith(plugin.name.removeprefix(f"{OWN}-"))
            if normalised(name) in self._brought(plugin) or (named and not close):
                return PluginError(f"plugin {plugin.label!r} is installed and broken: {error}")
        return UnknownNameError(
            f"no {self.singular} named {shown(name)}.{hint} "
            f"{len(names)} are available: rpiae list {self.family}"
        )

    def _add(self, table: dict[str, Any], record: Entry | Preset) -> None:
        if isinstance(record, Preset) and not record.part:
            record = evolve(record, part=self.part)
        names = {record.name, *(names_of(record) - {normalised(record.name)})}
        for name in sorted(names):
            if not _NAME.fullmatch(name):
                raise RegistrationError(
                    f"{self.singular} name {name!r}: use lower case letters, digits, '-' and '.'"
                )
        self._check_form(record)
        clashes = [(taken, shared_name(record, taken)) for taken in self._all_records()]
        if any(clash and same(record, taken) for taken, clash in clashes):
            return
        if isinstance(record, InProcessEntry):  # a notebook's cell that is run again
            again = table.get(record.name)
            if isinstance(again, InProcessEntry) and again.target == record.target:
                table[record.name] = record
                return
        for taken, clash in clashes:
            if clash:
                raise RegistrationError(
                    f"{self.singular} {clash!r} of {origin(record)} is already registered by "
                    f"{origin(taken)}"
                )
        table[record.name] = record

    def _check_form(self, record: Entry | Preset) -> None:
        """Refuse what look-ups could not work with."""
        problem = ""
        if not isinstance(record, Entry):
            problem = self._check(record.values)
        elif record.pattern and not _PATTERN.fullmatch(record.pattern):
            problem = f"pattern {record.pattern!r} is not of the form name{{field}} or name{{field}}x{{field}}"
        if problem:
            raise RegistrationError(
                f"{self.singular} {record.name!r} of {origin(record)}: {problem}"
            )

    def _brought(self, plugin: Plugin) -> set[str]:
        """Names in this family that a plugin's manifest lists."""
        if plugin.manifest is None:
            return set()
        return {normalised(record.name) for record in plugin.manifest.records(self.family)}

    def _all_records(self) -> list[Entry | Preset]:
        return [*self._entries.values(), *self._presets.values()]

    def _discover(self) -> None:
        if self._discovered or self._plugins is None:
            return
        self._discovered = True
        for plugin in self._plugins():
            if plugin.manifest is None:
                self._broken.append((plugin, plugin.error))
                continue
            before = dict(self._entries), dict(self._presets)
            try:
                for record in plugin.manifest.records(self.family):
                    table = self._entries if isinstance(record, Entry) else self._presets
                    self._add(table, evolve(record, distribution=plugin.distribution))
            except Exception as error:  # a stranger's manifest may hold anything
                self._entries, self._presets = before
                named = isinstance(error, RegistrationError)
                text = str(error) if named else f"{type(error).__name__}: {error}"
                self._broken.append((plugin, text))

    def broken(self) -> dict[str, str]:
        """Plugins whose parts of this family could not be registered, by label, with the reason."""
        self._discover()
        return {plugin.label: error for plugin, error in self._broken}


def registry(family: str) -> Registry:
    """The registry of a family.

    Raises:
        UnknownNameError: if there is no such family.
    """
    if family not in FAMILIES:
        close = nearest(family, FAMILIES, limit=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownNameError(
            f"no family named {shown(family)}.{hint} Families: {', '.join(sorted(FAMILIES))}"
        )
    return load_object(FAMILIES[family])  # type: ignore[no-any-return]  # an import string


def _copied(tree: Tree) -> Tree:
    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: copy(v) for k, v in value.items()}
        return [copy(v) for v in value] if isinstance(value, list) else value

    return copy(tree)  # type: ignore[no-any-return]  # a dict stays a dict
