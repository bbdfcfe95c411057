"""``rpiae list``, which loads no torch."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.table import Table

from rpiae.cli.screen import stderr, stdout
from rpiae.core.errors import UnknownNameError, UsageError, did_you_mean
from rpiae.core.model.shipped import shipped_models
from rpiae.core.registry.registry import (
    FAMILIES,
    OWN,
    Entry,
    Manifest,
    Plugin,
    Preset,
    installed_plugins,
    registry,
)
from rpiae.core.runtime.names import shown

#: What is listed besides families of parts.
MODELS, PLUGINS = "models", "plugins"


def options(parser: argparse.ArgumentParser) -> None:
    """Which families."""
    parser.add_argument("family", nargs="?", help="encoders, bridges, …, models, or plugins")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--check", action="store_true", help="with plugins: also load what each of them names"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print parts and presets, the models that ship with rpiae, or the installed plugins."""
    if arguments.family == PLUGINS:
        return _plugins(as_json=arguments.json, check=arguments.check)
    if arguments.check:
        raise UsageError("--check goes with plugins: rpiae list plugins --check")
    named = [*FAMILIES, MODELS, PLUGINS]
    if arguments.family and arguments.family not in named:
        raise UnknownNameError(
            f"nothing is listed as {shown(arguments.family)}.{did_you_mean(arguments.family, named)} "
            f"There are {', '.join(sorted(named))}"
        )
    families = [arguments.family] if arguments.family else [*FAMILIES, MODELS]
    listing = {family: _models() if family == MODELS else _rows(family) for family in families}
    _warn_of_broken()
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
            table.add_row(*(row[k] for k in ("name", "kind", "summary", "distribution")))
        stdout.print(table)
        stdout.print()
    return 0


def _models() -> list[dict[str, Any]]:
    """What ships with weights."""
    return [
        {
            "name": model.name,
            "kind": model.kind,
            "summary": f"{model.summary}, of {model.tokenizer}"
            if model.tokenizer
            else model.summary,
            "distribution": OWN,
            "tokenizer": model.tokenizer,
        }
        for model in shipped_models()
    ]


def _rows(family: str) -> list[dict[str, Any]]:
    known = registry(family)
    rows = [entry_row(entry) for entry in known.entries()]
    rows += [preset_row(preset) for preset in known.presets()]
    return sorted(rows, key=lambda row: str(row["name"]))


def entry_row(entry: Entry) -> dict[str, Any]:
    """What a listing says of a part."""
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


def preset_row(preset: Preset) -> dict[str, Any]:
    """What a listing says of a preset or recipe."""
    return {
        "name": preset.name,
        "kind": f"preset of {preset.part}",
        "summary": preset.summary,
        "distribution": preset.distribution,
        "source": preset.paper,
        "licence": preset.licence,
        "companions": dict(preset.companions),
    }


def _plugins(*, as_json: bool, check: bool) -> int:
    rows = [_plugin_row(plugin, check=check) for plugin in installed_plugins()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        stdout.print("no plugins are installed; start one with: rpiae plugins new NAME")
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("plugin", "version", "brings", "state"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        brings = [
            f"{family}: {', '.join((*row['parts'].get(family, ()), *row['presets'].get(family, ())))}"
            for family in FAMILIES
            if family in row["parts"] or family in row["presets"]
        ]
        state = [f"BROKEN: {row['error']}"] if row["error"] else []
        state += [f"note: {notice}" for notice in row["notices"]]
        state += row.get("problems", [])
        columns = (row["label"], row["version"], "\n".join(brings), "\n".join(state or ["ok"]))
        table.add_row(*columns)
    stdout.print(table)
    return 0


def _plugin_row(plugin: Plugin, *, check: bool) -> dict[str, Any]:
    manifest = plugin.manifest
    row: dict[str, Any] = {
        "name": plugin.name,
        "label": plugin.label,
        "distribution": plugin.distribution,
        "version": plugin.version,
        "parts": _names(manifest, Entry),
        "presets": _names(manifest, Preset),
        "error": " · ".join(_errors().get(plugin.label, ())),
        "notices": list(plugin.notices),
    }
    if check:
        from rpiae.core.model.inspection import manifest_problems

        found = manifest_problems(manifest, distribution=plugin.distribution) if manifest else []
        row["problems"] = found
    return row


def _names(manifest: Manifest | None, kind: type) -> dict[str, list[str]]:
    """What a manifest has of one kind, by family."""
    if manifest is None:
        return {}
    found = {f: [r.name for r in manifest.records(f) if isinstance(r, kind)] for f in FAMILIES}
    return {family: names for family, names in found.items() if names}


def _errors() -> dict[str, list[str]]:
    """What is wrong with broken plugins, by label."""
    errors: dict[str, list[str]] = {}
    for family in FAMILIES:
        for label, error in registry(family).broken().items():
            known = errors.setdefault(label, [])
            known += [error] if error not in known else []
    return errors


def _warn_of_broken() -> None:
    """One line on stderr per plugin whose parts are missing from the listing."""
    for label, errors in _errors().items():
        text = f"plugin {label} is broken: {' · '.join(errors)} (rpiae list plugins)"
        stderr.print(text, soft_wrap=True)
