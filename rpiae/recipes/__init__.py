"""Recipes as data: the registry and the built-in files."""

from __future__ import annotations

import importlib.resources
import tomllib

from rpiae.core.registry.registry import Preset, Registry, installed_plugins


def built_in() -> list[Preset]:
    """One preset per TOML file in this package."""
    found = []
    for file in sorted(importlib.resources.files(__name__).iterdir(), key=lambda f: f.name):
        if not file.name.endswith(".toml"):
            continue
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
        paper = tree.pop("paper", "")
        name = file.name.removesuffix(".toml")
        found.append(Preset(name=name, values=tree, summary=tree.get("summary", ""), paper=paper))
    return found


RECIPES = Registry("recipes", presets=built_in(), plugins=installed_plugins)
