"""A check that a part builds into a tokenizer that trains, saves and loads."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from attrs import evolve, fields_dict
from torch import Tensor

from rpiae import runs
from rpiae.core.config.tree import Tree
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.contracts import Dataset
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.resolve import ResolvedRun
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.core.training.task import TrainerInputs
from rpiae.core.training.trainer import train
from rpiae.data.synthetic import SyntheticClips, SyntheticImages
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.tasks.tokenizer.task import TokenizerTask

#: Small parts that stand in for those that are not under test.
ENCODER: Tree = {"name": "vit", "width": 32, "depth": 2, "num_heads": 2}
BRIDGE = "vb4"
DECODER: Tree = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64}

#: Optimiser steps per stage: the learning rate of the very first one may be zero.
STEPS = 2


def check_builds(
    *,
    encoder: str | Tree = ENCODER,
    bridge: str | Tree = BRIDGE,
    decoder: str | Tree = DECODER,
    losses: Sequence[str] = (),
    data: str | Tree | None = None,
    recipe: str = "quick",
    without: Sequence[str] = (),
    frames: int = 1,
) -> None:
    """Parts build, take optimiser steps in every stage of a recipe, and load again from a folder.

    The encoder starts at random. Images, or clips, are made up, of four latent positions a side.

    Args:
        encoder, bridge, decoder: registered names, or tables with a name; small.
        losses: registered losses that are added to every stage which offers what they need.
        data: a registered dataset in place of made-up images.
        recipe: whose stages are tried; what its losses load must be there.
        without: losses that are left out of it.
        frames: of each made-up clip; with 1 they are images.

    Raises:
        AssertionError: with what is wrong.
        RpiaeError: if the parts do not resolve.
    """
    resolved = _resolved(encoder, bridge, decoder, losses, data, recipe, without)
    used = {t.loss.label for stage in resolved.config.recipe.stages for t in stage.terms}
    unused = sorted(set(losses) - used)
    assert not unused, f"no stage of recipe {recipe!r} offers what {', '.join(unused)} needs"
    model = build_tokenizer(resolved.tokenizer, seed=0)
    before = {role: _parameters(model, role) for role in model.roles}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trained = _train(resolved, model, folder, frames)
        for role in sorted(trained):
            after = _parameters(model, role)
            still = [n for n, value in before[role].items() if torch.equal(value, after[n])]
            assert len(still) < len(after) or not after, f"training leaves the {role} as it was"
        _check_round_trip(model, folder / "tokenizer", frames)


def _resolved(
    encoder: str | Tree,
    bridge: str | Tree,
    decoder: str | Tree,
    losses: Sequence[str],
    data: str | Tree | None,
    recipe: str,
    without: Sequence[str],
) -> ResolvedRun:
    stages = copy.deepcopy(registry("recipes").select(recipe).tree)
    for stage in stages["stages"]:
        stage["terms"] = [
            *(t | {"optional": True} for t in stage["terms"] if _loss(t) not in without),
            *({"loss": loss, "optional": True} for loss in losses),
        ]
    tree: Tree = {
        "encoder": encoder, "bridge": bridge, "decoder": decoder,
        "recipe": stages,
    }  # fmt: skip
    if data is not None:
        tree["data"] = data
    short = (f"recipe.max_steps={STEPS}", "recipe.batch_size=2", "encoder.pretrained=false")
    return runs.resolve(tree, overrides=short, source="check_builds")


def _loss(term: Tree) -> str:
    loss = term["loss"]
    return str(loss["name"] if isinstance(loss, dict) else loss)


def _train(resolved: ResolvedRun, model: RPiAE, folder: Path, frames: int) -> set[str]:
    """Train in place; the roles that were trained."""
    pivot = build_tokenizer(resolved.tokenizer, seed=0).encoder
    assert isinstance(pivot, torch.nn.Module)
    data = _data(resolved, frames)
    replica = PivotReplica.beside(model, pivot)
    inputs = TrainerInputs(
        task=TokenizerTask(model, replica=replica, evaluate=lambda *_: {}),
        recipe=resolved.config.recipe, data=data, folder=folder, seed=0,
        runtime=Runtime(device="cpu", precision="fp32"),
    )  # fmt: skip
    trained: set[str] = set()
    for event in train(inputs):
        if isinstance(event, events.StageStarted):
            trained |= {role for role, row in event.report.roles.items() if row.trained}
        elif isinstance(event, events.StepDone):
            assert event.gradient_norms, f"stage {event.stage} has no gradients"
    assert trained, "no stage has anything to train"
    return trained


def _data(resolved: ResolvedRun, frames: int) -> Dataset:
    tokenizer = resolved.tokenizer
    size = 4 * tokenizer.output_patch * tokenizer.bridge_facts.downsampling
    config = resolved.config.data
    if config is None:
        return SyntheticImages(size) if frames == 1 else SyntheticClips(size, frames)
    if "image_size" in fields_dict(type(config)):
        config = evolve(config, image_size=size)  # type: ignore[call-arg]  # a field of most datasets
    data = config.build()
    assert isinstance(data, Dataset)
    return data


def _parameters(model: RPiAE, role: str) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.roles[role].named_parameters()}


def _check_round_trip(model: RPiAE, folder: Path, frames: int) -> None:
    """The saved tokenizer is the same, also for an image or a clip that is neither square nor a
    multiple."""
    loaded = load_tokenizer(save_tokenizer(model.eval(), folder))
    side = model.decoder.patch[1] * model.bridge.downsampling
    time = () if frames == 1 else (frames + 1,)
    images = torch.rand(
        1, 3, *time, 3 * side - 1, 4 * side, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        made, again = model.reconstruct(images), loaded.reconstruct(images)
    assert made.shape == images.shape, f"{tuple(images.shape)} comes back as {tuple(made.shape)}"
    assert torch.equal(made, again), "what is loaded reconstructs otherwise than what was saved"
