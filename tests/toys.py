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
BRIDGES = ("vb4", "identity")
DECODERS: dict[str, dict[str, Any]] = {
    "vit": {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64}
}
RECIPES = tuple(preset.name for preset in registry("recipes").presets())


def toy_run(
    folder: Path, encoder: str, bridge: str, decoder: str, recipe: str, *overrides: str
) -> TrainerInputs:
    tree = {
        "encoder": ENCODERS[encoder], "bridge": bridge, "decoder": DECODERS[decoder],
        "recipe": recipe,
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
        replica=PivotReplica(pivot, output_patch=model.decoder.patch),
        evaluate=evaluate, folder=folder, seed=0,
    )  # fmt: skip
