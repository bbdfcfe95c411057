"""What is wrong with a manifest that shows only when what it names is loaded. No torch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator

import attrs
from attrs import evolve, frozen

from rpiae.core.config.convert import parse
from rpiae.core.config.parts import PartConfig, load_foreign
from rpiae.core.config.tree import Tree
from rpiae.core.errors import ConfigError, PluginError, RpiaeError, did_you_mean
from rpiae.core.model.naming import FIELDS, converter
from rpiae.core.registry.entries import FAMILIES, Entry, Manifest, Preset
from rpiae.core.registry.registry import Registry, registry


def manifest_problems(manifest: Manifest, *, distribution: str) -> list[str]:
    """Everything that would fail when one of the manifest's names is used, one line each.

    Config classes are imported, the modules of the parts are only looked for.

    Args:
        manifest: of a plugin, whether or not it is installed.
        distribution: who brings it, for messages.
    """
    return list(_Inspection(manifest=manifest, distribution=distribution).problems())


@frozen(kw_only=True)
class _Inspection:
    manifest: Manifest
    distribution: str

    def problems(self) -> Iterator[str]:
        for family in FAMILIES:
            known = registry(family)
            own: dict[str, type[PartConfig]] = {}
            for record in self.manifest.records(family):
                record = evolve(record, distribution=self.distribution)
                if isinstance(record, Preset):
                    problems = [*self._preset_problems(record, known, own)]
                    what = f"preset {record.name!r} of the {family}"
                    problems += self._companions(record)
                else:
                    try:
                        own[record.name] = known.load(record)
                    except PluginError as error:
                        yield str(error)
                        continue
                    what = f"{known.singular} {record.name!r}"
                    problems = [*_entry_problems(record, own[record.name])]
                yield from (f"{what}: {problem}" for problem in problems)

    def _preset_problems(
        self, preset: Preset, known: Registry, own: dict[str, type[PartConfig]]
    ) -> list[str]:
        part = preset.part or known.part
        cls = own.get(part)
        if cls is None:
            try:
                cls = known.load(known.entry(part))
            except RpiaeError as error:
                return [str(error)]
        return _strictly({"name": part, **preset.values}, cls)

    def _companions(self, preset: Preset) -> Iterator[str]:
        for field, name in preset.companions.items():
            if field not in FIELDS:
                yield f"companion for {field!r}, which is none of {', '.join(FIELDS)}"
                continue
            if name in {record.name for record in self.manifest.records(FIELDS[field])}:
                continue
            try:
                registry(FIELDS[field]).select(name)
            except RpiaeError as error:
                yield f"companion: {error}"


def _entry_problems(entry: Entry, cls: type[PartConfig]) -> Iterator[str]:
    fields = [a.name for a in attrs.fields(cls)]
    named = [entry.argument] if entry.argument else []
    named += re.findall(r"\{(\w+)\}", entry.pattern)
    for field in named:
        if field not in fields:
            yield f"names the field {field!r}, which {cls.__name__} lacks.{did_you_mean(field, fields)}"
    module, _, name = cls.module.partition(":")
    if not module or not name:
        if cls.build is PartConfig.build:
            yield f"{cls.__name__}.module is {cls.module!r}, not of the form package.module:Class"
        return
    try:
        found = load_foreign(lambda: importlib.util.find_spec(module))
    except PluginError as error:
        yield f"its module {module} cannot be looked for: {error}"
        return
    if found is None:
        yield f"its module {module} is not there"


def _strictly(tree: Tree, cls: type) -> list[str]:
    """What the strict parser says; a preset may leave fields to be given."""
    try:
        parse(tree, cls, source="", converter=converter())
    except ConfigError as error:
        return [problem for problem in error.problems if not problem.endswith(": missing")]
    return []
