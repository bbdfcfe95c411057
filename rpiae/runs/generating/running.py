"""A generator's run from config to summary, as a generator of events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from rpiae.core.config.convert import parse
from rpiae.core.config.generation import GeneratorRunConfig
from rpiae.core.config.tree import Tree, dump_toml, read_toml
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.generator_folders import (
    build_generator,
    load_generator_model,
    save_generator,
)
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.core.model.naming import converter
from rpiae.core.model.saved import GENERATOR
from rpiae.core.model.state import load_state
from rpiae.core.runtime.files import write_text
from rpiae.core.runtime.memory import check_memory
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.checkpoint import list_checkpoints, progress
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.runs.changes import Change, allowed_changes
from rpiae.runs.folder import CONFIG_FILE, SUMMARY_FILE, Claim, free_folder
from rpiae.runs.generating.measuring import held_out_loss
from rpiae.runs.generating.normalising import shape_of, statistics
from rpiae.runs.generating.planning import GeneratorPlan, plan_generator
from rpiae.runs.generating.resolving import ResolvedGenerator, resolve_generator
from rpiae.runs.recording import recorded
from rpiae.runs.resolving import made_with, runtime_of
from rpiae.runs.summary import stage_row
from rpiae.tasks.generator.task import GeneratorTask


def run_generator(run: ResolvedGenerator | Tree) -> Iterator[events.Event]:
    """Plan and train; everything lands in ``config.out``.

    Under a launcher of several processes, each of them calls this and trains on its share of every
    batch; files are written by the first one, which alone yields ``RunEnded``.

    Yields:
        ``Planned``, the trainer's events, and ``RunEnded`` (or ``Interrupted`` as the last).

    Raises:
        RpiaeError: see the subclasses; nothing already saved is lost.
    """
    resolved = run if isinstance(run, ResolvedGenerator) else resolve_generator(run)
    runtime = runtime_of(resolved.config)
    resolved = _with_folder(resolved, runtime)
    folder = Path(resolved.config.out)
    plan = plan_generator(resolved)
    yield events.Planned(plan=plan)
    check_memory(plan.memory, runtime.device)
    with Claim(folder, runtime, resume=False):
        config = made_with(evolve(resolved.config, precision=runtime.precision))
        resolved = evolve(resolved, config=config)
        model = _built(resolved, runtime)
        for text in _take_over(model, config.init) if config.init else ():
            yield events.Notice(text=text)
        runtime.on_main(lambda: write_text(folder / CONFIG_FILE, dump_toml(config)))
        yield from _trained(resolved, plan, model, runtime, resume=False)


def resume_generator(
    folder: str | os.PathLike[str],
    *,
    changes: Tree | None = None,
    overrides: tuple[str, ...] = (),
) -> Iterator[events.Event]:
    """Go on with a generator's run from its newest checkpoint.

    Args:
        folder: the run's folder.
        changes: top-level fields of the run's config to replace, such as where its latents lie now.
        overrides: single fields to replace, as in ``--set``.

    Raises:
        CheckpointError: if it is not a run's folder, or its checkpoints cannot be read.
        UsageError: if a change concerns what is already trained, or another process is at it.
    """
    path = Path(folder)
    resolved, changed = resumed_generator(path, changes=changes, overrides=overrides)
    config = resolved.config
    runtime = runtime_of(config)
    plan = plan_generator(resolved)
    yield events.Planned(plan=plan)
    check_memory(plan.memory, runtime.device)
    for change in changed:
        yield events.Notice(text=f"changed since the run began: {change}")
    with Claim(path, runtime, resume=True):
        if changed:
            runtime.on_main(lambda: write_text(path / CONFIG_FILE, dump_toml(config)))
        model = _built(resolved, runtime)
        if config.init and progress(path / "checkpoints") == (0, 0):
            _take_over(model, config.init)
        yield from _trained(resolved, plan, model, runtime, resume=True)


def resumed_generator(
    folder: Path, *, changes: Tree | None = None, overrides: tuple[str, ...] = ()
) -> tuple[ResolvedGenerator, list[Change]]:
    """The run that goes on, and what differs from the one that began.

    Raises:
        CheckpointError: if it is not a generator's run.
        UsageError: if a change concerns what is already trained.
    """
    source = folder / CONFIG_FILE
    if not source.is_file():
        raise CheckpointError(f"{folder} is not a run's folder: there is no {CONFIG_FILE} in it")
    tree = read_toml(source) | {"out": str(folder)}
    if GENERATOR not in tree:
        raise CheckpointError(
            f"{folder} is not a generator's run: go on with a tokenizer's with rpiae build --resume"
        )
    resolved = resolve_generator(tree | (changes or {}), overrides=overrides, source=str(source))
    before = parse(tree, GeneratorRunConfig, source=str(source), converter=converter())
    stage, step = progress(folder / "checkpoints")
    changed = allowed_changes(before, resolved.config, stage=stage, step=step, source=str(folder))
    return resolved, changed


def _with_folder(resolved: ResolvedGenerator, runtime: Runtime) -> ResolvedGenerator:
    config = resolved.config
    stem = f"{config.generator.label}-{config.recipe.label}"
    out = runtime.on_main(lambda: config.out or str(free_folder(stem)))
    return evolve(resolved, config=evolve(config, out=out))


def _built(resolved: ResolvedGenerator, runtime: Runtime) -> LatentGenerator:
    """The generator as the run initialises it, with the statistics of its latents.

    They are not measured again where a checkpoint has them.
    """
    config, flow = resolved.config, resolved.recipe.flow
    shape = shape_of(resolved.found, flow)
    if shape is None:
        mean, std = None, None
    elif list_checkpoints(Path(config.out) / "checkpoints"):
        mean, std = torch.zeros(shape), torch.ones(shape)
    else:
        measured = statistics(resolved.found, flow, runtime, config.seed)
        assert measured is not None
        mean, std = measured
    return build_generator(
        config.generator, flow=flow, facts=resolved.found.facts, mean=mean, std=std,
        seed=config.seed,
    )  # fmt: skip


def _take_over(model: LatentGenerator, init: str) -> list[str]:
    """Give a generator the weights of another one; its own latents' statistics stay. What is to be said
    of that.

    Raises:
        UsageError: if they predict something else.
        CheckpointError: if they are of another model.
    """
    source = load_generator_model(init)
    if source.flow.prediction != model.flow.prediction:
        raise UsageError(
            f"{init} predicts {source.flow.prediction!r} and this run trains {model.flow.prediction!r}: "
            f"set recipe.flow.prediction = {source.flow.prediction!r}"
        )
    load_state(model.roles[GENERATOR], source.roles[GENERATOR].state_dict(), source=init)
    differ = {
        "another tokenizer": source.facts.tokenizer_sha256 != model.facts.tokenizer_sha256,
        "other classes": source.facts.label_names != model.facts.label_names,
    }
    return [f"{init} was trained on latents of {what}" for what, so in differ.items() if so]


def _trained(
    resolved: ResolvedGenerator,
    plan: GeneratorPlan,
    model: LatentGenerator,
    runtime: Runtime,
    *,
    resume: bool,
) -> Iterator[events.Event]:
    config, found = resolved.config, resolved.found
    folder = Path(config.out)
    started = time.perf_counter()
    yield events.Notice(text=runtime.in_words)
    tokenizer = found.tokenizer and found.tokenizer.to(runtime.device)
    task = GeneratorTask(
        model, tokenizer=tokenizer,
        flip=config.flip and found.stored is None,
        evaluate=held_out_loss(found, runtime, config.seed),
    )  # fmt: skip
    inputs = TrainerInputs(
        task=task, recipe=config.recipe, data=found.source, runtime=runtime, folder=folder,
        seed=config.seed,
    )  # fmt: skip
    training = train(inputs, resume=resume)
    if runtime.is_main:
        training = recorded(training, config, resume=resume)
    rows = []
    for event in training:
        yield event
        if isinstance(event, (events.StageEnded, events.StageSkipped)):
            rows.append(stage_row(event))
        if isinstance(event, events.Interrupted):
            return
    runtime.close()
    if not runtime.is_main:
        return
    save_generator(model, folder / GENERATOR)
    summary = _summary(resolved, plan, runtime, rows, time.perf_counter() - started)
    write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    yield events.RunEnded(summary=summary, folder=folder)


def _summary(
    resolved: ResolvedGenerator,
    plan: GeneratorPlan,
    runtime: Runtime,
    stages: list[dict[str, Any]],
    wall_seconds: float,
) -> dict[str, Any]:
    """What a finished run says of itself."""
    facts = resolved.found.facts
    return {
        "generator": str(Path(resolved.config.out) / GENERATOR),
        "parameters": plan.parameters,
        "latent": list(facts.shape),
        "num_classes": facts.num_classes,
        "label_names": list(facts.label_names),
        "num_samples": plan.num_samples,
        "tokenizer": facts.tokenizer,
        "tokenizer_sha256": facts.tokenizer_sha256,
        "flow": plan.flow,
        "seconds": sum(stage.get("seconds", 0.0) for stage in stages),
        "wall_seconds": wall_seconds,
        "precision": runtime.precision,
        "device": str(runtime.device),
        "processes": runtime.num_processes,
        "stages": stages,
    }
