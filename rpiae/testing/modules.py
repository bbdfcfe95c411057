"""What the checks of several families ask of a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rpiae.core.config.generation import GeneratorConfig
from rpiae.core.config.parts import (
    BridgeConfig,
    CriticConfig,
    DecoderConfig,
    EncoderConfig,
)
from rpiae.core.model.contracts import Features
from rpiae.core.model.geometry import patch_triple


def seeded(
    config: EncoderConfig | BridgeConfig | DecoderConfig | CriticConfig | GeneratorConfig,
) -> nn.Module:
    """A part as it begins, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = config.build()
    assert isinstance(module, nn.Module)
    return module


def check_patch(patch: object, described: int, *, frames: int = 1) -> None:
    """A part's patch is what its config describes."""
    wanted = (frames, *patch_triple(described)[1:])
    assert patch == wanted, f"patch is {patch}, not (frames, rows, columns) = {wanted}"


def check_features(features: Features, shape: tuple[int, ...], grid: tuple[int, int, int]) -> None:
    """Features have this shape, on this grid."""
    assert isinstance(features, Features)
    assert tuple(features.tokens.shape) == shape, f"{tuple(features.tokens.shape)}, not {shape}"
    assert features.grid == grid, f"grid {features.grid}, not {grid}"


def check_gradients(module: nn.Module, output: Tensor) -> None:
    """Every parameter takes part; needs weights that are not zero behind each of them."""
    if not any(True for _ in module.parameters()):
        return
    torch.autograd.backward([(output * torch.randn(output.shape)).sum()])
    unused = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, f"parameters without a gradient: {unused}"


def unfit(part: object, contract: type) -> str:
    """What a part lacks of a contract, in words."""
    wanted = [n for n in dir(contract) if not n.startswith("_")] + list(contract.__annotations__)
    lacks = sorted({n for n in wanted if not hasattr(part, n)})
    return f"{type(part).__name__} lacks {', '.join(lacks)} of {contract.__name__}"
