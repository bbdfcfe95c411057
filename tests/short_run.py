"""A short run in a process of its own, to be killed, starved of disk space or launched in several."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rpiae import runs
from rpiae.core.model.build import build
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.data.listed import every_image
from rpiae.latents import writing
from rpiae.latents.layout import Settings
from rpiae.runs import generating
from tests.toys import BRIDGES, DECODERS, ENCODERS
from tests.videos import moving, write

#: Forks of a process that has imported torch and computed nothing: cheap, and safe to fork.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["tests.short_run", "rpiae.core.training.trainer", "rpiae.runs.recording"]
)


def write_images(folder: Path, *, count: int = 14, size: int = 40) -> Path:
    """Random pictures; one of them damaged."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "05.png").write_bytes(b"not an image")
    return folder


def short_run(images: Path, out: Path, **recipe: Any) -> dict[str, Any]:
    """Recipe quick in small, with all that draws at random: noise, samples, crops, two workers."""
    return {
        "encoder": ENCODERS["vit"], "bridge": "vb4", "decoder": DECODERS["vit"], "seed": 3,
        "data": {"name": "folder", "path": str(images), "image_size": 32, "workers": 2,
                 "held_out": 2},
        "recipe": {"name": "quick", "batch_size": 4, "max_steps": 6, "checkpoint_every": 2,
                   "evaluate_every": 4, **recipe},
        "out": str(out), "device": "cpu", "precision": "fp32",
    }  # fmt: skip


def write_videos(folder: Path, *, count: int = 2) -> Path:
    """Short videos of several sizes; one of them damaged."""
    folder.mkdir(parents=True)
    for i in range(count):
        write(folder / f"{i}.mp4", moving(16 + i, 40, 48 + 8 * i, seed=i))
    (folder / "damaged.mp4").write_bytes(b"not a video")
    return folder


def short_video_run(videos: Path, out: Path, **recipe: Any) -> dict[str, Any]:
    """Recipe video in small, with steps of clips and of single frames."""
    return {
        "encoder": ENCODERS["vit"], "bridge": BRIDGES["tvb4x4"], "decoder": DECODERS["video-vit"],
        "seed": 3,
        "data": {"name": "videos", "path": str(videos), "frames": 5, "image_size": 16,
                 "workers": 1, "held_out": 0.3},
        "recipe": {"name": "video", "batch_size": 3, "max_steps": 3, "checkpoint_every": 1,
                   "evaluate_every": 3, **recipe},
        "out": str(out), "device": "cpu", "precision": "fp32",
    }  # fmt: skip


def write_latents(folder: Path, *, count: int = 12, labelled: bool = True, **settings: Any) -> Path:
    """Latents of labelled pictures, and beside them the pictures and the tokenizer that made them."""
    images = folder / "images"
    for i in range(count):
        below = ["red", "blue", "green"][i % 3] if labelled else ""
        path = images / below / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    tokenizer = folder / "tokenizer"
    model = build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"], pretrained=False)
    save_tokenizer(model, tokenizer)
    assert model.config is not None
    listed, fields = every_image(
        f"folder:{images}", model.config, image_size=16, overrides=("data.workers=0",)
    )
    encoded = writing.encode_dataset(
        model, listed, folder / "latents", data=fields, tokenizer=tokenizer,
        settings=Settings(**settings), runtime=Runtime(device="cpu", precision="fp32"),
    )  # fmt: skip
    for _ in encoded:
        pass
    return folder / "latents"


def short_generator_run(latents: Path, out: Path, **recipe: Any) -> dict[str, Any]:
    """Recipe flow-quick in small, normalised by position, with two averages and held-out latents."""
    return {
        "generator": {"name": "dit", "width": 16, "depth": 1, "num_heads": 2},
        "latents": str(latents), "held_out": 2, "seed": 3, "out": str(out), "device": "cpu",
        "precision": "fp32",
        "recipe": {"name": "flow-quick", "batch_size": 4, "max_steps": 6, "checkpoint_every": 2,
                   "evaluate_every": 4, "flow": {"normalisation": "position"}, **recipe},
    }  # fmt: skip


def stage_names(tree: dict[str, Any]) -> list[str]:
    """The stages of a run with a recipe that is registered."""
    recipe = registry("recipes").select(tree["recipe"]["name"])
    return [stage["name"] for stage in recipe.tree["stages"]]


ADAPTIVE = "recipe.stages[0].terms[1].adaptive={layer='encoder', warmup_steps=2}"


def train_to_the_end(tree: dict[str, Any], overrides: tuple[str, ...] = (ADAPTIVE,)) -> None:
    """Start or resume, and write the digests of all stages once they have ended."""
    out = Path(tree["out"])
    began = (out / runs.CONFIG_FILE).exists()
    if "generator" in tree:
        happened = generating.resume_generator(out) if began else generating.run_generator(tree)
    elif began:
        happened = runs.resume(out)
    else:
        happened = runs.run(runs.resolve(tree, overrides=overrides))
    with contextlib.closing(happened):
        digests = {}
        for event in happened:
            if isinstance(event, events.StageEnded):
                digests[event.stage] = dict(event.digests)
            if len(digests) == len(stage_names(tree)):
                break
    part = out / "digests.part"
    part.write_text(json.dumps(digests))
    part.rename(out / "digests.json")


def quietly(log: Path, function: Any, *arguments: Any) -> None:
    """Call a function in this process, whose output goes to a file.

    What was imported before the fork is left out of the garbage collections at the ends of stages.
    """
    gc.freeze()
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, sys.stderr.fileno())
    function(*arguments)


def digests(folder: Path) -> dict[str, dict[str, str]]:
    """The digests that ``train_to_the_end`` wrote."""
    return json.loads((folder / "digests.json").read_text())
