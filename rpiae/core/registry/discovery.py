"""Installed plugins: found by their entry points, each kept from harming the others."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import entrypoints
from attrs import evolve, frozen

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.config.parts import load_foreign
from rpiae.core.errors import ConfigError, PluginError, did_you_mean
from rpiae.core.registry.entries import FAMILIES, OWN, Entry, Manifest, Preset, normalised
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import printable, shown

R = TypeVar("R", Entry, Preset)

API = 1
GROUP = "rpiae.plugins"


@frozen(kw_only=True)
class Plugin:
    """An installed plugin: its manifest, or the error that stands in its place.

    Attributes:
        name: of its entry point.
        distribution, version: who brings it.
        manifest: None where it is broken as a whole.
        error: why it is.
        notices: what is wrong with it and breaks nothing.
    """

    name: str
    distribution: str
    version: str
    manifest: Manifest | None
    error: str = ""
    notices: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What messages call it; no two installed ones share it."""
        return (
            self.name if self.name == self.distribution else f"{self.name} of {self.distribution}"
        )


@functools.cache
def installed_plugins() -> tuple[Plugin, ...]:
    """Every plugin on the path, by name and distribution; broken ones with their error."""
    found: dict[str, Plugin] = {}
    for plugin, point in sorted(_found(), key=lambda p: (p[0].name, p[0].distribution)):
        first = next((p for p in found.values() if p.name == plugin.name), None)
        if first is not None:
            error = (
                f"its entry point is called {plugin.name!r}, and so is that of "
                f"{first.distribution} {first.version}, which comes first"
            )
            plugin = evolve(plugin, error=plugin.error or error)
        elif point is not None:
            plugin = _loaded(plugin, point)
        found[plugin.label] = plugin
    return tuple(found.values())


def _loaded(plugin: Plugin, point: Any) -> Plugin:
    before = "torch" in sys.modules
    try:
        found = load_foreign(lambda: _manifest_or_reason(point))
    except PluginError as error:
        return evolve(plugin, error=str(error))
    if isinstance(found, str):
        return evolve(plugin, error=found)
    slow = not before and "torch" in sys.modules
    notice = (
        f"{point.module_name} imports torch, so every look-up of a name does: keep the manifest and "
        "the configs free of it"
    )
    return evolve(plugin, manifest=found, notices=(notice,) if slow else ())


def _manifest_or_reason(point: Any) -> Manifest | str:
    """What an entry point names as a manifest of ours, or why it is none; runs the plugin's code."""
    try:
        return _ours(point.load(), f"{point.module_name}:{point.object_name}")
    except _Unfit as unfit:
        return str(unfit)


class _Unfit(ValueError):
    """What keeps a plugin's object from being a manifest of ours."""


def _ours(manifest: Any, target: str) -> Manifest:
    """A plugin's manifest as plain objects of ours; nothing of its own code is left in them.

    Raises:
        _Unfit: if it is no manifest, or does not hold what one holds.
    """
    if not isinstance(manifest, Manifest):
        raise _Unfit(f"{target} is not a Manifest but {type(manifest).__name__}")
    api, recipes = manifest.api, manifest.recipes
    if api != API:
        raise _Unfit(
            f"it was written for plugin API {api}, this rpiae has {API}: install another version "
            "of one of the two"
        )
    return Manifest(
        api=API,
        entries=_by_family(manifest.entries, Entry, "entries"),
        presets=_by_family(manifest.presets, Preset, "presets"),
        recipes=_records(recipes, Preset, "its manifest's recipes"),
    )


def _by_family(table: Any, kind: type[R], what: str) -> dict[str, tuple[R, ...]]:
    if not isinstance(table, Mapping):
        raise _Unfit(f"its manifest's {what} are no dict of families but {type(table).__name__}")
    found = {}
    for family, records in table.items():
        if family not in FAMILIES:
            raise _Unfit(
                f"its manifest names no family {family!r}.{did_you_mean(str(family), FAMILIES)} "
                f"Families: {', '.join(sorted(FAMILIES))}"
            )
        found[str(family)] = _records(records, kind, f"its manifest's {what} of {family}")
    return found


def _records(records: Any, kind: type[R], what: str) -> tuple[R, ...]:
    if not isinstance(records, (tuple, list)):
        raise _Unfit(
            f"{what} are no tuple but {type(records).__name__} (a tuple of one ends with a comma: "
            "(one,))"
        )
    return tuple(_record(record, kind, what) for record in records)


def _record(record: Any, kind: type[R], what: str) -> R:
    if not isinstance(record, kind):
        raise _Unfit(f"{what} hold {type(record).__name__} where {kind.__name__} belongs")
    values = {a.name: _plain(getattr(record, a.name)) for a in attrs.fields(kind)}
    if not isinstance(values["name"], str):
        raise _Unfit(f"{what} hold one that is called {shown(values['name'])}")
    name = f"{what}: {shown(values['name'])}"
    for table in ("values", "companions"):
        if strange := next(_strange(values.get(table, {}), table), ""):
            raise _Unfit(f"{name}: {strange}")
    try:
        return parse(values, kind, source="", converter=_strict())
    except ConfigError as error:
        raise _Unfit(f"{name}: {' · '.join(error.problems)}") from None


@functools.cache
def _strict() -> Any:
    return make_converter()


def _plain(value: Any) -> Any:
    """A value without a class of its own: what a subclass of str or dict does stays behind."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, float) else value


def _strange(value: Any, path: str) -> Iterator[str]:
    """What no config file could hold, with where it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _strange(inner, f"{path}.{key}")
            else:
                yield f"{path} has the key {shown(key)}, which is no string"
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strange(inner, f"{path}[{index}]")
    elif not isinstance(value, (str, bool, int, float)):
        yield f"{path} is {shown(value)}, which no config file can hold"


def _found() -> Iterator[tuple[Plugin, Any]]:
    """Plugins that are not loaded yet, with the entry point, or with an error and None."""
    seen: set[str] = set()
    for item in sys.path:
        for distro, config, damage in _distributions(item):
            distribution = re.sub(r"[-_.]+", "-", str(distro.name)).lower()
            if distribution in seen:  # shadowed by what lies further ahead on the path
                continue
            seen.add(distribution)
            unread = Plugin(
                name=distribution, distribution=distribution, version=distro.version or "",
                manifest=None, error=damage,
            )  # fmt: skip
            if damage:
                yield unread, None
                continue
            for name, text in config.items(GROUP, raw=True) if config.has_section(GROUP) else ():
                plugin = evolve(unread, name=normalised(name))
                if distribution == OWN:
                    error = f"its distribution is called {OWN}, as the toolkit itself: rename it"
                    yield evolve(plugin, error=error), None
                    continue
                try:
                    yield plugin, entrypoints.EntryPoint.from_string(text, name, distro)
                except entrypoints.BadEntryPoint:
                    error = f"its entry point {name} = {text} is not of the form package:MANIFEST"
                    yield evolve(plugin, error=error), None


def endless_entry_points() -> Path | None:
    """An ``entry_points.txt`` on the path that is a FIFO or a device, if there is one.

    torch reads all of them as it is imported, and would wait for ever.
    """
    for item in sys.path:
        for file in _entry_points(item):
            if file.exists() and not (file.is_file() or file.is_dir()):
                return file
    return None


def _entry_points(item: str) -> list[Path]:
    """The files of entry points below one item of the path."""
    try:
        return sorted(Path(item).glob("*.*-info/entry_points.txt"))
    except (OSError, ValueError):  # no place that anything could be in
        return []


def _distributions(item: str) -> Iterator[tuple[Any, Any, str]]:
    """Distributions below one item of the path: (name and version, entry points, damage).

    ``entrypoints`` stops at the first malformed one, and waits for a FIFO's writer. So where there
    is either, they are read one by one; one that cannot be read is passed over unless it is a
    plugin of ours.
    """
    files = _entry_points(item)
    try:
        for file in files:
            open_regular(file).close()
        for config, distro in list(entrypoints.iter_files_distros(path=[item])):
            yield distro, config, ""
        return
    except Exception:  # entrypoints has no base class for what malformed metadata raises
        pass
    for file in files:
        distro = entrypoints.Distribution.from_name_version(file.parent.stem)
        config = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
        try:
            with open_regular(file) as opened:
                config.read_string(opened.read().decode("utf-8"))
        except Exception as error:  # the same
            if _mentions_us(file):
                yield distro, None, f"{printable(str(file))} cannot be read: {_line(error)}"
            continue
        yield distro, config, ""


def _mentions_us(file: Path) -> bool:
    try:
        with open_regular(file) as opened:
            return f"[{GROUP}]".encode() in opened.read()
    except OSError:
        return False


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
