"""Toy generators in folders, with the tokenizers that they are of."""

from __future__ import annotations

from pathlib import Path

import torch

from rpiae.core.config.generation import FlowConfig
from rpiae.core.model.build import build
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.generator_folders import build_generator, save_generator
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.core.model.tokenizer import RPiAE
from rpiae.generators.configs import DitConfig
from rpiae.latents.encoding import tokenizer_digest
from tests.toys import DECODERS, ENCODERS

NAMES = ("cat", "dog", "ship")

#: Latents of the toy tokenizer, of images of 32 pixels.
SHAPE = (4, 2, 2)


def toy_tokenizer(seed: int = 0) -> RPiAE:
    model = build(encoder=ENCODERS["vit"], bridge="vb4", decoder=DECODERS["vit"], seed=seed)
    model.trained_size = 32
    return model.eval()


def toy_generator(
    tokenizer: RPiAE,
    *,
    seed: int = 0,
    names: tuple[str, ...] = NAMES,
    where: str = "",
    flow: FlowConfig | None = None,
    std: float = 1.0,
) -> LatentGenerator:
    """A generator whose weights are drawn, so that classes differ, as it would not at the start."""
    config = DitConfig(
        name="dit", latent_channels=SHAPE[0], rows=SHAPE[1], columns=SHAPE[2],
        num_classes=len(names), width=16, depth=1, num_heads=2, frequencies=8,
    )  # fmt: skip
    facts = LatentFacts(
        shape=SHAPE, tokenizer=where, tokenizer_sha256=tokenizer_digest(tokenizer),
        num_classes=len(names), label_names=names,
    )  # fmt: skip
    norms = {}
    if flow is not None and flow.normalisation == "channel":
        norms = {"mean": torch.full((4, 1, 1), 0.5), "std": torch.full((4, 1, 1), std)}
    model = build_generator(config, flow=flow or FlowConfig(), facts=facts, seed=seed, **norms)
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draws)
    return model.requires_grad_(False).eval()


def write_run(
    folder: Path, *, seed: int = 0, names: tuple[str, ...] = NAMES, tokenizer_seed: int = 0
) -> Path:
    """A run's folder with a generator and, beside it, its tokenizer."""
    save_tokenizer(toy_tokenizer(tokenizer_seed), folder / "tokenizer")
    tokenizer = load_tokenizer(folder / "tokenizer")
    made = toy_generator(tokenizer, seed=seed, names=names, where=str(folder / "tokenizer"))
    save_generator(made, folder / "generator")
    return folder
