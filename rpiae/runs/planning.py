"""The plan of a run: counts and shapes from the meta device, before anything heavy happens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set

from attrs import frozen
from torch import nn

from rpiae.core.config.recipe import (
    ROLES,
    AdversarialConfig,
    RecipeConfig,
    StageConfig,
    StageLength,
    TermConfig,
    batch_size,
    stage_length,
)
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.resolve import ResolvedRun
from rpiae.core.model.temporal import temporal_downsampling
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.devices import check_device_name
from rpiae.core.runtime.memory import MemoryNeed, memory_need
from rpiae.core.training.freeze import FreezeReport, apply_stage, trained_parameters
from rpiae.runs.untrained import untrained, within_reach
from rpiae.tasks.tokenizer.path import layers


@frozen(kw_only=True)
class PartPlan:
    """A part of the model: what it is, why, and how many parameters it has (by child module)."""

    role: str
    label: str
    origin: str
    parameters: int
    children: Mapping[str, int]


@frozen(kw_only=True)
class StagePlan:
    """A stage: what it trains, on which path, with which terms, for how long.

    Attributes:
        steps: optimiser steps; None where the data, and so the length, are not known.
        image_share: share of the steps that learn from single frames, where the data are clips.
        skipped: the stage has nothing to train.
        missing: losses that this version does not have.
    """

    name: str
    report: FreezeReport
    path: str
    noise: float
    terms: tuple[str, ...]
    length: str
    steps: int | None
    batch_size: int
    image_share: float
    skipped: bool


@frozen(kw_only=True)
class Plan:
    """Everything ``rpiae build`` says before it starts.

    Attributes:
        latent: (C, h, w) for a training crop, (C, t, h, w) for a clip.
        compression: image values per latent value.
        token_frames, step_frames: frames of a clip per token and, once it is long, per latent step.
        image_size: side of the training crops.
        frames: of a training clip; None where the data are images, or not known.
        start: what each part starts from, where a run starts from another one.
        loads: the weights that are loaded, and whether they are here.
        num_images: images to train on; None where the data are not known.
        memory: what training takes at the least.
    """

    parts: tuple[PartPlan, ...]
    stages: tuple[StagePlan, ...]
    parameters: int
    latent: tuple[int, ...]
    compression: float
    token_frames: int
    step_frames: int
    image_size: int
    recipe: str
    recipe_origin: str
    data: str
    data_origin: str
    num_images: int | None
    device: str
    precision: str
    out: str
    licences: tuple[str, ...]
    missing_losses: tuple[str, ...]
    notices: tuple[str, ...]
    memory: MemoryNeed
    frames: int | None = None
    start: str = ""
    loads: tuple[str, ...] = ()


def make_plan(
    resolved: ResolvedRun, *, num_images: int | None = None, notices: Sequence[str] = ()
) -> Plan:
    """Plan a run.

    Args:
        resolved: the run.
        num_images: length of the training data, where it is known.
        notices: what is to be said of the data.

    Raises:
        ConfigError: if a stage's patterns match no parameter, a part that ships begins at random and
            no stage trains it, or the device's name is none.
    """
    config, tokenizer = resolved.config, resolved.tokenizer
    model = build_tokenizer(tokenizer, device="meta")
    stages = _stages(model, config.recipe, num_images)
    left, said = untrained(model, stages.trained, resolved)
    if problems := [*device_problems(config.device), *stages.problems, *left]:
        raise ConfigError("the recipe", problems)
    parts = _parts(model, resolved)
    size = getattr(config.data, "image_size", None) or tokenizer.encoder_facts.image_size
    frames = getattr(config.data, "frames", None)
    latent, filled = _latent(model, size, frames)
    return Plan(
        parts=parts,
        stages=stages.plans,
        parameters=sum(part.parameters for part in parts),
        latent=latent,
        compression=3 * (frames or 1) * size * size / math.prod(latent),
        token_frames=tokenizer.encoder_facts.frames,
        step_frames=tokenizer.encoder_facts.frames * tokenizer.bridge_facts.temporal_downsampling,
        image_size=size,
        frames=frames,
        recipe=config.recipe.label,
        recipe_origin=resolved.origins.get("recipe", "given"),
        data=config.data.label if config.data else "",
        data_origin=resolved.origins.get("data", ""),
        num_images=num_images,
        device=config.device,
        precision=config.precision,
        out=config.out,
        licences=tuple(f"{p.name}: {p.licence}" for p in resolved.presets if p.licence),
        missing_losses=resolved.missing_losses,
        notices=(*resolved.notices, *notices, *filled, *_fitted(resolved, stages.plans), *said),
        start=_start(resolved) if config.init else "",
        memory=memory_need(model.roles, {plan.name: plan.report.trained for plan in stages.plans}),
    )


def _latent(model: RPiAE, size: int, frames: int | None) -> tuple[tuple[int, ...], list[str]]:
    """The shape of the latent of a training crop, and what is to be said of it."""
    channels, *sides = model.latent_shape(size, size)
    if frames is None:
        return (channels, *sides), []
    plan = model.geometry(size, size, frames)
    filled = f"data.frames = {frames}: every clip is filled to {plan.padded[0]} with its last frame"
    steps = 1 + (plan.grid[0] - 1) // temporal_downsampling(model.bridge)
    return (channels, steps, *sides), [filled] if plan.padded[0] > frames else []


def _parts(model: RPiAE, resolved: ResolvedRun) -> tuple[PartPlan, ...]:
    """The parts of a model, with where each was chosen."""
    return tuple(
        PartPlan(
            role=role,
            label=getattr(resolved.config, role).label,
            origin=resolved.origins.get(role, "given"),
            parameters=_size(part),
            children={
                name: size for name, child in part.named_children() if (size := _size(child))
            },
        )
        for role, part in model.roles.items()
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@frozen
class _Stages:
    """The stages of a recipe, planned one after the other.

    Attributes:
        plans: of the stages whose patterns fit the model.
        trained: names of the parameters that a stage trains and its terms reach, with their roles.
        problems: what is wrong with the others, and with adaptive weights.
    """

    plans: tuple[StagePlan, ...]
    trained: Set[str]
    problems: Sequence[str]


def _stages(model: RPiAE, recipe: RecipeConfig, num_images: int | None) -> _Stages:
    """Plan the stages; afterwards the model is as its last stage freezes it."""
    plans, problems = [], []
    trained: set[str] = set()
    for index, stage in enumerate(recipe.stages):
        try:
            report = apply_stage(model.roles, stage.train)
        except ConfigError as error:
            problems += [f"recipe.stages[{index}].{problem}" for problem in error.problems]
            continue
        problems += _frozen_layers(model, stage, index)
        length = stage_length(stage, recipe, num_images or 1)
        plans.append(_stage_plan(stage, recipe, report, length, in_epochs=num_images is not None))
        reached = within_reach(stage, length, in_epochs=num_images is not None)
        names = [name for name, _ in trained_parameters(model.roles)]
        trained |= {name for name in names if name.partition(".")[0] in reached}
    return _Stages(tuple(plans), trained, problems)


def _stage_plan(
    stage: StageConfig, recipe: RecipeConfig, report: FreezeReport, length: StageLength, *,
    in_epochs: bool,
) -> StagePlan:  # fmt: skip
    """What is said of one stage.

    Args:
        stage: the stage.
        recipe: the one that it is of.
        report: what it trains and freezes.
        length: its lengths.
        in_epochs: whether lengths in epochs are known.
    """
    known = in_epochs or stage.steps is not None
    if known:
        lasts = f"{length.steps} steps" + (" (capped)" if length.scale < 1 else "")
    else:
        at_most = f", at most {recipe.max_steps} steps" if recipe.max_steps else ""
        lasts = f"{stage.epochs:g} epochs{at_most}"
    bridge = f" → bridge ({stage.posterior})" if stage.use_bridge else ""
    return StagePlan(
        name=stage.name,
        report=report,
        path=f"encoder{bridge} → decoder",
        noise=stage.noise,
        terms=tuple(_in_words(term) for term in stage.terms),
        length=lasts,
        steps=length.steps if known else None,
        batch_size=batch_size(stage, recipe),
        image_share=stage.image_share or 0.0,
        skipped=report.skipped,
    )


def device_problems(device: str) -> list[str]:
    """What is wrong with a device's name; whether it is there, the run finds out."""
    try:
        check_device_name(device)
    except UsageError as error:
        return [str(error)]
    return []


def _in_words(term: TermConfig) -> str:
    adaptive = "adaptive " if term.adaptive else ""
    against = ""
    if isinstance(term.loss, AdversarialConfig):
        against = f" against {term.loss.critic.label}"
    start = ""
    if term.start_steps or term.start_epochs:
        unit = f"step {term.start_steps}" if term.start_steps else f"epoch {term.start_epochs:g}"
        start = f" from {unit}"
    return f"{adaptive}{term.weight:g}·{term.loss.label}{against}{start}"


def _frozen_layers(model: RPiAE, stage: StageConfig, index: int) -> list[str]:
    """Adaptive weights that refer to a layer the stage does not train."""
    of_model = layers(model)
    return [
        f"recipe.stages[{index}].terms[{position}]: the adaptive weight of {term.loss.label!r} refers "
        f"to the {term.adaptive.role}'s last layer, which this stage does not train: remove "
        f"`adaptive`, or train the {term.adaptive.role}"
        for position, term in enumerate(stage.terms)
        if term.adaptive and not of_model[term.adaptive.layer].weight.requires_grad
    ]


def _start(resolved: ResolvedRun) -> str:
    """Which part starts from where, in words."""
    config = resolved.config
    own = {
        "encoder": "as its pivot" if config.encoder.pretrained else "at random",
        "bridge": "fitted" if resolved.tokenizer.bridge_facts.fitted else "at random",
        "decoder": "at random",
    }
    taken = ", ".join(role for role in ROLES if role in config.init_parts)
    others = [f"{role} {own[role]}" for role in ROLES if role not in config.init_parts]
    return "; ".join([f"{taken} from {config.init}", *others])


def _fitted(resolved: ResolvedRun, planned: Sequence[StagePlan]) -> list[str]:
    """When the bridge is fitted, where it is one of that kind."""
    config = resolved.config
    taken = config.init and "bridge" in config.init_parts
    if taken or not resolved.tokenizer.bridge_facts.fitted:
        return []
    stages = zip(config.recipe.stages, planned, strict=True)
    before = [stage.name for stage, plan in stages if stage.use_bridge and not plan.skipped]
    when = f"before stage {before[0]}" if before else "after the last stage"
    return [f"bridge {config.bridge.label!r} is fitted to features of training crops {when}"]
