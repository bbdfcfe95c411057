"""``rpiae show``, which loads no torch."""

from __future__ import annotations

import argparse
import json
from typing import Any

import attrs

from rpiae.cli.listing import entry_row, preset_row
from rpiae.cli.screen import stdout
from rpiae.core.config.parts import PartConfig
from rpiae.core.errors import UnknownNameError, nearest
from rpiae.core.registry.registry import FAMILIES, Preset, registry
from rpiae.core.runtime.names import shown


def options(parser: argparse.ArgumentParser) -> None:
    """Which one."""
    parser.add_argument("name")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Print all that is known about one name, in each family that has it."""
    name = arguments.name
    rows: dict[str, dict[str, Any]] = {}
    names: list[str] = []
    for family in FAMILIES:
        known = registry(family)
        names += known.names()
        try:
            selection = known.select(name)
        except UnknownNameError:
            continue
        record = selection.preset or selection.entry
        row = preset_row(record) if isinstance(record, Preset) else entry_row(record)
        row["fields"] = _fields(known.load(selection.entry)) | selection.tree
        rows[known.singular] = row
    if not rows:
        close = nearest(name, names)
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        raise UnknownNameError(f"nothing is named {shown(name)}.{hint} See: rpiae list")
    if arguments.json:
        print(json.dumps(rows, indent=2, default=shown))
        return 0
    for family, row in rows.items():
        stdout.print(f"{family} {name}: {row['summary']}")
        for key in ("kind", "distribution", "source", "licence", "companions"):
            if row.get(key):
                stdout.print(f"  {key}: {row[key]}")
        for key, value in row["fields"].items():
            stdout.print(f"  {key} = {json.dumps(value, default=shown)}", soft_wrap=True)
    return 0


def _fields(config: type[PartConfig]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for a in attrs.fields(config):
        if isinstance(a.default, attrs.Factory):  # type: ignore[arg-type]  # typed as a function
            fields[a.name] = a.default.factory()
        elif a.name not in ("name", "preset"):
            wired = a.metadata.get("wired")
            required = "must be given" if a.default is attrs.NOTHING else a.default
            fields[a.name] = f"filled in from {wired}" if wired else required
    return fields
