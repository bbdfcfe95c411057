"""What a finished run says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpiae.core.config.parts import parts_of
from rpiae.core.config.recipe import RunConfig
from rpiae.core.errors import CheckpointError, RunError
from rpiae.core.model.contracts import ClipDataset, Dataset
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.files import write_text
from rpiae.core.runtime.processes import LAUNCHER_VARIABLES, Runtime
from rpiae.core.training import events
from rpiae.core.training.checkpoint import digest
from rpiae.evaluation.engine import alone
from rpiae.evaluation.final import evaluate_run
from rpiae.evaluation.pixels import EXACT
from rpiae.runs.folder import SUMMARY_FILE
from rpiae.runs.stages import machine, run_address, trained_as


def write_summary(
    config: RunConfig,
    model: RPiAE,
    data: Dataset,
    runtime: Runtime,
    stages: list[dict[str, Any]],
    *,
    wall_seconds: float,
) -> dict[str, Any]:
    """Measure a finished run's saved tokenizer, and write all of it into ``summary.json``.

    Args:
        config: the run.
        model: its tokenizer, saved.
        data: what it was trained on.
        runtime: where.
        stages: a row per stage, see ``stage_row``.
        wall_seconds: since the run began or went on.
    """
    folder = Path(config.out)
    on = machine(runtime.device, runtime.num_processes)
    counts = {role: sum(p.numel() for p in m.parameters()) for role, m in model.roles.items()}
    summary = {
        **evaluated(config, folder, runtime),
        "seconds": sum(stage.get("seconds", 0.0) for stage in stages),
        "images_per_second": _overall_rate(stages),
        "wall_seconds": wall_seconds,
        "parameters": {**counts, "total": sum(p.numel() for p in model.parameters())},
        "latent": list(model.latent_shape(data.image_size, data.image_size)),
        "image_size": data.image_size,
        "num_images": data.num_images,
        "frames": data.frames if isinstance(data, ClipDataset) else None,
        "precision": runtime.precision,
        "device": str(runtime.device),
        "processes": runtime.num_processes,
        "stages": stages,
        "tokenizer": str(folder / "tokenizer"),
        "address": finished_address(config, machine=on),
    }
    summary["verdict"] = verdict(summary)
    write_text(folder / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    return summary


def keep_latent_norm(model: RPiAE, folder: Path) -> None:
    """Keep the ``latent_norm`` of a finished run that is only told again: it is of the same latents."""
    try:
        saved = load_tokenizer(folder)
    except CheckpointError:
        return
    mean, std = saved.latent_mean, saved.latent_std
    saved.latent_mean = saved.latent_std = None
    if digest(saved.state_dict()) == digest(model.state_dict()):
        model.latent_mean, model.latent_std = mean, std


def finished_address(config: RunConfig, *, machine: str) -> str:
    """A finished run's address; nothing where it was not trained as its config says from end to end."""
    trained = trained_as(config, len(config.recipe.stages) - 1, machine=machine)
    return run_address(config) if trained else ""


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


def evaluated(config: RunConfig, folder: Path, runtime: Runtime) -> dict[str, Any]:
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


def stage_row(event: events.StageEnded | events.StageSkipped) -> dict[str, Any]:
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
