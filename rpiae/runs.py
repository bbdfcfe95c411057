"""A run from config to summary, as a generator of events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from rpiae.core import events
from rpiae.core.build import build_tokenizer
from rpiae.core.config import Tree, dump_toml, read_toml, unparse
from rpiae.core.contracts import Dataset
from rpiae.core.errors import CheckpointError, RunError, UsageError
from rpiae.core.objective import PivotReplica
from rpiae.core.pivot import inherit_pivot, read_pivot, write_pivot
from rpiae.core.plan import Plan, make_plan
from rpiae.core.recipe import RunConfig, StageConfig
from rpiae.core.resolve import ResolvedRun, resolve_run
from rpiae.core.runtime import Runtime
from rpiae.core.tokenizer import RPiAE, load_state, tokenizer_folder
from rpiae.core.trainer import TrainerInputs, train
from rpiae.evaluation.reconstruction import stage_metrics
from rpiae.recording import Recorder

#: The run that nothing was said about; presets' companions come before all but the encoder.
DEFAULTS: Mapping[str, str] = {
    "encoder": "tiny",
    "bridge": "vb64",
    "decoder": "vit-b",
    "recipe": "rpiae",
}

CONFIG_FILE = "config.toml"
STAGES_FILE = "stages.json"
SUMMARY_FILE = "summary.json"


def resolve(
    tree: Tree | None = None,
    *,
    overrides: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    source: str = "the run",
) -> ResolvedRun:
    """Resolve a run with the toolkit's defaults; see ``rpiae.core.resolve.resolve_run``."""
    return resolve_run(
        tree or {}, defaults=DEFAULTS, overrides=overrides, without=without, source=source
    )


def plan(resolved: ResolvedRun) -> Plan:
    """The plan of a resolved run, with its data's length where the data are there.

    Raises:
        DataError: if data were named and cannot be used.
    """
    data = resolved.config.data
    num_images = data.build().num_images if data is not None else None
    return make_plan(resolved, num_images=num_images)


def check_startable(resolved: ResolvedRun) -> None:
    """Whether a planned run can begin.

    Raises:
        UsageError: if data are missing or the recipe names losses nobody registered.
    """
    recipe = resolved.config.recipe.name
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


def run(config: RunConfig | ResolvedRun | Tree) -> Iterator[events.Event]:
    """Plan, train and evaluate; everything lands in ``config.out``.

    Args:
        config: a run: a config, a tree as in a TOML file, or one already resolved.

    Yields:
        ``Planned``, the trainer's events, and ``RunEnded`` (or ``Interrupted`` as the last).

    Raises:
        RpiaeError: see the subclasses; nothing already saved is lost.
    """
    resolved = config if isinstance(config, ResolvedRun) else _resolved(config)
    check_startable(resolved)
    resolved = with_folder(resolved)
    folder = Path(resolved.config.out)
    data = _dataset(resolved.config)
    yield events.Planned(plan=make_plan(resolved, num_images=data.num_images))
    _claim(folder)
    model = _initial_model(resolved, data, folder)
    _write(folder / CONFIG_FILE, dump_toml(resolved.config))
    yield from _trained(resolved, model, data, resume=False)


def resume(folder: str | os.PathLike[str]) -> Iterator[events.Event]:
    """Go on with a run from its newest checkpoint.

    Args:
        folder: the run's folder.

    Raises:
        CheckpointError: if it is not a run's folder, or its checkpoints cannot be read.
    """
    path = Path(folder)
    if not (path / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} is not a run's folder: there is no {CONFIG_FILE} in it")
    tree = read_toml(path / CONFIG_FILE)
    resolved = resolve_run(
        tree | {"out": str(path)}, defaults=DEFAULTS, source=str(path / CONFIG_FILE)
    )
    data = _dataset(resolved.config)
    yield events.Planned(plan=make_plan(resolved, num_images=data.num_images))
    model = build_tokenizer(
        resolved.tokenizer, seed=resolved.config.seed, trained_size=data.image_size
    )
    pivot = read_pivot(path, resolved.config.encoder)
    load_state(model.roles["encoder"], pivot.state_dict(), source=str(path))
    if resolved.config.init:
        _load_init(model, resolved.config.init)
    yield from _trained(resolved, model, data, resume=True)


def with_folder(resolved: ResolvedRun) -> ResolvedRun:
    """The run with an output folder: the given one, or a new one under ``runs/``."""
    if resolved.config.out:
        return resolved
    config = resolved.config
    parts = (config.encoder, config.bridge, config.decoder)
    stem = "-".join([*(part.label for part in parts), config.recipe.name])
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
    data = config.data.build()
    assert isinstance(data, Dataset)
    return data


def _claim(folder: Path) -> None:
    if (folder / CONFIG_FILE).exists():
        raise UsageError(
            f"{folder} already holds a run: go on with --resume {folder}, or name another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror}. Name another --out"
        ) from None


def _initial_model(resolved: ResolvedRun, data: Dataset, folder: Path) -> RPiAE:
    """The model at step 0, with the run's pivot written down."""
    config = resolved.config
    model = build_tokenizer(
        resolved.tokenizer, pretrained=True, seed=config.seed, trained_size=data.image_size
    )
    if config.init and inherit_pivot(folder, _run_folder(config.init)):
        _load_init(model, config.init)
        return model
    write_pivot(folder, model.roles["encoder"])
    if config.init:
        _load_init(model, config.init)
    return model


def _run_folder(init: str) -> Path:
    found = tokenizer_folder(init)
    return found.parent if found.name == "tokenizer" else found


def _load_init(model: RPiAE, init: str) -> None:
    source = RPiAE.from_pretrained(init)
    load_state(model, source.state_dict(), source=str(init))


def _trained(
    resolved: ResolvedRun, model: RPiAE, data: Dataset, *, resume: bool
) -> Iterator[events.Event]:
    config = resolved.config
    folder = Path(config.out)
    started = time.perf_counter()
    runtime = Runtime(device=config.device, precision=config.precision)
    yield events.Notice(text=f"{runtime.precision} on {runtime.device}: {runtime.reason}")
    held_out = data.held_out()
    pivot = read_pivot(folder, config.encoder).to(runtime.device)
    replica = PivotReplica(pivot, output_patch=model.decoder.patch)

    def evaluate(current: RPiAE, stage: StageConfig) -> Mapping[str, float]:
        return stage_metrics(
            current, stage, held_out=held_out, replica=replica, autocast=runtime.autocast
        )

    inputs = TrainerInputs(
        model=model, recipe=config.recipe, data=data, runtime=runtime, replica=replica,
        evaluate=evaluate, folder=folder, seed=config.seed,
    )  # fmt: skip
    stages = _finished_stages(folder) if resume else []
    with Recorder(folder, resume=resume) as recorder:
        for event in train(inputs, resume=resume):
            recorder.record(event)
            if isinstance(event, (events.StageEnded, events.StageSkipped)):
                stages = [s for s in stages if s["name"] != event.stage] + [_stage_row(event)]
                _write(folder / STAGES_FILE, json.dumps(stages, indent=2) + "\n")
            yield event
            if isinstance(event, events.Interrupted):
                return
        recorder.draw_curves()
    model.save_pretrained(folder / "tokenizer")
    summary = {
        **_evaluated_in_new_process(folder),
        "seconds": sum(stage.get("seconds", 0.0) for stage in stages),
        "images_per_second": _overall_rate(stages),
        "wall_seconds": time.perf_counter() - started,
        "parameters": {
            **{
                role: sum(p.numel() for p in part.parameters())
                for role, part in model.roles.items()
            },
            "total": sum(p.numel() for p in model.parameters()),
        },
        "latent": list(_latent_shape(model, data.image_size)),
        "image_size": data.image_size,
        "precision": runtime.precision,
        "device": str(runtime.device),
        "stages": stages,
        "tokenizer": str(folder / "tokenizer"),
    }
    summary["verdict"] = verdict(summary)
    _write(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    yield events.RunEnded(summary=summary, folder=folder)


def verdict(summary: Mapping[str, Any]) -> str:
    """How the tokenizer stands against its two yardsticks, in words."""
    ours, flat, linear = (summary[k] for k in ("psnr", "psnr_mean_colour", "psnr_pca"))
    if ours is None:
        return "The reconstruction is exact on the held-out images."
    against_flat = f"{abs(ours - flat):.1f} dB {'above' if ours > flat else 'BELOW'} patches of one mean colour"
    if linear is None:
        return (
            f"{against_flat}. A linear code of this latent's size is lossless here, so the latent "
            "does not compress; no tokenizer can beat that yardstick."
        )
    place = "above" if ours > linear else "below"
    return (
        f"{against_flat}, and {abs(ours - linear):.1f} dB {place} the best linear code of the same "
        "size (PCA), which keeps pixels and no semantics."
    )


def _evaluated_in_new_process(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "rpiae.evaluation", str(folder)], capture_output=True, text=True
    )
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
        **event.metrics,
    }


def _finished_stages(folder: Path) -> list[dict[str, Any]]:
    path = folder / STAGES_FILE
    return json.loads(path.read_text()) if path.is_file() else []


def _overall_rate(stages: list[dict[str, Any]]) -> float:
    ran = [stage for stage in stages if stage.get("seconds")]
    images = sum(stage["images_per_second"] * stage["seconds"] for stage in ran)
    seconds = sum(stage["seconds"] for stage in ran)
    return float(images / seconds) if seconds else 0.0


def _latent_shape(model: RPiAE, size: int) -> tuple[int, int, int]:
    assert model.config is not None
    facts = model.config.bridge_facts
    _, h, w = model.geometry(size, size).grid
    return facts.latent_channels, h // facts.downsampling, w // facts.downsampling


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.rename(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
