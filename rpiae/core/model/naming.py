"""From names to the fields of parts: what a file or the command line gave, as a tree without names."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import cattrs
from attrs import frozen

from rpiae.core.config.convert import make_converter
from rpiae.core.config.generation import GeneratorConfig
from rpiae.core.config.parts import (
    BridgeConfig,
    CriticConfig,
    DatasetConfig,
    DecoderConfig,
    EncoderConfig,
    LossConfig,
    MetricConfig,
    PartConfig,
)
from rpiae.core.config.recipe import RecipeConfig
from rpiae.core.config.tree import Tree, apply_override, parse_override
from rpiae.core.errors import UsageError, did_you_mean
from rpiae.core.registry.registry import Preset, registry
from rpiae.core.runtime.names import shown

#: Fields of a tokenizer's run that are parts, with their family; companions come from the first.
FIELDS: Mapping[str, str] = {
    "encoder": "encoders",
    "bridge": "bridges",
    "decoder": "decoders",
    "recipe": "recipes",
    "data": "datasets",
}

#: The same of a generator's run.
GENERATOR_FIELDS: Mapping[str, str] = {
    "generator": "generators",
    "recipe": "recipes",
    "data": "datasets",
}

#: Families that the parts of a model are of.
_OF_MODELS = ("encoders", "bridges", "decoders", "generators")


@frozen(kw_only=True)
class NamedRun:
    """A run's tree in which every part is a table of its fields.

    Attributes:
        tree: the run.
        origins: where each of its parts came from, in words.
        presets: the presets that were named.
        missing_losses: losses that the recipe names and nobody registered.
        notices: things worth saying.
    """

    tree: Tree
    origins: Mapping[str, str]
    presets: tuple[Preset, ...]
    missing_losses: tuple[str, ...]
    notices: tuple[str, ...]


@functools.cache
def converter() -> cattrs.Converter:
    """The strict converter that also reads parts: names, and tables whose ``name`` decides the class."""
    made = make_converter()
    bases = (
        EncoderConfig, BridgeConfig, DecoderConfig, LossConfig, CriticConfig, DatasetConfig,
        MetricConfig, RecipeConfig, GeneratorConfig,
    )  # fmt: skip

    def structure(value: Any, base: type[PartConfig]) -> PartConfig:
        if isinstance(value, base):
            return value
        named = value.get("name") if isinstance(value, dict) else value
        if not isinstance(named, str):
            raise ValueError(f"expected one of the {base.family}: a name, or a table with a name")
        # A part inside a part, such as a critic's backbone, is named like any other.
        tree, _ = expand(base.family, value)
        return made.structure(
            tree,
            registry(base.family).config_class(tree["name"], called=str(tree.get("preset") or "")),
        )

    made.register_structure_hook_func(lambda t: t in bases, structure)
    return made


def name_parts(
    tree: Tree,
    *,
    defaults: Mapping[str, str],
    initial: Mapping[str, tuple[Tree, str]],
    overrides: Sequence[str],
    without: Sequence[str],
    fields: Mapping[str, str] = FIELDS,
) -> NamedRun:
    """Replace every name in a run's tree by the fields that it stands for; see ``resolve_run``.

    Args:
        tree, defaults, initial, overrides, without: see ``resolve_run``.
        fields: which of its fields are parts, with their family.

    Raises:
        UnknownNameError: for a part nobody registered.
        UsageError: if a part is no name and no table, or an override or a loss does not fit.
    """
    tree = copy.deepcopy(tree)
    late = []
    for text in overrides:
        steps, value = parse_override(text)
        if len(steps) == 1:
            apply_override(tree, text)
        elif len(steps) == 2 and steps[0] in fields and steps[1] == "name":
            tree[str(steps[0])] = value
        else:
            late.append(text)
    expanded, origins, presets = _expanded(tree, fields, defaults, initial)
    for text in late:
        _override(expanded, text, fields)
    missing, notices = _prepare_terms(expanded, without)
    return NamedRun(
        tree=expanded, origins=origins, presets=presets, missing_losses=missing,
        notices=tuple(notices),
    )  # fmt: skip


def _expanded(
    tree: Tree,
    fields: Mapping[str, str],
    defaults: Mapping[str, str],
    initial: Mapping[str, tuple[Tree, str]],
) -> tuple[Tree, dict[str, str], tuple[Preset, ...]]:
    expanded = dict(tree)
    origins: dict[str, str] = {}
    presets: list[Preset] = []
    companions: dict[str, tuple[str, str]] = {}
    for name, family in fields.items():
        if name in tree:
            given, origins[name] = tree[name], "given"
        elif name in initial:
            given, origins[name] = initial[name]
        elif name in companions:
            given, origins[name] = companions[name]
        elif name in defaults:
            given, origins[name] = defaults[name], "the default"
        elif name == "data" and isinstance(recipe := expanded.get("recipe"), dict):
            given = recipe.get("default_data", "")
            if not given:
                continue
            label = recipe.get("preset") or recipe.get("name")
            origins[name] = f"the default of recipe {label!r}"
        else:
            continue
        expanded[name], preset = expand(family, given)
        if preset is not None:
            presets.append(preset)
            for partner, choice in preset.companions.items():
                companions.setdefault(partner, (choice, f"companion of {name} {preset.name!r}"))
    return expanded, origins, tuple(presets)


def expand(family: str, given: Any) -> tuple[Tree, Preset | None]:
    """A name, or a table with a name, as a table of the part's fields; the preset that was named.

    Raises:
        UnknownNameError: if nobody registered the name.
        UsageError: if it is neither.
    """
    known = registry(family)
    if isinstance(given, str):
        selection = known.select(given)
        return selection.tree, selection.preset
    if not isinstance(given, dict):
        raise UsageError(f"{family}: expected a name or a table, got {shown(given)}")
    name = given.get("name")
    if not isinstance(name, str):
        raise UsageError(
            f'{family}: a table needs a name, such as name = "…" (rpiae list {family}), got {shown(given)}'
        )
    rest = {k: v for k, v in given.items() if k != "name"}
    if "stages" in given and known.part and name not in [entry.name for entry in known.entries()]:
        return {"name": known.part, "preset": name} | rest, None  # a recipe of the user's own
    selection = known.select(name)
    preset = selection.preset
    if preset is None and "preset" in given:
        preset = next((p for p in known.presets() if p.name == given["preset"]), None)
    return selection.tree | rest, preset


def _prepare_terms(tree: Tree, without: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Expand the losses of every term in place; the losses nobody registered, and notices."""
    recipe = tree.get("recipe")
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    if not isinstance(stages, list):
        return (), []
    losses = registry("losses")
    planned = _planned_losses()
    missing: list[str] = []
    removed: set[str] = set()
    met: set[str] = set()
    for stage in stages:
        terms = stage.get("terms") if isinstance(stage, dict) else None
        if not isinstance(terms, list):
            continue
        kept = []
        for term in terms:
            loss = term.get("loss") if isinstance(term, dict) else None
            name = loss.get("name") if isinstance(loss, dict) else loss
            met.add(str(name))
            if name in without:
                removed.add(str(name))
            elif isinstance(name, str) and name in planned:
                missing.append(name)
            elif isinstance(loss, str):
                kept.append(term | {"loss": losses.select(loss).tree})
            else:
                kept.append(term)
        stage["terms"] = kept
    for name in without:
        if name not in removed:
            raise UsageError(
                f"--without {name}: no stage has such a term.{did_you_mean(name, met)} "
                f"The recipe's terms: {', '.join(sorted(met))}"
            )
    notices = [f"left out of every stage: {', '.join(sorted(removed))}"] if removed else []
    return tuple(dict.fromkeys(missing)), notices


def _planned_losses() -> set[str]:
    """Losses that a registered recipe names and nobody brings: not a typing error of the user's."""
    losses = registry("losses")
    known = {entry.name for entry in losses.entries()}
    named = {
        term["loss"] if isinstance(term["loss"], str) else term["loss"]["name"]
        for preset in registry("recipes").presets()
        for stage in preset.values["stages"]
        for term in stage["terms"]
    }
    return {name for name in named if name.partition(":")[0] not in known}


#: Fields of which one replaces the other.
ALTERNATIVES = {
    one: other
    for pair in (
        ("steps", "epochs"), ("warmup_steps", "warmup_epochs"), ("start_steps", "start_epochs")
    )
    for one, other in (pair, pair[::-1])
}  # fmt: skip


def _override(tree: Tree, text: str, families: Mapping[str, str]) -> None:
    """Apply one ``--set``: a field takes the place of its alternative, and a preset's name goes
    with the values that made it one."""
    steps, value = parse_override(text)
    role = str(steps[0])
    part: Any = tree.get(role)
    chosen = families.get(role) in _OF_MODELS and len(steps) == 2 and isinstance(part, dict)
    if chosen and part.get(str(steps[1]), value) != value:
        fields = attrs.fields_dict(registry(families[role]).config_class(part["name"]))
        if steps[1] in fields and fields[str(steps[1])].metadata.get("argument", True):
            part.pop("preset", None)
    apply_override(tree, text)
    node: Any = tree
    for step in steps[:-1]:
        node = node[step]
    if isinstance(node, dict):
        node.pop(ALTERNATIVES.get(str(steps[-1]), ""), None)
