"""Every attention backend on a GPU against the plain one, with gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rpiae.core.model.attention import Causal, Window, attention, choose_backend

pytestmark = pytest.mark.gpu

#: Largest error over the largest value of fp64's result: (forward, gradients), by dtype.
BOUNDS = {torch.float32: (2e-5, 5e-5), torch.bfloat16: (2e-2, 4e-2)}

#: batch, heads, queries, keys, head dimension: those of the presets, and odd ones.
SHAPES = {
    "vit-b, 256 px": (4, 12, 261, 261, 64),
    "vit-xl decoder": (2, 16, 257, 257, 72),
    "bridge": (4, 8, 256, 256, 96),
    "tiny": (8, 3, 64, 64, 32),
    "odd lengths": (2, 2, 37, 53, 40),
}


def _inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    b, heads, n, m, d = shape
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(b, heads, n, d, generator=generator)
    k, v = torch.randn(2, b, heads, m, d, generator=generator)
    return tuple(t.to(dtype).to(device) for t in (q, k, v))  # type: ignore[return-value]  # three


def _with_gradients(function: Callable[..., Tensor], qkv: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in qkv]
    out = function(*leaves)
    grads = torch.autograd.grad(out.double().square().sum(), leaves)
    return tuple(t.detach().double() for t in (out, *grads))


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhnd,bhmd->bhnm", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhnm,bhmd->bhnd", weights.softmax(dim=-1), v)


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _needs(backend: str, card: torch.device) -> None:
    if backend == "xformers":
        if card.type != "cuda":
            pytest.skip("xformers has no kernels for this device")
        pytest.importorskip("xformers")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("backend", ["math", "sdpa", "xformers"])
def test_backends_on_the_card(
    card: torch.device, backend: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    _needs(backend, card)
    qkv = _inputs(shape, dtype, card)
    wanted = _with_gradients(_written_out, tuple(t.double() for t in qkv))
    forward, backward = BOUNDS[dtype]
    found = _with_gradients(functools.partial(attention, backend=backend), qkv)
    bounds = (forward, backward, backward, backward)
    for name, one, other, bound in zip(("out", "q", "k", "v"), found, wanted, bounds, strict=True):
        assert _error(one, other) <= bound, f"{name}: {_error(one, other):.1e} over {bound}"


@pytest.mark.parametrize("mask", [Causal(), Causal(frame=16), Window(last=3, frame=8)], ids=str)
@pytest.mark.parametrize("sizes", [(64, 64), (37, 53)], ids=str)
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("backend", ["math", "sdpa", "xformers"])
def test_masks_on_the_card(
    card: torch.device, backend: str, dtype: torch.dtype, sizes: tuple[int, int], mask: Causal
) -> None:
    _needs(backend, card)
    qkv = _inputs((2, 3, *sizes, 64), dtype, card)
    exact = functools.partial(attention, mask=mask, backend="math")
    wanted = _with_gradients(exact, tuple(t.double() for t in qkv))
    found = _with_gradients(functools.partial(attention, mask=mask, backend=backend), qkv)
    forward, backward = BOUNDS[dtype]
    for one, other, bound in zip(found, wanted, (forward, *[backward] * 3), strict=True):
        assert _error(one, other) <= bound


@pytest.mark.parametrize("backend", ["math", "sdpa", "xformers"])
def test_more_entries_than_a_kernel_takes(card: torch.device, backend: str) -> None:
    _needs(backend, card)
    qkv = _inputs((66_000, 2, 4, 4, 16), torch.bfloat16, card)
    found = _with_gradients(functools.partial(attention, backend=backend), qkv)
    last = _with_gradients(_written_out, tuple(t[-9:].double() for t in qkv))
    forward, backward = BOUNDS[torch.bfloat16]
    for one, other, bound in zip(found, last, (forward, *[backward] * 3), strict=True):
        assert _error(one[-9:], other) <= bound


def test_the_automatic_choice_on_cuda(card: torch.device) -> None:
    if card.type != "cuda":
        pytest.skip("what is chosen on CUDA")
    choice = choose_backend(card, torch.bfloat16, 64)
    try:
        import xformers  # noqa: F401
    except ImportError:
        assert choice.name == "sdpa"
        assert "not installed" in choice.reason
    else:
        assert choice.name in ("xformers", "sdpa")
        assert choice.reason
