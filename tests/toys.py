"""Toy parts and runs shared by the contract and unit tests."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from rpiae import runs
from rpiae.core.config.recipe import StageConfig
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.registry.registry import registry
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.task import TrainerInputs
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.tasks.tokenizer.task import TokenizerTask
from rpiae.testing import SyntheticClips, SyntheticImages

ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "width": 32, "depth": 2, "num_heads": 2},
    "vit-patch-stem": {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "stem": "patch"},
    "open-clip": {
        "name": "open-clip",
        "model": "ViT-B-16",
        "pretrained": False,
        "model_args": {"width": 32, "layers": 2, "head_width": 16, "image_size": 32},
        "image_size": 32,
    },
    "open-clip-siglip": {
        "name": "open-clip",
        "model": "ViT-B-16-SigLIP/webli",
        "pretrained": False,
        "add_final_mean": True,
        "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32},
        "image_size": 32,
    },
    "timm": {
        "name": "timm",
        "model": "vit_small_patch14_reg4_dinov2",
        "pretrained": False,
        "model_args": {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 28},
        "image_size": 32,
    },
    "timm-layers": {
        "name": "timm",
        "model": "vit_base_patch16_224",
        "pretrained": False,
        "layers": [0, 2],
        "model_args": {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32},
        "image_size": 32,
    },
    "timm-rotary": {
        "name": "timm",
        "model": "vit_small_patch16_dinov3",
        "pretrained": False,
        "model_args": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32},
        "image_size": 32,
    },
}
BRIDGES: dict[str, str | dict[str, Any]] = {
    "vb4": "vb4",
    "identity": "identity",
    "linear4": "linear4",
    "conv4": {"name": "conv", "latent_channels": 4, "width": 16, "blocks": 1},
    "conv-kl4": {"name": "conv-kl", "latent_channels": 4, "width": 16, "blocks": 1},
    "conv-kl-half": {
        "name": "conv-kl", "latent_channels": 4, "width": 16, "blocks": 1, "downsampling": 2,
    },
    "tvb4x4": {
        "name": "temporal-variational", "latent_channels": 4, "temporal_downsampling": 4,
        "decoder_layers": 1, "depth": 1, "window": 2,
    },
    "temporal-linear": {
        "name": "temporal", "image": "linear4", "temporal_downsampling": 2, "depth": 1,
    },
    "temporal-conv-kl-half": {
        "name": "temporal", "temporal_downsampling": 8, "depth": 1, "window": 2,
        "image": {
            "name": "conv-kl", "latent_channels": 4, "width": 16, "blocks": 1, "downsampling": 2,
        },
    },
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64},
    "conv": {"name": "conv", "width": 32, "depth": 1, "blocks": 1},
    "video-vit": {
        "name": "video", "every": 1, "window": 3,
        "image": {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "mlp_hidden": 64},
    },
    "video-conv": {
        "name": "video", "window": 3,
        "image": {"name": "conv", "width": 32, "depth": 1, "blocks": 1},
    },
}  # fmt: skip
GENERATORS: dict[str, dict[str, Any]] = {
    "dit": {"name": "dit", "width": 32, "depth": 2, "num_heads": 2},
    "dit-plain": {
        "name": "dit",
        "width": 32,
        "depth": 1,
        "num_heads": 2,
        "patch": 2,
        "qk_norm": False,
        "rms_norm": False,
        "swiglu": False,
        "rope": False,
        "positions": "fixed",
        "shifts": False,
        "train_frequencies": False,
    },
    "dit-head": {
        "name": "dit",
        "width": 32,
        "depth": 2,
        "num_heads": 2,
        "rms_norm": False,
        "positions": "none",
        "head_width": 48,
        "head_depth": 1,
        "head_heads": 3,
        "init": "default",
    },
}
CRITICS: dict[str, dict[str, Any]] = {
    "dino": {
        "name": "dino",
        "backbone": {"name": "vit", "width": 32, "depth": 3, "num_heads": 2},
        "layers": [0, 1],
        "image_size": 24,
        "kernel": 3,
    },
    "patch": {"name": "patch", "width": 8, "halvings": 2},
}
#: Every loss in one stage, against the critic with a backbone.
EVERY_TERM = "every-term"
RECIPES = (
    *(p.name for p in registry("recipes").presets() if p.part != "generator"), EVERY_TERM,
)  # fmt: skip
#: What is learnt from: images, or clips of so many frames.
DATA = {"images": 1, "clips": 5}


#: Losses that would load weights, or play against a critic that does, as toys.
LOSSES: dict[str, dict[str, Any]] = {
    "lpips": {"name": "lpips", "pretrained": False},
    "adversarial": {"name": "adversarial", "critic": {"name": "patch", "width": 4, "halvings": 1}},
}


def toy_recipe(name: str) -> dict[str, Any]:
    """A built-in recipe with all its terms, as toys and from the first step on."""
    if name == EVERY_TERM:
        return _every_term()
    tree = copy.deepcopy(registry("recipes").select(name).tree)
    for stage in tree["stages"]:
        for term in stage["terms"]:
            loss = term["loss"]
            term["loss"] = LOSSES.get(loss if isinstance(loss, str) else loss["name"], loss)
            term.pop("start_epochs", None)
    return tree


def _every_term() -> dict[str, Any]:
    adaptive = {"layer": "decoder", "eps": 1e-6}
    terms = [
        {"loss": LOSSES.get(entry.name, entry.name), "optional": True, "reference": True}
        for entry in registry("losses").entries()
        if entry.name != "adversarial"
    ]
    game = {"name": "adversarial", "critic": CRITICS["dino"], "objective": "non-saturating"}
    stage = {
        "name": "all", "train": ["encoder", "bridge", "decoder"], "posterior": "sample",
        "noise": 0.1, "epochs": 1.0, "terms": [*terms, {"loss": game, "adaptive": adaptive}],
    }  # fmt: skip
    return {"name": EVERY_TERM, "stages": [stage]}


def toy_run(
    folder: Path,
    encoder: str,
    bridge: str,
    decoder: str,
    recipe: str | dict[str, Any],
    *overrides: str,
    data: str = "images",
) -> TrainerInputs:
    tree = {
        "encoder": ENCODERS[encoder], "bridge": BRIDGES.get(bridge, bridge),
        "decoder": DECODERS[decoder],
    }  # fmt: skip
    if isinstance(recipe, str):
        recipe = toy_recipe(recipe)
    resolved = runs.resolve(tree | {"recipe": recipe}, overrides=overrides)
    model = build_tokenizer(resolved.tokenizer, seed=0)
    pivot = build_tokenizer(resolved.tokenizer, seed=0).encoder

    def evaluate(current: RPiAE, stage: StageConfig) -> dict[str, float]:
        return {"psnr": 0.0}

    frames = DATA[data]
    return TrainerInputs(
        task=TokenizerTask(model, replica=PivotReplica.beside(model, pivot), evaluate=evaluate),
        recipe=resolved.config.recipe, folder=folder, seed=0,
        data=SyntheticImages(32) if frames == 1 else SyntheticClips(32, frames),
        runtime=Runtime(device="cpu", precision="fp32"),
    )  # fmt: skip
