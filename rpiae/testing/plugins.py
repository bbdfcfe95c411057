"""Checks of a plugin's manifest, and of the plugin as it is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from attrs import fields_dict

from rpiae.core.errors import RpiaeError
from rpiae.core.model.inspection import manifest_problems
from rpiae.core.registry.discovery import GROUP, Plugin, installed_plugins
from rpiae.core.registry.entries import FAMILIES, Entry, Manifest, Preset
from rpiae.core.registry.registry import registry

#: Characters of a summary that listings have room for.
LONGEST_SUMMARY = 120

_PROBE = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    if "torch" in sys.modules:
        sys.exit(f"importing {module} imports torch")
"""


def check_manifest(manifest: Manifest, *, distribution: str = "this plugin") -> None:
    """A manifest's names, summaries, config classes, presets and recipes, all without torch.

    Args:
        manifest: what the plugin's entry point names.
        distribution: who brings it, for messages.

    Raises:
        AssertionError: with every problem.
    """
    problems = [
        f"{family} {record.name!r}: {problem}"
        for family, record in _records(manifest)
        for problem in _described(record)
    ]
    problems += manifest_problems(manifest, distribution=distribution)
    problems += _registered(manifest, distribution)
    problems += _licences(manifest)
    targets = [entry.target for entries in manifest.entries.values() for entry in entries]
    problems += _imports_torch(sorted({target.partition(":")[0] for target in targets}))
    assert not problems, "\n".join(dict.fromkeys(problems))


def check_plugin(distribution: str) -> None:
    """An installed plugin: it is found, its manifest is in order, and its names mean its parts.

    Args:
        distribution: its name, such as ``"rpiae-foo"``.

    Raises:
        AssertionError: with every problem.
    """
    wanted = re.sub(r"[-_.]+", "-", distribution).lower()
    found = [plugin for plugin in installed_plugins() if plugin.distribution == wanted]
    assert found, (
        f"{distribution} brings no plugin, or is not installed: run pip install -e . in its folder "
        f'and give its pyproject.toml a table [project.entry-points."{GROUP}"]. Installed plugins: '
        f"{', '.join(plugin.distribution for plugin in installed_plugins()) or 'none'}"
    )
    for plugin in found:
        assert plugin.manifest is not None, f"plugin {plugin.label!r} is broken: {plugin.error}"
        assert not plugin.notices, "\n".join(plugin.notices)
        broken = {
            error for family in FAMILIES if (error := registry(family).broken().get(plugin.label))
        }
        assert not broken, "\n".join(sorted(broken))
        check_manifest(plugin.manifest, distribution=wanted)
        _check_names(plugin, plugin.manifest)


def _records(manifest: Manifest) -> list[tuple[str, Entry | Preset]]:
    return [(family, record) for family in FAMILIES for record in manifest.records(family)]


def _described(record: Entry | Preset) -> list[str]:
    problems = []
    if not record.summary.strip():
        problems.append("it has no summary, which listings show")
    elif len(record.summary) > LONGEST_SUMMARY or "\n" in record.summary:
        problems.append(f"its summary is not one line of at most {LONGEST_SUMMARY} characters")
    where = record.source if isinstance(record, Entry) else record.paper
    for what, text in (("source or paper", where), ("licence", record.licence)):
        if text != text.strip() or "\n" in text:
            problems.append(f"its {what} is not one line: {text!r}")
    return problems


def _registered(manifest: Manifest, distribution: str) -> list[str]:
    """What a registry with nothing else in it says of the names: malformed ones, clashes."""
    plugin = Plugin(name=distribution, distribution=distribution, version="", manifest=manifest)
    alone = (registry(family).alone(lambda: (plugin,)) for family in FAMILIES)
    return [error for known in alone for error in known.broken().values()]


def _licences(manifest: Manifest) -> list[str]:
    """Presets that load weights say under which licence these are."""
    problems = []
    entries = {entry.name: entry for entry in manifest.entries.get("encoders", ())}
    for preset in manifest.presets.get("encoders", ()):
        try:
            entry = entries.get(preset.part) or registry("encoders").entry(preset.part)
            fields = fields_dict(entry.config_class())
        except (RpiaeError, TypeError):  # manifest_problems has said so
            continue
        loads = preset.values.get(
            "pretrained", "pretrained" in fields and fields["pretrained"].default
        )
        if loads and not (preset.licence or entry.licence):
            problems.append(
                f"encoders {preset.name!r}: it loads weights and names no licence of theirs"
            )
    return problems


def _imports_torch(modules: list[str]) -> list[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *modules],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    return [done.stderr.strip().splitlines()[-1]] if done.returncode else []


def _check_names(plugin: Plugin, manifest: Manifest) -> None:
    for family, record in _records(manifest):
        selection = registry(family).select(record.name)
        meant = selection.preset or selection.entry
        assert meant.distribution == plugin.distribution, (
            f"{family} {record.name!r} means that of {meant.distribution}"
        )
