"""Checks of a generator against ``rpiae.core.model.generation``."""

from __future__ import annotations

from typing import NamedTuple

import torch
from attrs import evolve
from torch import Tensor, nn

from rpiae.core.config.generation import GeneratorConfig
from rpiae.core.model.generation import Generator
from rpiae.testing.modules import check_gradients, seeded, unfit

#: Standard deviation of what layers that begin at zero are moved by.
MOVED = 0.05

#: How far outputs in bf16 may lie from those in fp32, over the size of the latter.
BF16_ERROR = 0.2


class _Batch(NamedTuple):
    latents: Tensor
    time: Tensor
    labels: Tensor


def check_generator(config: GeneratorConfig) -> None:
    """A generator's facts, shapes on its own and on other grids, gradients, precision, and that time,
    label and nothing else of the batch matter.

    Args:
        config: of a small generator with classes, its wired fields filled; rows and columns differ.

    Raises:
        AssertionError: with what is wrong.
    """
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in config.build().state_dict().items()}
    module = seeded(config).eval()
    assert isinstance(module, Generator), unfit(module, Generator)
    assert shapes == {n: p.shape for n, p in module.state_dict().items()}, "meta build differs"
    for name in ("latent_channels", "num_classes"):
        said, has = getattr(config, name), getattr(module, name)
        assert said == has, f"the config says {name} = {said}, the module has {has}"
    assert config.rows
    assert config.columns
    assert config.rows != config.columns, "rows and columns are alike, and could be swapped unseen"
    _move_from_zero(module)
    ph, pw = module.patch
    own = _batch(module, config.rows, config.columns)
    for sides in (
        (config.rows, config.columns),
        (config.columns * ph, config.rows * pw),
        (config.rows + ph, config.columns + 2 * pw),
    ):
        batch = _batch(module, *sides)
        found = module(*batch)
        assert found.shape == batch.latents.shape, (
            f"{tuple(batch.latents.shape)} gives {tuple(found.shape)}"
        )
        assert found.isfinite().all()
    _check_what_matters(module, own)
    _check_bf16(module, own)
    _check_without_classes(config)
    latents = own.latents.clone().requires_grad_()
    check_gradients(module, module(latents, own.time, own.labels))
    assert latents.grad is not None, "no gradient passes to the latents"
    assert latents.grad.abs().sum() > 0


def _check_what_matters(module: nn.Module, batch: _Batch) -> None:
    assert isinstance(module, Generator)
    with torch.no_grad():
        found = module(*batch)
        assert torch.equal(found, module(*batch)), "the same input gives another output"
        alone = [module(*(each[n : n + 1] for each in batch)) for n in range(len(batch.labels))]
        torch.testing.assert_close(torch.cat(alone), found, rtol=1e-3, atol=1e-4)
        other = batch._replace(time=batch.time / 2)
        assert not torch.allclose(module(*other), found), "time does not matter"
        none = torch.full_like(batch.labels, module.num_classes)
        for labels in ((batch.labels + 1) % module.num_classes, none):
            other = batch._replace(labels=labels)
            assert not torch.allclose(module(*other), found), "the label does not matter"


def _check_bf16(module: nn.Module, batch: _Batch) -> None:
    with torch.no_grad():
        found = module(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(*batch).float()
    error = float((rough.detach() - found).norm() / found.norm())
    assert error < BF16_ERROR, f"bf16 is off by {error:.2f} of the output's size"
    torch.autograd.backward(rough.square().mean())
    wrong = [
        name
        for name, value in module.named_parameters()
        if value.grad is None or not value.grad.isfinite().all()
    ]
    assert not wrong, f"parameters without a finite gradient in bf16: {wrong}"
    module.zero_grad(set_to_none=True)


def _check_without_classes(config: GeneratorConfig) -> None:
    assert config.rows
    assert config.columns
    module = seeded(evolve(config, num_classes=0)).eval()
    assert isinstance(module, Generator)
    assert module.num_classes == 0
    latents = torch.randn(2, module.latent_channels, config.rows, config.columns)
    found = module(latents, torch.rand(2), torch.zeros(2, dtype=torch.int64))
    assert found.shape == latents.shape


def _batch(module: Generator, rows: int, columns: int) -> _Batch:
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(3, module.latent_channels, rows, columns, generator=draws)
    labels = torch.arange(3) % module.num_classes
    return _Batch(latents, torch.tensor([0.1, 0.5, 1.0]), labels)


def _move_from_zero(module: nn.Module) -> None:
    """Layers that begin at zero hide what is behind them."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            if not value.any():
                value.copy_(MOVED * torch.randn(value.shape, generator=draws))
