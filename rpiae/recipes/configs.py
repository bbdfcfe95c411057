"""Configs of the built-in recipes' parts (torch-free)."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from rpiae.core.config.recipe import RecipeConfig


@frozen(kw_only=True)
class TokenizerRecipeConfig(RecipeConfig):
    """How a tokenizer is trained: a tuple of stages and what they share."""

    module: ClassVar[str] = "rpiae.tasks.tokenizer.recipes:TokenizerStages"
