"""A run from config to summary, as a generator of events."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve

from rpiae.core.config.identity import pinned
from rpiae.core.config.parts import parts_of
from rpiae.core.config.recipe import AdversarialConfig, RecipeConfig, RunConfig, StageConfig
from rpiae.core.config.tree import Tree, dump_toml, read_toml, unparse
from rpiae.core.errors import CheckpointError, ConfigError, RunError, UsageError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.contracts import Dataset, HeldOut
from rpiae.core.model.fetching import Loading, fetch_all, loading_losses, loading_parts, needed
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.resolve import ResolvedRun, resolve_run
from rpiae.core.model.state import load_state
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.registry.importing import MAIN, import_hint
from rpiae.core.registry.registry import OWN, registry
from rpiae.core.runtime.files import write_text
from rpiae.core.runtime.locks import hold
from rpiae.core.runtime.memory import check_memory
from rpiae.core.runtime.processes import LAUNCHER_VARIABLES, Runtime
from rpiae.core.training import events
from rpiae.core.training.checkpoint import checkpoint_path, digest, list_checkpoints, progress
from rpiae.core.training.stage import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.data.building import built_dataset
from rpiae.data.fingerprint import data_fingerprint
from rpiae.evaluation.engine import alone
from rpiae.evaluation.final import evaluate_run
from rpiae.evaluation.held_out import METRICS, HeldOutEvaluation, held_out_metrics
from rpiae.evaluation.pixels import EXACT
from rpiae.runs.changes import Change, allowed_changes
from rpiae.runs.history import begin_session, sessions
from rpiae.runs.planning import Plan, make_plan
from rpiae.runs.recording import recorded
from rpiae.runs.stages import StageStore, machine, run_address, session, trained_as
from rpiae.runs.start import brings_pivot, check_initial, initial_parts, take_over
from rpiae.tasks.tokenizer.pivot import inherit_pivot, read_pivot, write_pivot
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.tasks.tokenizer.task import TokenizerTask

#: The run that nothing was said about; presets' companions come before all but the encoder.
DEFAULTS: Mapping[str, str] = {
    "encoder": "tiny",
    "bridge": "vb64",
    "decoder": "vit-b",
    "recipe": "rpiae",
}

CONFIG_FILE = "config.toml"
SUMMARY_FILE = "summary.json"

#: Seconds to wait for the folder of a run that was killed just now: its loading processes hold the
#: lock until they too have ended.
PATIENCE = 3.0


def resolve(
    tree: Tree | None = None,
    *,
    overrides: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    source: str = "the run",
) -> ResolvedRun:
    """Resolve a run with the toolkit's defaults; see ``rpiae.core.model.resolve.resolve_run``.

    Where it fails, what the run requires and is not installed is named too.
    """
    tree = tree or {}
    try:
        return resolve_run(
            tree, defaults=DEFAULTS, initial=initial_parts(tree, overrides), overrides=overrides,
            without=without, source=source,
        )  # fmt: skip
    except UsageError as error:
        hint = _hint(tree, source)
        if not hint:
            raise
        if isinstance(error, ConfigError):
            raise ConfigError(error.source, [*error.problems, hint]) from None
        raise type(error)(f"{error}. {hint}") from None


def plan(resolved: ResolvedRun) -> Plan:
    """The plan of a resolved run, with its data's length where the data are there.

    Raises:
        DataError: if data were named and cannot be used.
        CheckpointError: if the tokenizer that it starts from does not fit.
    """
    check_initial(resolved)
    if resolved.config.data is None:
        return _planned(resolved, None)
    data = built_dataset(resolved.config.data)
    # A run tells them with its first batch.
    return _planned(resolved, data.num_images, notices=data.notices)


def _metrics(recipe: RecipeConfig) -> tuple[str, ...]:
    """What is measured on held-out images while a run trains: PSNR, which curves and logs show, what
    the recipe names or else the usual, and what chooses the best weights of adversarial stages."""
    losses = [term.loss for stage in recipe.stages for term in stage.terms]
    adversarial = any(isinstance(loss, AdversarialConfig) for loss in losses)
    wanted = ("psnr", *(recipe.metrics or METRICS), *(("pivot-rfd",) if adversarial else ()))
    return tuple(dict.fromkeys(wanted))


def check_startable(resolved: ResolvedRun) -> None:
    """Refuse a planned run that cannot begin.

    Raises:
        UsageError: if data are missing or the recipe names losses nobody registered.
        CheckpointError: if the tokenizer that it starts from does not fit.
    """
    check_initial(resolved)
    held_out_metrics(resolved.config.recipe.metrics)
    recipe = resolved.config.recipe.label
    if resolved.config.data is None:
        raise UsageError(
            f"recipe {recipe!r} needs data to train on: add --data folder:PATH or --data "
            "parquet:PATH (rpiae list datasets), or try it with --data sample"
        )
    if resolved.missing_losses:
        missing = resolved.missing_losses
        raise UsageError(
            f"recipe {recipe!r} has terms that are not in this version: {', '.join(missing)}. "
            f"Add --without {','.join(missing)}, or install a plugin that brings them"
        )


def _planned(
    resolved: ResolvedRun,
    num_images: int | None,
    loads: Iterable[Loading] | None = None,
    *,
    notices: Sequence[str] = (),
) -> Plan:
    """A plan that also says which weights are loaded; those inside this package go without saying."""
    own = Path(__file__).parent
    files = needed(loading(resolved) if loads is None else loads)
    return evolve(
        make_plan(resolved, num_images=num_images, notices=notices),
        loads=tuple(
            f"{file.what}: {file.path or 'to be downloaded'}"
            for file in files
            if file.path is None or not file.path.is_relative_to(own)
        ),
    )


def loading(resolved: ResolvedRun) -> list[Loading]:
    """The parts of a run that load something when it begins."""
    parts = loading_parts(resolved.config, encoder=not brings_pivot(resolved.config))
    return [*parts, *held_out_metrics(_metrics(resolved.config.recipe)).values()]


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
    runtime = Runtime(device=resolved.config.device, precision=resolved.config.precision)
    out = runtime.on_main(lambda: with_folder(resolved).config.out)
    resolved = evolve(resolved, config=evolve(resolved.config, out=out))
    folder = Path(out)
    data = _dataset(resolved.config)
    planned = _planned(resolved, data.num_images)
    yield events.Planned(plan=planned)
    check_memory(planned.memory, runtime.device)
    with _Claim(folder, runtime, resume=False):
        runtime.on_main(lambda: fetch_all(loading(resolved)))
        model = build_tokenizer(
            resolved.tokenizer, pretrained=not brings_pivot(resolved.config),
            seed=resolved.config.seed, trained_size=data.image_size,
        )  # fmt: skip
        held_out = data.held_out()
        init = resolved.config.init
        source = load_tokenizer(init) if init else None
        resolved = _settled(resolved, runtime)
        runtime.on_main(lambda: _begin(resolved.config, model, folder))
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
    runtime = Runtime(device=config.device, precision=config.precision)
    data = _dataset(config)
    stage, step = progress(path / "checkpoints")
    # A stage that was begun has its critic in the checkpoint.
    ahead = loading_losses(config.recipe.stages[stage + (step > 0) :])
    planned = _planned(resolved, data.num_images, ahead)
    yield events.Planned(plan=planned)
    check_memory(planned.memory, runtime.device)
    for change in changed:
        yield events.Notice(text=f"changed since the run began: {change}")
    with _Claim(path, runtime, resume=True):
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


def with_folder(resolved: ResolvedRun) -> ResolvedRun:
    """The run with an output folder: the given one, or a new one under ``runs/``."""
    if resolved.config.out:
        return resolved
    config = resolved.config
    parts = (config.encoder, config.bridge, config.decoder)
    stem = "-".join([*(part.label for part in parts), config.recipe.label])
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem)
    number, path = 1, Path("runs") / stem
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return evolve(resolved, config=evolve(config, out=str(path)))


def _resolved(config: RunConfig | Tree) -> ResolvedRun:
    return resolve(unparse(config) if isinstance(config, RunConfig) else config)


def _dataset(config: RunConfig) -> Dataset:
    assert config.data is not None
    return built_dataset(config.data)


class _Claim(contextlib.AbstractContextManager["_Claim"]):
    """A run's folder, held by one run at a time."""

    def __init__(self, folder: Path, runtime: Runtime, *, resume: bool) -> None:
        self._folder = folder
        self._runtime = runtime
        self._resume = resume
        self._held = contextlib.ExitStack()

    def __enter__(self) -> _Claim:
        self._runtime.on_main(self._acquire)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _acquire(self) -> None:
        folder = self._folder
        self._held.enter_context(hold(folder, worker="run", patience=PATIENCE))
        if not self._resume and list_checkpoints(folder / "checkpoints"):
            self._held.close()
            raise UsageError(
                f"{folder} already holds a run: go on with --resume {folder}, or name another --out"
            )


def _settled(resolved: ResolvedRun, runtime: Runtime) -> ResolvedRun:
    """The run as it is written down: with the precision that was chosen and the commits that were
    loaded, so that a resumed one has the same, and the distributions its parts are from."""
    config = pinned(resolved.config)
    entries = [registry(part.family).entry(part.name) for part in parts_of(config)]
    foreign = {entry.distribution for entry in entries if _installed(entry.distribution)} - {OWN}
    here = {entry.target.partition(":")[0] for entry in entries if not entry.importable}
    config = evolve(
        config,
        precision=runtime.precision,
        requires=tuple(sorted(foreign | set(config.requires))),
        imports=tuple(sorted(here | set(config.imports))),
    )
    return evolve(resolved, config=config)


def _hint(tree: Tree, source: str) -> str:
    """What is missing here of what a run's config says that it is made with, and how to get it."""
    missing = _not_installed(tree.get("requires"))
    if missing:
        return f"{source} requires {', '.join(missing)}: pip install {' '.join(missing)}"
    listed = tree.get("imports")
    modules = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    if modules and not all(name in sys.modules for name in modules if name != MAIN):
        return f"{source} has parts of a notebook or script: {import_hint(modules)}"
    return f"{source}: {import_hint([])}" if MAIN in modules else ""


def _not_installed(distributions: Any) -> list[str]:
    listed = distributions if isinstance(distributions, (list, tuple)) else ()
    return [name for name in listed if isinstance(name, str) and name and not _installed(name)]


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _begin(config: RunConfig, model: RPiAE, folder: Path) -> None:
    """Write down the pivot, then the config: with it, the folder holds a run."""
    if not (brings_pivot(config) and inherit_pivot(folder, Path(config.init))):
        write_pivot(folder, model.roles["encoder"])
    write_text(folder / CONFIG_FILE, dump_toml(config))


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
    processes = f" in {runtime.num_processes} processes" if runtime.num_processes > 1 else ""
    yield events.Notice(
        text=f"{runtime.precision} on {runtime.device}{processes}: {runtime.reason}"
    )
    pivot = read_pivot(folder, config.encoder).to(runtime.device)
    replica = PivotReplica(
        pivot, output_patch=model.decoder.patch, downsampling=model.bridge.downsampling
    )

    measured = HeldOutEvaluation(held_out, _metrics(config.recipe), replica, runtime)

    def evaluate(current: RPiAE, stage: StageConfig) -> Mapping[str, float]:
        return measured(current, use_bridge=stage.use_bridge)

    inputs = TrainerInputs(
        task=TokenizerTask(model, replica=replica, evaluate=evaluate),
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
            rows.append(_stage_row(event))
        if isinstance(event, events.Interrupted):
            return
    runtime.close()
    if not runtime.is_main:
        return
    _restore_latent_norm(model, folder / "tokenizer")
    save_tokenizer(model, folder / "tokenizer")
    summary = {
        **_evaluated(config, folder, runtime),
        "seconds": sum(stage.get("seconds", 0.0) for stage in rows),
        "images_per_second": _overall_rate(rows),
        "wall_seconds": time.perf_counter() - started,
        "parameters": {
            **{
                role: sum(p.numel() for p in part.parameters())
                for role, part in model.roles.items()
            },
            "total": sum(p.numel() for p in model.parameters()),
        },
        "latent": list(model.latent_shape(data.image_size, data.image_size)),
        "image_size": data.image_size,
        "num_images": data.num_images,
        "precision": runtime.precision,
        "device": str(runtime.device),
        "processes": runtime.num_processes,
        "stages": rows,
        "tokenizer": str(folder / "tokenizer"),
        "address": _address(config, machine=on),
    }
    summary["verdict"] = verdict(summary)
    write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    yield events.RunEnded(summary=summary, folder=folder)


def _restore_latent_norm(model: RPiAE, folder: Path) -> None:
    """Keep the ``latent_norm`` of a finished run that is only told again: it is of the same latents."""
    try:
        saved = load_tokenizer(folder)
    except CheckpointError:
        return
    mean, std = saved.latent_mean, saved.latent_std
    saved.latent_mean = saved.latent_std = None
    if digest(saved.state_dict()) == digest(model.state_dict()):
        model.latent_mean, model.latent_std = mean, std


def _address(config: RunConfig, *, machine: str) -> str:
    """A finished run's address; nothing where it was not trained as its config says from end to end."""
    trained = trained_as(config, len(config.recipe.stages) - 1, machine=machine)
    return run_address(config) if trained else ""


def _keep(stages: StageStore, config: RunConfig, event: events.StageEnded, *, machine: str) -> None:
    """Keep a stage that has just ended; one that is told again after a resume is kept already, or
    its checkpoint is gone."""
    if checkpoint_path(Path(config.out) / "checkpoints", event.index + 1, 0).is_file():
        stages.keep(config, event.index, machine=machine)


def verdict(summary: Mapping[str, Any]) -> str:
    """How the tokenizer stands against its two yardsticks, in words."""
    ours, flat, linear = (summary[k] for k in ("psnr", "psnr_mean_colour", "psnr_pca"))
    above = "above" if ours > flat else "BELOW"
    against_flat = f"{abs(ours - flat):.1f} dB {above} patches of one mean colour"
    if linear >= EXACT:
        return (
            f"{against_flat}. A linear code of this latent's size is lossless here, so the latent "
            "does not compress; no tokenizer can beat that yardstick."
        )
    place = "above" if ours > linear else "below"
    return (
        f"{against_flat}, and {abs(ours - linear):.1f} dB {place} the best linear code of the same "
        "size (PCA), which keeps pixels and no semantics."
    )


def _evaluated(config: RunConfig, folder: Path, runtime: Runtime) -> dict[str, Any]:
    """Scores from the saved files: in a new process, where one would find all parts."""
    needed = (config.encoder, config.bridge, config.decoder, config.data)
    if not all(registry(part.family).entry(part.name).importable for part in parts_of(needed)):
        return evaluate_run(folder, alone(runtime, precision="fp32"))
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES}
    runtime.release()  # leaves the device's memory to the new process
    device = "cpu" if runtime.device.type == "cpu" else str(runtime.device)  # not cpu:0
    done = subprocess.run(
        [sys.executable, "-m", "rpiae.evaluation", str(folder), device],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RunError(
            f"the tokenizer is trained and saved in {folder / 'tokenizer'}, but its evaluation in "
            f"a new process failed: {lines[-1]}"
        )
    return json.loads(done.stdout)  # type: ignore[no-any-return]  # JSON


def _stage_row(event: events.StageEnded | events.StageSkipped) -> dict[str, Any]:
    if isinstance(event, events.StageSkipped):
        return {"name": event.stage, "skipped": event.reason}
    return {
        "name": event.stage,
        "steps": event.steps,
        "seconds": event.seconds,
        "images_per_second": event.images_per_second,
        "parameters": event.trained,
        "digests": dict(event.digests),
        **event.metrics,
    }


def _overall_rate(stages: list[dict[str, Any]]) -> float:
    ran = [stage for stage in stages if stage.get("seconds")]
    images = sum(stage["images_per_second"] * stage["seconds"] for stage in ran)
    seconds = sum(stage["seconds"] for stage in ran)
    return float(images / seconds) if seconds else 0.0
