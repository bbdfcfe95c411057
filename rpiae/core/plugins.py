"""Installed plugins: found by their entry points, each kept from harming the others."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import entrypoints
from attrs import evolve, frozen

from rpiae.core.entries import FAMILIES, Entry, Manifest, Preset, load_foreign, normalised
from rpiae.core.errors import PluginError, did_you_mean

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
        manifest = load_foreign(point.load)
    except PluginError as error:
        return evolve(plugin, error=str(error))
    unfit = _unfit(manifest, f"{point.module_name}:{point.object_name}")
    if unfit:
        return evolve(plugin, error=unfit)
    slow = not before and "torch" in sys.modules
    notice = (
        f"{point.module_name} imports torch, so every look-up of a name does: keep the manifest and "
        "the configs free of it"
    )
    return evolve(plugin, manifest=manifest, notices=(notice,) if slow else ())


def _unfit(manifest: Any, target: str) -> str:
    """What keeps a plugin's object from being a manifest of ours, or nothing."""
    if not isinstance(manifest, Manifest):
        return f"{target} is not a Manifest but {type(manifest).__name__}"
    if manifest.api != API:
        return (
            f"it was written for plugin API {manifest.api}, this rpiae has {API}: install another "
            "version of one of the two"
        )
    listed = [(manifest.entries, Entry, "entries"), (manifest.presets, Preset, "presets")]
    for table, kind, what in listed:
        if not isinstance(table, Mapping):
            return f"its manifest's {what} are no dict of families but {type(table).__name__}"
        for family, records in table.items():
            if family not in FAMILIES:
                return (
                    f"its manifest names no family {family!r}.{did_you_mean(str(family), FAMILIES)} "
                    f"Families: {', '.join(sorted(FAMILIES))}"
                )
            if wrong := _not_all(records, kind):
                return f"its manifest's {what} of {family} {wrong}"
    wrong = _not_all(manifest.recipes, Preset)
    return f"its manifest's recipes {wrong}" if wrong else ""


def _not_all(records: Any, kind: type) -> str:
    if not isinstance(records, (tuple, list)):
        return (
            f"are no tuple but {type(records).__name__} (a tuple of one ends with a comma: (one,))"
        )
    strange = [type(record).__name__ for record in records if not isinstance(record, kind)]
    if strange:
        return f"hold {strange[0]} where {kind.__name__} belongs"
    nameless = [record.name for record in records if not isinstance(record.name, str)]
    return f"hold one that is called {nameless[0]!r}" if nameless else ""


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
                try:
                    yield plugin, entrypoints.EntryPoint.from_string(text, name, distro)
                except entrypoints.BadEntryPoint:
                    error = f"its entry point {name} = {text} is not of the form package:MANIFEST"
                    yield evolve(plugin, error=error), None


def _distributions(item: str) -> Iterator[tuple[Any, Any, str]]:
    """Distributions below one item of the path: (name and version, entry points, damage).

    ``entrypoints`` stops at the first malformed one. So where it does, they are read one by one; a
    malformed one is passed over unless it is a plugin of ours.
    """
    try:
        for config, distro in list(entrypoints.iter_files_distros(path=[item])):
            yield distro, config, ""
        return
    except Exception:  # entrypoints has no base class for what malformed metadata raises
        files = sorted(Path(item).glob("*.*-info/entry_points.txt"))
    for file in files:
        distro = entrypoints.Distribution.from_name_version(file.parent.stem)
        config = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
        try:
            config.read_string(file.read_text(encoding="utf-8"))
        except Exception as error:  # the same
            if _mentions_us(file):
                yield distro, None, f"{file} cannot be read: {' '.join(str(error).split())}"
            continue
        yield distro, config, ""


def _mentions_us(file: Path) -> bool:
    try:
        return f"[{GROUP}]".encode() in file.read_bytes()
    except OSError:
        return False
