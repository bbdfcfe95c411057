"""Entries, manifests and registries: names to config classes, with plugin discovery.

A registry maps a name to a **config class** by import string; nothing here imports torch or the
parts. There is one registry per family, found by the family's name with
[`registry`][rpiae.core.registry.registry].
"""

from __future__ import annotations

import functools
import importlib.resources
import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, overload

import entrypoints
from attrs import evolve, field, frozen

from rpiae.core.config import PartConfig, Tree, load_object
from rpiae.core.errors import (
    MissingExtraError,
    PluginError,
    RegistrationError,
    RpiaeError,
    UnknownNameError,
    did_you_mean,
    nearest,
)

API = 1
GROUP = "rpiae.plugins"

#: Where each family's registry is.
FAMILIES: Mapping[str, str] = {
    "encoders": "rpiae.encoders:ENCODERS",
    "bridges": "rpiae.bridges:BRIDGES",
    "decoders": "rpiae.decoders:DECODERS",
    "losses": "rpiae.losses:LOSSES",
    "critics": "rpiae.losses:CRITICS",
    "datasets": "rpiae.data:DATASETS",
    "metrics": "rpiae.evaluation:METRICS",
    "recipes": "rpiae.recipes:RECIPES",
}

C = TypeVar("C", bound=type[PartConfig])
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


def normalised(name: str) -> str:
    """Lower case, with ``_`` and blanks as ``-``: the form names are compared in."""
    return re.sub(r"[\s_]+", "-", name.strip().lower())


@frozen(kw_only=True)
class Entry:
    """One registered part.

    Attributes:
        name: what it is called.
        target: import string of its config class.
        summary: one line.
        aliases: other names for it.
        extra: the extra of ``rpiae`` that installs what it needs.
        requires: the importable package behind ``extra``.
        distribution: who brings it.
        tags: free words for listings.
        pattern: a parametric name such as ``"vb{latent_channels}"``; the number goes into the field.
        argument: the field that ``name:argument`` sets.
        source: paper or code the part follows.
        licence: licence of what it wraps, where that is not our own.
    """

    name: str
    target: str
    summary: str
    aliases: tuple[str, ...] = ()
    extra: str = ""
    requires: str = ""
    distribution: str = "rpiae"
    tags: tuple[str, ...] = ()
    pattern: str = ""
    argument: str = ""
    source: str = ""
    licence: str = ""

    @property
    def importable(self) -> bool:
        """Whether another process would find the part under its name."""
        return True

    def config_class(self) -> type[PartConfig]:
        """Import the config class.

        Raises:
            PluginError: if it cannot be imported.
        """
        try:
            return load_object(self.target)  # type: ignore[no-any-return]  # an import string
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"{self.name!r} from {self.distribution} cannot be loaded: {error}"
            ) from error


@frozen(kw_only=True)
class Preset:
    """Named values for a part (or, in the family of recipes, a whole recipe).

    Attributes:
        name: what it is called.
        part: the part it configures; empty for recipes.
        values: the fields it sets.
        companions: default partners by field name, such as ``{"bridge": "vb64"}``.
        summary, licence, paper: for listings and the plan's notices.
        distribution: who brings it.
    """

    name: str
    part: str = ""
    values: Tree = field(factory=dict)
    companions: dict[str, str] = field(factory=dict)
    summary: str = ""
    licence: str = ""
    paper: str = ""
    distribution: str = "rpiae"


@frozen(kw_only=True)
class Manifest:
    """What a plugin brings; its entry point in group ``rpiae.plugins`` names one. Torch-free.

    Attributes:
        api: the manifest version it was written for.
        entries: parts by family.
        presets: presets by family.
        recipes: recipe presets.
    """

    api: int
    entries: Mapping[str, tuple[Entry, ...]] = field(factory=dict)
    presets: Mapping[str, tuple[Preset, ...]] = field(factory=dict)
    recipes: tuple[Preset, ...] = ()


@frozen(kw_only=True)
class Plugin:
    """An installed plugin: its manifest, or the error that stands in its place."""

    name: str
    distribution: str
    version: str
    manifest: Manifest | None
    error: str = ""


@frozen(kw_only=True)
class Selection:
    """What a name stands for.

    Attributes:
        entry: the part; None for a recipe.
        tree: config fields, with ``name`` and, where one was named, ``preset``.
        preset: the preset's record, where the name was one.
    """

    entry: Entry | None
    tree: Tree
    preset: Preset | None = None


class Registry:
    """Names of one family.

    Args:
        family: plural name, such as ``"encoders"``.
        entries: the built-in parts.
        presets: the built-in presets.
        plugins: gives the installed plugins; called on the first lookup, never at import.
    """

    def __init__(
        self,
        family: str,
        entries: Iterable[Entry] = (),
        presets: Iterable[Preset] = (),
        *,
        plugins: Callable[[], tuple[Plugin, ...]] | None = None,
    ) -> None:
        self.family = family
        self.singular = family[:-2] if family.endswith("sses") else family.removesuffix("s")
        self._entries: dict[str, Entry] = {}
        self._presets: dict[str, Preset] = {}
        self._plugins = plugins
        self._discovered = plugins is None
        self._broken: dict[str, str] = {}
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
            entry = _InProcessEntry(
                name=name, target=f"{cls.__module__}:{cls.__qualname__}", summary=summary,
                distribution="this process", config=cls, **details,
            )  # fmt: skip
            self._add(self._entries, entry)
            return cls

        return add if config is None else add(config)

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
            entry = self.entry(preset.part) if preset.part else None
            tree = {"name": entry.name, "preset": preset.name} if entry else {"name": preset.name}
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

    def config_class(self, name: str) -> type[PartConfig]:
        """The config class of a part.

        Raises:
            UnknownNameError: if there is none of that name.
            MissingExtraError: if its package is not installed.
            PluginError: if its plugin cannot be loaded.
        """
        entry = self.entry(name)
        if entry.requires and importlib.util.find_spec(entry.requires) is None:
            raise MissingExtraError(
                f"{self.singular} {entry.name!r} needs {entry.requires}, which is not installed: "
                f'pip install "{entry.distribution}[{entry.extra}]"'
            )
        return entry.config_class()

    def _parametric(self, wanted: str) -> Selection | None:
        for entry in self._entries.values():
            if not entry.pattern:
                continue
            match = _pattern(entry).fullmatch(wanted)
            if match:
                ((field_name, number),) = match.groupdict().items()
                tree = {"name": entry.name, "preset": wanted, field_name: int(number)}
                return Selection(entry=entry, tree=tree)
        return None

    def _unknown(self, name: str) -> RpiaeError:
        names = self.names()
        # A parametric name is closer to `vb64` than to its pattern.
        close = nearest(normalised(name), [re.sub(r"\{.*\}", "64", n) for n in names])
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        if "/" in name:
            forms = [
                f"{entry.name}:{entry.argument.upper()}"
                for entry in self.entries()
                if entry.argument
            ]
            hint += f" For a path, write {' or '.join(forms)}." if forms else ""
        for plugin, error in self._broken.items():
            if normalised(name).startswith(normalised(plugin).removeprefix("rpiae-")) and not close:
                return PluginError(f"plugin {plugin!r} is installed and broken: {error}")
        return UnknownNameError(
            f"no {self.singular} named {name!r}.{hint} "
            f"{len(names)} are available: rpiae list {self.family}"
        )

    def _add(self, table: dict[str, Any], record: Entry | Preset) -> None:
        names = {record.name, *(_names_of(record) - {normalised(record.name)})}
        for name in sorted(names):
            if not _NAME.fullmatch(name):
                raise RegistrationError(
                    f"{self.singular} name {name!r}: use lower case letters, digits, '-' and '.'"
                )
        clashes = [(taken, _clash(record, taken)) for taken in self._all_records()]
        if any(clash and _same(record, taken) for taken, clash in clashes):
            return
        if isinstance(record, _InProcessEntry):  # a notebook's cell that is run again
            again = table.get(record.name)
            if isinstance(again, _InProcessEntry) and again.target == record.target:
                table[record.name] = record
                return
        for taken, clash in clashes:
            if clash:
                raise RegistrationError(
                    f"{self.singular} {clash!r} of {_origin(record)} is already registered by "
                    f"{_origin(taken)}"
                )
        table[record.name] = record

    def _all_records(self) -> list[Entry | Preset]:
        return [*self._entries.values(), *self._presets.values()]

    def _discover(self) -> None:
        if self._discovered or self._plugins is None:
            return
        self._discovered = True
        for plugin in self._plugins():
            if plugin.manifest is None:
                self._broken[plugin.name] = plugin.error
                continue
            presets = plugin.manifest.presets.get(self.family, ())
            if self.family == "recipes":
                presets = (*presets, *plugin.manifest.recipes)
            before = dict(self._entries), dict(self._presets)
            try:
                for entry in plugin.manifest.entries.get(self.family, ()):
                    self._add(self._entries, evolve(entry, distribution=plugin.distribution))
                for preset in presets:
                    self._add(self._presets, evolve(preset, distribution=plugin.distribution))
            except Exception as error:  # a stranger's manifest may hold anything
                self._entries, self._presets = before
                named = isinstance(error, RegistrationError)
                self._broken[plugin.name] = (
                    str(error) if named else f"{type(error).__name__}: {error}"
                )

    def broken(self) -> dict[str, str]:
        """Plugins whose parts of this family could not be registered, with the reason."""
        self._discover()
        return dict(self._broken)


@frozen(kw_only=True)
class _InProcessEntry(Entry):
    """An entry that holds its class, for notebooks, where no import string would find it."""

    config: type[PartConfig]

    @property
    def importable(self) -> bool:
        return False

    def config_class(self) -> type[PartConfig]:
        return self.config


def registry(family: str) -> Registry:
    """The registry of a family.

    Raises:
        UnknownNameError: if there is no such family.
    """
    if family not in FAMILIES:
        close = nearest(family, FAMILIES, limit=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownNameError(
            f"no family named {family!r}.{hint} Families: {', '.join(sorted(FAMILIES))}"
        )
    return load_object(FAMILIES[family])  # type: ignore[no-any-return]  # an import string


@functools.cache
def installed_plugins() -> tuple[Plugin, ...]:
    """Every plugin on the path, broken ones with their error. The only user of ``entrypoints``."""
    found = []
    for point in _entry_points():
        name = normalised(point.name)
        distribution = normalised(point.distro.name) if point.distro else "an unknown distribution"
        version = point.distro.version if point.distro else ""
        try:
            manifest, error = point.load(), ""
            if not isinstance(manifest, Manifest):
                raise TypeError(f"{point.module_name}:{point.object_name} is not a Manifest")
            if manifest.api != API:
                raise ValueError(
                    f"it was written for plugin API {manifest.api}, this rpiae has {API}"
                )
            strange = sorted({*manifest.entries, *manifest.presets} - set(FAMILIES))
            if strange:
                raise ValueError(
                    f"its manifest names no family {strange[0]!r}."
                    f"{did_you_mean(strange[0], FAMILIES)} Families: {', '.join(sorted(FAMILIES))}"
                )
        except Exception as caught:  # a stranger's module may raise anything
            manifest, error = None, f"{type(caught).__name__}: {caught}"
        found.append(
            Plugin(
                name=name,
                distribution=distribution,
                version=version,
                manifest=manifest,
                error=error,
            )
        )
    return tuple(found)


def _entry_points() -> list[Any]:
    # get_group_all reads every distribution on the path and raises on the first malformed one, so
    # the path is read item by item and a bad item costs only its own plugins.
    import sys

    points: dict[tuple[str, str], Any] = {}
    for item in sys.path:
        try:
            for point in entrypoints.get_group_all(GROUP, path=[item]):
                points.setdefault((point.name, point.module_name), point)
        except Exception:  # entrypoints has no base class for malformed metadata
            continue
    return [points[key] for key in sorted(points)]


def read_presets(package: str, resource: str = "presets.toml") -> list[Preset]:
    """Presets from a TOML file inside a package: one table per preset."""
    text = importlib.resources.files(package).joinpath(resource).read_text(encoding="utf-8")
    return [_preset(name, table) for name, table in tomllib.loads(text).items()]


def _preset(name: str, table: Tree) -> Preset:
    described = {
        k: table.pop(k) for k in ("summary", "licence", "paper", "companions") if k in table
    }
    return Preset(name=name, part=table.pop("part"), values=table, **described)


def _copied(tree: Tree) -> Tree:
    def copy(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: copy(v) for k, v in value.items()}
        return [copy(v) for v in value] if isinstance(value, list) else value

    return copy(tree)  # type: ignore[no-any-return]  # a dict stays a dict


def _names_of(record: Entry | Preset) -> set[str]:
    aliases = record.aliases if isinstance(record, Entry) else ()
    return {normalised(n) for n in (record.name, *aliases)}


def _pattern(entry: Entry) -> re.Pattern[str]:
    """``vb{latent_channels}`` as an expression with one named group."""
    prefix, _, rest = entry.pattern.partition("{")
    field_name, _, suffix = rest.partition("}")
    return re.compile(f"{re.escape(prefix)}(?P<{field_name}>[1-9][0-9]*){re.escape(suffix)}")


def _clash(record: Entry | Preset, taken: Entry | Preset) -> str:
    """The name two records would both answer to, or nothing."""
    shared = sorted(_names_of(record) & _names_of(taken))
    if shared:
        return shared[0]
    for one, other in ((record, taken), (taken, record)):
        if not (isinstance(one, Entry) and one.pattern):
            continue
        if isinstance(other, Entry) and other.pattern and _form(one) == _form(other):
            return one.pattern
        matching = sorted(name for name in _names_of(other) if _pattern(one).fullmatch(name))
        if matching:
            return matching[0]
    return ""


def _form(entry: Entry) -> str:
    return re.sub(r"\{.*\}", "{}", entry.pattern)


def _same(record: Entry | Preset, taken: Entry | Preset) -> bool:
    if isinstance(record, Entry) and isinstance(taken, Entry):
        if isinstance(record, _InProcessEntry) and isinstance(taken, _InProcessEntry):
            return record.config is taken.config and record.name == taken.name
        return record.target == taken.target and record.name == taken.name
    return record == taken


def _origin(record: Entry | Preset) -> str:
    what = record.target if isinstance(record, Entry) else f"preset of {record.part or 'recipe'}"
    return f"{record.distribution} ({what})"
