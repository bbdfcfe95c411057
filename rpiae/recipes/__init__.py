"""Recipes as data: the registry and the built-in files."""

from __future__ import annotations

import importlib.resources
import tomllib

from rpiae.core.config.tree import Tree
from rpiae.core.registry.registry import Entry, Preset, Registry, installed_plugins

#: The part of recipes that name none.
TOKENIZER = "tokenizer"

#: The part of recipes of generators.
GENERATOR = "generator"


def built_in() -> list[Preset]:
    """One preset per TOML file in this package."""
    found = []
    for file in sorted(importlib.resources.files(__name__).iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
        paper = tree.pop("paper", "")
        name = file.name.removesuffix(".toml")
        part = tree.pop("part", TOKENIZER)
        summary = tree.get("summary", "")
        found.append(Preset(name=name, part=part, values=tree, summary=summary, paper=paper))
    return found


def shapeless(recipe: Tree) -> str:
    """What a recipe lacks to be looked through for its losses, or nothing."""
    stages = recipe.get("stages")
    if not isinstance(stages, list):
        return "it has no list of stages"
    for index, stage in enumerate(stages):
        terms = stage.get("terms") if isinstance(stage, dict) else None
        if not isinstance(terms, list):
            return f"stages[{index}] has no list of terms"
        for position, term in enumerate(terms):
            loss = term.get("loss") if isinstance(term, dict) else None
            name = loss.get("name") if isinstance(loss, dict) else loss
            if not isinstance(name, str):
                return f"stages[{index}].terms[{position}] names no loss"
    return ""


ENTRIES = (
    Entry(
        name=TOKENIZER,
        target="rpiae.recipes.configs:TokenizerRecipeConfig",
        summary="the stages that train a tokenizer; a table with stages and any other name is one",
    ),
    Entry(
        name=GENERATOR,
        target="rpiae.recipes.configs:GeneratorRecipeConfig",
        summary="the stages that train a generator, and the flow that it learns",
    ),
)

RECIPES = Registry(
    "recipes", ENTRIES, built_in(), part=TOKENIZER, check=shapeless, plugins=installed_plugins
)
