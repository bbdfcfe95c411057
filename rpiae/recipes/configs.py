"""Configs of the built-in recipes' parts (torch-free)."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen

from rpiae.core.config.generation import FlowConfig
from rpiae.core.config.recipe import RecipeConfig


@frozen(kw_only=True)
class TokenizerRecipeConfig(RecipeConfig):
    """How a tokenizer is trained: a tuple of stages and what they share."""

    trains: ClassVar[str] = "tokenizer"
    module: ClassVar[str] = "rpiae.tasks.tokenizer.recipes:TokenizerStages"


@frozen(kw_only=True)
class GeneratorRecipeConfig(RecipeConfig):
    """How a generator is trained on latents: stages, and the flow that all of them learn.

    Attributes:
        flow: from latents to noise and back; it goes with the generator.
    """

    trains: ClassVar[str] = "generator"
    module: ClassVar[str] = "rpiae.tasks.generator.recipes:GeneratorStages"
    flow: FlowConfig = field(factory=FlowConfig)
