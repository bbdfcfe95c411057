"""A run from config to summary, as a generator of events."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from attrs import evolve

from rpiae.core.config.recipe import RunConfig
from rpiae.core.config.tree import Tree, dump_toml, read_toml, unparse
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.contracts import Dataset, HeldOut
from rpiae.core.model.fetching import fetch_all, loading_losses
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.resolve import ResolvedRun
from rpiae.core.model.state import load_state
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import write_text
from rpiae.core.runtime.memory import check_memory
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.checkpoint import checkpoint_path, progress
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.data.building import built_dataset
from rpiae.data.fingerprint import data_fingerprint
from rpiae.evaluation.held_out import HeldOutEvaluation
from rpiae.runs.changes import Change, allowed_changes
from rpiae.runs.folder import CONFIG_FILE, Claim, begin, with_folder
from rpiae.runs.history import begin_session, sessions
from rpiae.runs.recording import recorded
from rpiae.runs.resolving import (
    check_startable,
    loading,
    measured_while_training,
    planned,
    resolve,
    runtime_of,
    settled,
)
from rpiae.runs.stages import StageStore, machine, session
from rpiae.runs.start import brings_pivot, take_over
from rpiae.runs.summary import keep_latent_norm, stage_row, write_summary
from rpiae.tasks.tokenizer.pivot import read_pivot
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.tasks.tokenizer.task import TokenizerTask


def run(
    config: RunConfig | ResolvedRun | Tree, *, stages: StageStore | None = None
) -> Iterator[events.Event]:
    """Plan, train and evaluate; everything lands in ``config.out``.

    Under a launcher of several processes, each of them calls this and trains on its share of every
    batch; files are written by the first one, which alone yields ``RunEnded``.

    Args:
        config: a run: a config, a tree as in a TOML file, or one already resolved.
        stages: finished stages of other runs, which this one goes on from and adds to.

    Yields:
        ``Planned``, the trainer's events, and ``RunEnded`` (or ``Interrupted`` as the last).

    Raises:
        RpiaeError: see the subclasses; nothing already saved is lost.
    """
    resolved = config if isinstance(config, ResolvedRun) else _resolved(config)
    check_startable(resolved)
    runtime = runtime_of(resolved.config)
    out = runtime.on_main(lambda: with_folder(resolved).config.out)
    resolved = evolve(resolved, config=evolve(resolved.config, out=out))
    folder = Path(out)
    data = _dataset(resolved.config)
    whole = planned(resolved, data.num_images)
    yield events.Planned(plan=whole)
    check_memory(whole.memory, runtime.device)
    with Claim(folder, runtime, resume=False):
        runtime.on_main(lambda: fetch_all(loading(resolved)))
        model = build_tokenizer(
            resolved.tokenizer, pretrained=not brings_pivot(resolved.config),
            seed=resolved.config.seed, trained_size=data.image_size,
        )  # fmt: skip
        held_out = data.held_out()
        init = resolved.config.init
        source = load_tokenizer(init) if init else None
        resolved = settled(resolved, runtime)
        runtime.on_main(lambda: begin(resolved.config, model, folder))
        if source is not None:
            take_over(model, source, resolved.config)
            if not brings_pivot(resolved.config) and "encoder" in resolved.config.init_parts:
                yield events.Notice(text=f"{init} has no pivot beside it: encoder's own is used")
        adopted = 0
        if stages is not None:
            on = machine(runtime.device, runtime.num_processes)
            adopted = runtime.on_main(lambda: stages.adopt(resolved.config, model, on))
        yield from _trained(
            resolved, model, data, held_out, runtime, resume=adopted > 0, stages=stages
        )


def resume(
    folder: str | os.PathLike[str],
    *,
    changes: Tree | None = None,
    overrides: tuple[str, ...] = (),
    stages: StageStore | None = None,
) -> Iterator[events.Event]:
    """Go on with a run from its newest checkpoint.

    Args:
        folder: the run's folder.
        changes: top-level fields of the run's config to replace.
        overrides: single fields to replace, as in ``--set``.
        stages: finished stages of other runs, which this one adds to, and goes on from where they
            lead further than it is.

    Raises:
        CheckpointError: if it is not a run's folder, or its checkpoints cannot be read.
        UsageError: if a change concerns what is already trained, or another process is at it.
    """
    path = Path(folder)
    resolved, changed = resumed_config(path, changes=changes, overrides=overrides)
    config = resolved.config
    runtime = runtime_of(config)
    data = _dataset(config)
    stage, step = progress(path / "checkpoints")
    # A stage that was begun has its critic in the checkpoint.
    ahead = loading_losses(config.recipe.stages[stage + (step > 0) :])
    whole = planned(resolved, data.num_images, ahead)
    yield events.Planned(plan=whole)
    check_memory(whole.memory, runtime.device)
    for change in changed:
        yield events.Notice(text=f"changed since the run began: {change}")
    with Claim(path, runtime, resume=True):
        if changed:
            runtime.on_main(lambda: write_text(path / CONFIG_FILE, dump_toml(config)))
        model = build_tokenizer(resolved.tokenizer, seed=config.seed, trained_size=data.image_size)
        runtime.on_main(lambda: fetch_all(ahead))
        if (stage, step) == (0, 0):
            pivot = read_pivot(path, config.encoder)
            load_state(model.roles["encoder"], pivot.state_dict(), source=str(path))
            if config.init:
                take_over(model, load_tokenizer(config.init), config)
        if stages is not None:
            on = machine(runtime.device, runtime.num_processes)
            runtime.on_main(lambda: stages.adopt(config, model, on, beyond=stage))
        yield from _trained(
            resolved, model, data, data.held_out(), runtime, resume=True, stages=stages
        )


def resumed_config(
    folder: Path, *, changes: Tree | None = None, overrides: tuple[str, ...] = ()
) -> tuple[ResolvedRun, list[Change]]:
    """The config a run goes on with, and what differs from the one it began with.

    Raises:
        CheckpointError: if it is not a run's folder.
        UsageError: if a change concerns what is already trained.
    """
    source = folder / CONFIG_FILE
    if not source.is_file():
        raise CheckpointError(f"{folder} is not a run's folder: there is no {CONFIG_FILE} in it")
    tree = read_toml(source) | {"out": str(folder)}
    if "generator" in tree:
        raise CheckpointError(
            f"{folder} is not a tokenizer's run: go on with a generator's with rpiae diffuse --resume"
        )
    before = resolve(tree, source=str(source))
    resolved = resolve(
        tree | (changes or {}) | {"out": str(folder)}, overrides=overrides, source=str(source)
    )  # fmt: skip
    stage, step = progress(folder / "checkpoints")
    changed = allowed_changes(
        before.config, resolved.config, stage=stage, step=step, source=str(folder)
    )
    if any(change.affects == "place" for change in changed):
        _check_moved(resolved.config, folder)
    return resolved, changed


def _check_moved(config: RunConfig, folder: Path) -> None:
    """Refuse data, said to lie elsewhere now, that are not those that the run was trained on.

    Raises:
        UsageError: if they are others.
    """
    assert config.data is not None
    before = {session.data for session in sessions(folder)}
    if before and data_fingerprint(config.data, times=False) not in before:
        raise UsageError(
            f"{folder} cannot go on with these data: their files are not those that it was trained on. "
            "Name the folder that these were moved to, or start another run from its weights with "
            "--init"
        )


def _resolved(config: RunConfig | Tree) -> ResolvedRun:
    return resolve(unparse(config) if isinstance(config, RunConfig) else config)


def _dataset(config: RunConfig) -> Dataset:
    assert config.data is not None
    return built_dataset(config.data)


def _trained(
    resolved: ResolvedRun,
    model: RPiAE,
    data: Dataset,
    held_out: HeldOut,
    runtime: Runtime,
    *,
    resume: bool,
    stages: StageStore | None,
) -> Iterator[events.Event]:
    config = resolved.config
    folder = Path(config.out)
    started = time.perf_counter()
    yield events.Notice(text=runtime.in_words)
    inputs = TrainerInputs(
        task=_task(config, model, held_out, runtime),
        recipe=config.recipe, data=data, runtime=runtime, folder=folder, seed=config.seed,
    )  # fmt: skip
    rows = []
    on = machine(runtime.device, runtime.num_processes)
    begun = False
    training = train(inputs, resume=resume)
    if runtime.is_main:
        training = recorded(training, config, resume=resume)
    for event in training:
        if isinstance(event, events.StageStarted) and runtime.is_main and not begun:
            begun = True
            begin_session(folder, session(config, event.index, event.step, machine=on))
        if isinstance(event, events.StageEnded) and stages is not None and runtime.is_main:
            _keep(stages, config, event, machine=on)
        yield event
        if isinstance(event, (events.StageEnded, events.StageSkipped)):
            rows.append(stage_row(event))
        if isinstance(event, events.Interrupted):
            return
    runtime.close()
    if not runtime.is_main:
        return
    keep_latent_norm(model, folder / "tokenizer")
    save_tokenizer(model, folder / "tokenizer")
    summary = write_summary(
        config, model, data, runtime, rows, wall_seconds=time.perf_counter() - started
    )
    yield events.RunEnded(summary=summary, folder=folder)


def _task(config: RunConfig, model: RPiAE, held_out: HeldOut, runtime: Runtime) -> TokenizerTask:
    """The tokenizer in training, against its pivot and measured on held-out images."""
    replica = PivotReplica.beside(
        model, read_pivot(Path(config.out), config.encoder).to(runtime.device)
    )
    measured = HeldOutEvaluation(held_out, measured_while_training(config.recipe), replica, runtime)
    return TokenizerTask(
        model, replica=replica,
        evaluate=lambda current, stage: measured(current, use_bridge=stage.use_bridge),
    )  # fmt: skip


def _keep(stages: StageStore, config: RunConfig, event: events.StageEnded, *, machine: str) -> None:
    """Keep a stage that has just ended; one that is told again after a resume is kept already, or
    its checkpoint is gone."""
    if checkpoint_path(Path(config.out) / "checkpoints", event.index + 1, 0).is_file():
        stages.keep(config, event.index, machine=machine)
