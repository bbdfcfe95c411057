"""``rpiae list`` and ``rpiae show``; neither loads torch."""

from __future__ import annotations

import argparse
import json
from typing import Any

import attrs
from rich.markup import escape
from rich.table import Table

from rpiae.cli.screen import stdout
from rpiae.core.errors import UnknownNameError, nearest
from rpiae.core.registry import FAMILIES, Entry, Preset, installed_plugins, registry


def execute(arguments: argparse.Namespace) -> int:
    """Print a listing or one record."""
    if arguments.verb == "show":
        return _show(arguments.name, as_json=arguments.json)
    if arguments.family == "plugins":
        return _plugins(as_json=arguments.json)
    families = [arguments.family] if arguments.family else list(FAMILIES)
    listing = {family: _rows(family) for family in families}
    if arguments.json:
        print(json.dumps(listing, indent=2))
        return 0
    for family, rows in listing.items():
        if not rows and not arguments.family:
            continue
        table = Table(title=family, title_justify="left", box=None, pad_edge=False)
        for heading in ("name", "kind", "summary", "from"):
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(escape(row[k]) for k in ("name", "kind", "summary", "distribution")))
        stdout.print(table)
        stdout.print()
    return 0


def _rows(family: str) -> list[dict[str, Any]]:
    known = registry(family)
    rows = [_entry_row(entry) for entry in known.entries()]
    rows += [_preset_row(preset) for preset in known.presets()]
    return sorted(rows, key=lambda row: str(row["name"]))


def _entry_row(entry: Entry) -> dict[str, Any]:
    form = entry.pattern or (f"{entry.name}:<{entry.argument}>" if entry.argument else "")
    return {
        "name": entry.name,
        "kind": f"part, also {form}" if form else "part",
        "summary": entry.summary,
        "distribution": entry.distribution,
        "source": entry.source,
        "licence": entry.licence,
        "aliases": list(entry.aliases),
    }


def _preset_row(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "kind": f"preset of {preset.part}" if preset.part else "recipe",
        "summary": preset.summary,
        "distribution": preset.distribution,
        "source": preset.paper,
        "licence": preset.licence,
        "companions": dict(preset.companions),
    }


def _show(name: str, *, as_json: bool) -> int:
    found: dict[str, dict[str, Any]] = {}
    names: list[str] = []
    for family in FAMILIES:
        known = registry(family)
        names += known.names()
        try:
            selection = known.select(name)
        except UnknownNameError:
            continue
        record = selection.preset or selection.entry
        assert record is not None
        row = _preset_row(record) if isinstance(record, Preset) else _entry_row(record)
        if selection.entry is not None:
            row["fields"] = _fields(selection.entry) | selection.tree
        else:
            row["fields"] = dict(selection.tree)
        found[known.singular] = row
    if not found:
        close = nearest(name, names)
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        raise UnknownNameError(f"nothing is named {name!r}.{hint} See: rpiae list")
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    for family, row in found.items():
        stdout.print(escape(f"{family} {name}: {row['summary']}"))
        for key in ("kind", "distribution", "source", "licence", "companions"):
            if row.get(key):
                stdout.print(escape(f"  {key}: {row[key]}"))
        for key, value in row["fields"].items():
            stdout.print(escape(f"  {key} = {json.dumps(value)}"), soft_wrap=True)
    return 0


def _fields(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for a in attrs.fields(entry.config_class()):
        if isinstance(a.default, attrs.Factory):  # type: ignore[arg-type]  # typed as a function
            found[a.name] = a.default.factory()
        elif a.name not in ("name", "preset"):
            wired = a.metadata.get("wired")
            required = "must be given" if a.default is attrs.NOTHING else a.default
            found[a.name] = f"filled in from {wired}" if wired else required
    return found


def _plugins(*, as_json: bool) -> int:
    rows = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "brings": _brought(plugin.manifest) if plugin.manifest else [],
            "error": plugin.error or _registration_error(plugin.name),
        }
        for plugin in installed_plugins()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        stdout.print("no plugins are installed")
    for row in rows:
        state = f"BROKEN: {row['error']}" if row["error"] else ", ".join(row["brings"])
        stdout.print(escape(f"{row['name']} ({row['distribution']} {row['version']}): {state}"))
    return 0


def _brought(manifest: Any) -> list[str]:
    found = []
    for table in (manifest.entries, manifest.presets):
        found += [f"{family} {r.name}" for family, records in table.items() for r in records]
    return found + [f"recipes {preset.name}" for preset in manifest.recipes]


def _registration_error(name: str) -> str:
    errors = (registry(family).broken().get(name, "") for family in FAMILIES)
    return next((error for error in errors if error), "")
