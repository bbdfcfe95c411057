"""The check of a loss against ``rpiae.core.model.contracts``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rpiae.bridges.posterior import DiagonalGaussian
from rpiae.core.config.parts import LossConfig
from rpiae.core.model.contracts import NEEDS, Encoder, Features, StepContext
from rpiae.core.model.generation import FlowContext
from rpiae.core.runtime.draws import StepRandomness
from rpiae.encoders.configs import VitEncoderConfig
from rpiae.tasks.tokenizer.replica import PivotReplica
from rpiae.testing.modules import seeded, unfit

#: What stands for a gradient: tensors of a step, and the needs of which one has to name it.
GRADIENTS = {
    "reconstruction": frozenset({"pixels"}),
    "tokens": frozenset({"features"}),
    "decoded": frozenset({"decoded_features"}),
    "moments": frozenset({"gaussian", "latent"}),
    "latent": frozenset({"latent"}),
}

#: Frames of the clip that a loss is tried on.
FRAMES = 5

#: Rows and columns of tokens.
ROWS, COLUMNS = 4, 6


def check_loss(config: LossConfig, replica_encoder: nn.Module | None = None) -> None:
    """A loss is a finite scalar that depends on something trainable, and declares known needs; its
    gradient reaches nothing but these. So it is on images and on clips, and the same on images and on
    clips of one frame; one that needs ``velocity``, of generators, is on latents of images.

    Args:
        config: the loss.
        replica_encoder: stands for the pivot; a small ViT where it is not given.
    """
    needs = config.needs
    assert needs <= set(NEEDS), f"unknown needs: {sorted(needs - set(NEEDS))}"
    if replica_encoder is None:
        replica_encoder = seeded(VitEncoderConfig(width=32, depth=2, num_heads=2))
    assert isinstance(replica_encoder, Encoder), unfit(replica_encoder, Encoder)
    loss = config.build()
    if "velocity" in needs:
        _check_on_velocities(loss)
        return
    clips = _tensors(replica_encoder, FRAMES)
    frame = {name: _first(name, values) for name, values in clips.items()}
    image = {
        name: values.squeeze(2) if name in ("images", "reconstruction") else values
        for name, values in frame.items()
    }
    values = []
    for given, frames in ((clips, FRAMES), (frame, 1), (image, 1)):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
        value = loss(_context(leaves, replica_encoder, frames))
        assert value.shape == (), "a loss is a scalar"
        assert math.isfinite(value.item())
        _check_reach(value, leaves, needs)
        values.append(value.item())
    assert values[1] == values[2], (
        f"it is {values[1]} on clips of one frame and {values[2]} on the same as images"
    )


def _check_on_velocities(loss: Callable[[FlowContext], Tensor]) -> None:
    """It is a finite scalar, whose gradient reaches the predicted velocity."""
    latents, noise, predicted = torch.randn(3, 2, 4, ROWS, COLUMNS).unbind()
    predicted.requires_grad_()
    time = torch.tensor([0.2, 0.9])
    t = time.view(-1, 1, 1, 1)
    context = FlowContext(
        latents=latents, noise=noise, time=time, noised=(1 - t) * latents + t * noise,
        labels=torch.tensor([0, 1]), predicted=predicted, velocity=noise - latents,
        draws=StepRandomness(0, "check", 0, (0, 1)),
    )  # fmt: skip
    value = loss(context)
    assert value.shape == (), "a loss is a scalar"
    assert math.isfinite(value.item())
    torch.autograd.backward(value)
    assert predicted.grad is not None, "no gradient reaches the predicted velocity"
    assert predicted.grad.abs().sum() > 0


def _tensors(encoder: Encoder, frames: int) -> dict[str, Tensor]:
    """What a step on clips is made of, at random."""
    images = torch.rand(2, 3, frames, ROWS * encoder.patch[1], COLUMNS * encoder.patch[2])
    return {
        "images": images,
        "reconstruction": torch.rand(images.shape),
        "tokens": torch.randn(2, frames * ROWS * COLUMNS, encoder.width),
        "decoded": torch.randn(2, frames * ROWS * COLUMNS, encoder.width),
        "moments": torch.randn(2, 4, frames, ROWS, COLUMNS),
        "latent": torch.randn(2, 1, frames, ROWS, COLUMNS),
    }


def _first(name: str, values: Tensor) -> Tensor:
    """Those of the first frame."""
    if name in ("tokens", "decoded"):
        return values[:, : ROWS * COLUMNS]
    return values[:, :, :1]


def _context(leaves: dict[str, Tensor], encoder: nn.Module, frames: int) -> StepContext:
    assert isinstance(encoder, Encoder)
    grid = (frames, ROWS, COLUMNS)

    def expand(latent: Tensor) -> Features:
        return Features(latent.flatten(2).mT.repeat(1, 1, encoder.width), grid)

    return StepContext(
        images=leaves["images"].detach(),
        features=Features(leaves["tokens"], grid),
        posterior=DiagonalGaussian(*leaves["moments"].chunk(2, dim=1)),
        latent=leaves["latent"],
        decoded_features=Features(leaves["decoded"], grid),
        reconstruction=leaves["reconstruction"],
        replica=PivotReplica(encoder, output_patch=encoder.patch),
        draws=StepRandomness(0, "check", 0, (0, 1)),
        expand=expand,
        critic=lambda shown: shown.flatten(1),
    )


def _check_reach(value: Tensor, leaves: dict[str, Tensor], needs: frozenset[str]) -> None:
    """The gradient reaches something, and nothing that the needs do not stand for."""
    torch.autograd.backward(value)
    assert any(leaf.grad is not None for leaf in leaves.values()), "nothing receives a gradient"
    for name, sources in GRADIENTS.items():
        reached = leaves[name].grad is not None
        assert not reached or needs & sources, (
            f"its gradient reaches the {name}, which none of its needs {sorted(needs)} stands for: the "
            f"trainer takes it only where they say so; name one of {sorted(sources)}"
        )
