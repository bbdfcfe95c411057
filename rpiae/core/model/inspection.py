"""What is wrong with a manifest that shows only when what it names is loaded. No torch."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Iterator

import attrs
from attrs import evolve, frozen

from rpiae.core.config.convert import parse
from rpiae.core.config.parts import PartConfig, load_foreign
from rpiae.core.config.recipe import RecipeConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import ConfigError, PluginError, RpiaeError, UnknownNameError, did_you_mean
from rpiae.core.model.resolve import FIELDS, converter
from rpiae.core.registry.entries import Entry, Manifest, Preset
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
        for family in sorted({*self.manifest.entries, *self.manifest.presets}):
            known = registry(family)
            own = {}
            for entry in self.manifest.entries.get(family, ()):
                entry = evolve(entry, distribution=self.distribution)
                try:
                    own[entry.name] = known.load(entry)
                except PluginError as error:
                    yield str(error)
                    continue
                what = f"{known.singular} {entry.name!r}"
                yield from (f"{what}: {p}" for p in _entry_problems(entry, own[entry.name]))
            for preset in self.manifest.presets.get(family, ()):
                what = f"preset {preset.name!r} of the {family}"
                problems = (
                    _recipe_problems(preset)
                    if family == "recipes"
                    else self._preset_problems(preset, known, own)
                )
                yield from (f"{what}: {p}" for p in (*problems, *self._companions(preset)))
        for recipe in self.manifest.recipes:
            yield from (f"recipe {recipe.name!r}: {p}" for p in _recipe_problems(recipe))

    def _preset_problems(
        self, preset: Preset, known: Registry, own: dict[str, type[PartConfig]]
    ) -> list[str]:
        cls = own.get(preset.part)
        if cls is None:
            try:
                cls = known.load(known.entry(preset.part))
            except RpiaeError as error:
                return [str(error)]
        return _strictly({"name": preset.part, **preset.values}, cls)

    def _companions(self, preset: Preset) -> Iterator[str]:
        for field, name in preset.companions.items():
            if field not in FIELDS:
                yield f"companion for {field!r}, which is none of {', '.join(FIELDS)}"
                continue
            brought: tuple[Entry | Preset, ...] = (
                *self.manifest.entries.get(FIELDS[field], ()),
                *self.manifest.presets.get(FIELDS[field], ()),
                *(self.manifest.recipes if FIELDS[field] == "recipes" else ()),
            )
            if name in {record.name for record in brought}:
                continue
            try:
                registry(FIELDS[field]).select(name)
            except RpiaeError as error:
                yield f"companion: {error}"


def _entry_problems(entry: Entry, cls: type[PartConfig]) -> Iterator[str]:
    fields = [a.name for a in attrs.fields(cls)]
    named = [entry.argument] if entry.argument else []
    named += re.findall(r"\{(.*)\}", entry.pattern)
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


def _recipe_problems(recipe: Preset) -> list[str]:
    tree = copy.deepcopy({"name": recipe.name, **recipe.values})
    problems = []
    losses = registry("losses")
    stages = tree["stages"] if isinstance(tree.get("stages"), list) else []
    for index, stage in enumerate(stages):
        terms = stage.get("terms") if isinstance(stage, dict) else None
        kept = []
        for position, term in enumerate(terms if isinstance(terms, list) else []):
            loss = term.get("loss") if isinstance(term, dict) else None
            if not isinstance(loss, str):
                kept.append(term)
                continue
            try:
                kept.append(term | {"loss": losses.select(loss).tree})
            except UnknownNameError as error:
                problems.append(f"stages[{index}].terms[{position}]: {error}")
        if isinstance(terms, list):
            stage["terms"] = kept
    return [*problems, *_strictly(tree, RecipeConfig)]
