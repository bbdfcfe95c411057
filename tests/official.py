"""Toy files in the official layout, made without the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rpiae
from rpiae.core.model.tokenizer import RPiAE
from rpiae.interop.reference.tokenizers import write_reference
from tests.toys import DECODERS, ENCODERS

#: Images of 32 pixels on a grid of 2×2, which the encoder sees with 28.
ENCODER: dict[str, Any] = {**ENCODERS["timm"], "eps": 1e-6}


def tokenizer(seed: int = 0, *, bridge: str = "vb4", encoder: Any = None, **decoder: Any) -> RPiAE:
    """A tokenizer that the official layout has a place for, all of its weights random."""
    model = rpiae.build(
        encoder=encoder or ENCODER, bridge=bridge, decoder={**DECODERS["vit"], **decoder},
        pretrained=False, seed=seed,
    )  # fmt: skip
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=draws))
    return model.eval()


def official(folder: Path, model: RPiAE | None = None) -> Path:
    """Such a tokenizer's folder in the official layout; its weights are ``rpiae.pt``."""
    write_reference(model or tokenizer(), folder)
    return folder


def alone(folder: Path, source: Path) -> Path:
    """The weights of such a folder in another, where no config lies beside them."""
    folder.mkdir()
    file = folder / "rpiae.pt"
    file.write_bytes((source / "rpiae.pt").read_bytes())
    return file


def state_of(folder: Path) -> dict[str, Tensor]:
    """Its tensors."""
    state: dict[str, Tensor] = torch.load(folder / "rpiae.pt", weights_only=True)
    return state


def decoder_alone(path: Path, state: dict[str, Tensor]) -> Path:
    """A decoder as RAE ships it."""
    names = (n for n in state if n.startswith("decoder."))
    torch.save({n.removeprefix("decoder."): state[n] for n in names}, path)
    return path
