"""Toy parts and runs shared by the contract and unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rpiae import runs
from rpiae.core.build import build_tokenizer
from rpiae.core.objective import PivotReplica
from rpiae.core.recipe import StageConfig
from rpiae.core.registry import registry
from rpiae.core.runtime import Runtime
from rpiae.core.tokenizer import RPiAE
from rpiae.core.trainer import TrainerInputs
from rpiae.testing import SyntheticImages

ENCODERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "width": 32, "depth": 2, "num_heads": 2},
    "vit-patch-stem": {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "stem": "patch"},
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
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64},
    "conv": {"name": "conv", "width": 32, "depth": 1, "blocks": 1},
}
RECIPES = tuple(preset.name for preset in registry("recipes").presets())


def toy_run(
    folder: Path, encoder: str, bridge: str, decoder: str, recipe: str, *overrides: str
) -> TrainerInputs:
    tree = {
        "encoder": ENCODERS[encoder], "bridge": BRIDGES.get(bridge, bridge),
        "decoder": DECODERS[decoder], "recipe": recipe,
    }  # fmt: skip
    terms = {
        term["loss"]
        for stage in registry("recipes").select(recipe).tree["stages"]
        for term in stage["terms"]
    }
    without = tuple(sorted(terms & {"lpips", "adversarial"}))
    resolved = runs.resolve(tree, overrides=overrides, without=without)
    model = build_tokenizer(resolved.tokenizer, seed=0)
    pivot = build_tokenizer(resolved.tokenizer, seed=0).encoder

    def evaluate(current: RPiAE, stage: StageConfig) -> dict[str, float]:
        return {"psnr": 0.0}

    return TrainerInputs(
        model=model, recipe=resolved.config.recipe, data=SyntheticImages(32),
        runtime=Runtime(device="cpu", precision="fp32"),
        replica=PivotReplica(
            pivot, output_patch=model.decoder.patch, downsampling=model.bridge.downsampling
        ),
        evaluate=evaluate, folder=folder, seed=0,
    )  # fmt: skip
