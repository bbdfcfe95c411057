"""A check that a generator trains, saves and loads."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch

from rpiae.core.config.generation import FlowConfig, GeneratorConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import ConfigError
from rpiae.core.model.generator_folders import (
    build_generator,
    load_generator_model,
    save_generator,
)
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.core.model.resolve import part_config, wire
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.data.synthetic import SyntheticLatents
from rpiae.recipes.configs import GeneratorRecipeConfig
from rpiae.tasks.generator.task import GeneratorTask

#: (C, h, w) of made-up latents, and their classes.
SHAPE, CLASSES = (4, 4, 8), 3

#: Steps of training: layers that begin at zero hide those behind them in the first ones.
STEPS = 4


def check_generator_builds(generator: str | Tree, *, recipe: str = "flow-quick") -> None:
    """A generator takes optimiser steps of a recipe on made-up latents, and comes back from its folder
    the same.

    Args:
        generator: a registered name, or a table with a name; small.
        recipe: how it is trained.

    Raises:
        AssertionError: with what is wrong.
        RpiaeError: if the part does not resolve.
    """
    model, config = _built(generator), _recipe(recipe)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with tempfile.TemporaryDirectory() as name:
        inputs = TrainerInputs(
            task=GeneratorTask(model), recipe=config,
            data=SyntheticLatents(SHAPE, num_classes=CLASSES), folder=Path(name), seed=0,
            runtime=Runtime(device="cpu", precision="fp32"),
        )  # fmt: skip
        for event in train(inputs):
            if isinstance(event, events.StepDone):
                assert event.gradient_norms, f"stage {event.stage} has no gradients"
        after = dict(model.named_parameters())
        still = [n for n, value in before.items() if torch.equal(value, after[n])]
        assert len(still) < len(after), "training leaves it as it was"
        again = load_generator_model(save_generator(model.eval(), Path(name, "generator")))
    draws = torch.Generator().manual_seed(0)
    latents, time = torch.randn(2, *SHAPE, generator=draws), torch.rand(2, generator=draws)
    given = (latents, time, torch.tensor([0, CLASSES]))
    with torch.no_grad():
        assert torch.equal(model.velocity(*given), again.velocity(*given)), (
            "what is loaded gives something else than what was saved"
        )


def _built(generator: str | Tree) -> LatentGenerator:
    facts = LatentFacts(shape=SHAPE, tokenizer="made up", tokenizer_sha256="", num_classes=CLASSES)
    channels, rows, columns = SHAPE
    values = {"channels": channels, "rows": rows, "columns": columns, "num_classes": CLASSES}
    wires: dict[str, tuple[Any, str]] = {
        f"latents.{n}": (v, "the check") for n, v in values.items()
    }
    config, problems = wire(part_config("generators", generator), wires, "generator")
    if problems:
        raise ConfigError("check_generator_builds", problems)
    assert isinstance(config, GeneratorConfig)
    return build_generator(config, flow=FlowConfig(shift=1.0), facts=facts, seed=0)


def _recipe(name: str) -> GeneratorRecipeConfig:
    """Few steps of few latents."""
    tree = copy.deepcopy(registry("recipes").select(name).tree)
    config = part_config("recipes", tree | {"max_steps": STEPS, "batch_size": 4})
    assert isinstance(config, GeneratorRecipeConfig), f"recipe {name!r} trains no generators"
    return config
