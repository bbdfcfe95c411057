"""The plan of a generator's run: counts and shapes from the meta device."""

from __future__ import annotations

from attrs import frozen
from torch import nn

from rpiae.core.config.recipe import batch_size, stage_length
from rpiae.core.errors import ConfigError
from rpiae.core.model.generator_folders import build_generator
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.memory import MemoryNeed, memory_need
from rpiae.core.training.freeze import apply_stage
from rpiae.runs.generating.resolving import ResolvedGenerator
from rpiae.runs.planning import device_problems


@frozen(kw_only=True)
class GeneratorStagePlan:
    """A stage of a generator's run."""

    name: str
    steps: int
    epochs: float
    batch_size: int
    terms: tuple[str, ...]


@frozen(kw_only=True)
class GeneratorPlan:
    """Everything ``rpiae diffuse`` says before it starts.

    Attributes:
        label, origin: the generator, and where it was chosen.
        parameters: of it.
        latent: (C, h, w).
        num_classes, label_names: of the latents.
        tokenizer: folder of the tokenizer.
        source: what is learned from, in words.
        num_samples: latents, or images, of an epoch.
        flow: what is learned, in words.
        memory: what training takes at the least.
    """

    label: str
    origin: str
    parameters: int
    latent: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...]
    tokenizer: str
    source: str
    num_samples: int
    flow: str
    recipe: str
    recipe_origin: str
    stages: tuple[GeneratorStagePlan, ...]
    device: str
    precision: str
    out: str
    notices: tuple[str, ...]
    memory: MemoryNeed
    init: str = ""


def plan_generator(resolved: ResolvedGenerator) -> GeneratorPlan:
    """The plan of a resolved run.

    Raises:
        ConfigError: if the generator cannot be built so, a stage's patterns match no parameter, or the
            device's name is none.
    """
    config, recipe, found = resolved.config, resolved.recipe, resolved.found
    model = build_generator(config.generator, flow=recipe.flow, facts=found.facts, device="meta")
    trained, problems = {}, device_problems(config.device)
    for index, stage in enumerate(recipe.stages):
        try:
            trained[stage.name] = apply_stage(model.roles, stage.train).trained
        except ConfigError as error:
            problems += [f"recipe.stages[{index}].{problem}" for problem in error.problems]
    if problems:
        raise ConfigError("the recipe", problems)
    number = found.source.num_images
    return GeneratorPlan(
        label=config.generator.label,
        origin=resolved.origins.get("generator", "given"),
        parameters=sum(p.numel() for p in model.parameters()),
        latent=found.facts.shape,
        num_classes=found.facts.num_classes,
        label_names=found.facts.label_names,
        tokenizer=found.facts.tokenizer,
        source=config.latents or (config.data.label if config.data else ""),
        num_samples=number,
        flow=_in_words(resolved, model.shift),
        recipe=recipe.label,
        recipe_origin=resolved.origins.get("recipe", "given"),
        stages=_stages(resolved, number),
        device=config.device,
        precision=config.precision,
        out=config.out,
        notices=(*resolved.notices, *found.source.notices),
        memory=memory_need(_held(model, found.tokenizer), trained),
        init=config.init,
    )


def _held(model: LatentGenerator, tokenizer: RPiAE | None) -> dict[str, nn.Module]:
    """What is in memory: the generator, and a tokenizer that encodes on the way."""
    return {**model.roles, **({} if tokenizer is None else {"tokenizer": tokenizer})}


def _stages(resolved: ResolvedGenerator, number: int) -> tuple[GeneratorStagePlan, ...]:
    recipe = resolved.recipe
    plans = []
    for stage in recipe.stages:
        steps, size = stage_length(stage, recipe, number).steps, batch_size(stage, recipe)
        plans.append(
            GeneratorStagePlan(
                name=stage.name, steps=steps, epochs=steps * size / number, batch_size=size,
                terms=tuple(f"{term.weight:g}·{term.loss.label}" for term in stage.terms),
            )
        )  # fmt: skip
    return tuple(plans)


def _in_words(resolved: ResolvedGenerator, shift: float) -> str:
    """The flow in words."""
    flow = resolved.recipe.flow
    normalised = {
        "none": "raw latents",
        "channel": "latents normalised per channel",
        "position": "latents normalised per channel and position",
    }[flow.normalisation]
    predicted = {"v": "velocity", "x": "data"}[flow.prediction]
    dropped = resolved.recipe.flow.label_dropout if resolved.found.facts.num_classes else 0
    without = f", {dropped:.0%} of labels dropped" if dropped else ""
    return f"{normalised}; {predicted} at {flow.times} times, shifted by {shift:.3g}{without}"
