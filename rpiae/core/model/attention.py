"""One attention function for the whole toolkit, with interchangeable backends.

Every transformer here (encoders, bridges, decoders) computes softmax(q kᵀ · scale) v through
[`attention`][rpiae.core.model.attention.attention]. Which kernel does it is decided in this order:
the ``backend`` argument, the [`attention_backend`][rpiae.core.model.attention.attention_backend]
context, the environment variable ``RPIAE_ATTENTION``, and last the automatic choice.

* ``xformers``: memory-efficient attention, on CUDA where the package is installed.
* ``sdpa``: ``torch.nn.functional.scaled_dot_product_attention``.
* ``math``: two matrix products and a softmax in fp32 (fp64 for such tensors). It is the reference the others are tested
  against.

Under ``torch.compile`` the choice is made once per traced graph, while it is traced, and is a
constant in it: set context or environment before the first call. Left alone, it is ``sdpa`` there
instead of ``xformers``, which cannot be traced.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError, unknown
from rpiae.core.model.geometry import at_least_fp32

BACKENDS = ("math", "sdpa", "xformers")
ENVIRONMENT = "RPIAE_ATTENTION"

#: In bf16 on CPU, sdpa with its backward pass is slower than two matrix products up to about here:
#: 4.3 times at 64 tokens, 1.9 times at 256; at 1024 it is twice as fast (benchmarks/attention.py).
MOST_CPU_MATH_TOKENS = 512

_log = logging.getLogger(__name__)
_context: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "attention_backend", default=None
)


@frozen(kw_only=True)
class BackendChoice:
    """Which backend will run, and the reason in words (``rpiae doctor`` prints it)."""

    name: str
    reason: str


@contextlib.contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Use the backend ``name`` for every attention call inside the ``with`` block."""
    token = _context.set(_known(name))
    try:
        yield
    finally:
        _context.reset(token)


def attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Scaled dot-product attention, not causal and without a mask.

    Args:
        q: queries.
        k: keys, of the queries' dtype and device.
        v: values.
        scale: factor on q kᵀ; 1/√d where it is not given.
        backend: one of ``BACKENDS``; see the module's text for what applies where it is not given.

    Returns:
        The attended values, in the layout and dtype of ``q``.

    Raises:
        UsageError: if the backend's name is unknown, or an explicitly named one cannot run here.
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    # Traced with a symbolic number of tokens, this is one constant or the other, and a guard.
    tokens = 0 if k.shape[-2] <= MOST_CPU_MATH_TOKENS else MOST_CPU_MATH_TOKENS + 1
    name = _name_of_choice(
        q.device, q.dtype, q.shape[-1], backend, tokens, torch.is_grad_enabled(),
        torch.compiler.is_compiling(),
    )  # fmt: skip
    attended: Tensor = _IMPLEMENTATIONS[name](q, k, v, scale)
    return attended


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch has no types for it
def _name_of_choice(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    backend: str | None,
    num_tokens: int,
    gradients: bool,
    compiled: bool,
) -> str:
    """Name of ``choose_backend``'s choice; traced code takes it as a constant."""
    return choose_backend(
        device, dtype, head_dim,
        backend=backend, num_tokens=num_tokens, gradients=gradients, compiled=compiled,
    ).name  # fmt: skip


def choose_backend(
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    *,
    backend: str | None = None,
    num_tokens: int = 0,
    gradients: bool = False,
    compiled: bool = False,
) -> BackendChoice:
    """Decide which backend serves tensors of this device, dtype and head dimension.

    Args:
        device, dtype, head_dim: of the queries.
        backend: an explicit choice.
        num_tokens: length of the keys.
        gradients: whether a backward pass may follow.
        compiled: whether ``torch.compile`` traces the call.

    Raises:
        UsageError: if the backend asked for is unknown or cannot run here.
    """
    device = torch.device(device)
    asked, where = _asked(backend)
    if asked is None:
        half = device.type == "cpu" and dtype == torch.bfloat16
        if half and gradients and num_tokens <= MOST_CPU_MATH_TOKENS:
            return BackendChoice(name="math", reason="faster than sdpa's backward in bf16 on CPU")
        if compiled:
            return BackendChoice(name="sdpa", reason="torch.compile cannot trace xformers")
        return _automatic(device, dtype, head_dim)
    if asked == "xformers":
        problem = _xformers_problem(device, dtype, head_dim)
        if problem:
            raise UsageError(
                f"attention backend 'xformers' ({where}) cannot run here: {problem}. "
                "Use 'sdpa', or leave the backend out to have one chosen."
            )
    return BackendChoice(name=asked, reason=f"asked for by {where}")


def _asked(backend: str | None) -> tuple[str | None, str]:
    if backend is not None:
        return _known(backend), "the backend argument"
    from_context = _context.get()
    if from_context is not None:
        return from_context, "the attention_backend context"
    from_environment = os.environ.get(ENVIRONMENT)
    if from_environment:
        return _known(from_environment), f"the environment variable {ENVIRONMENT}"
    return None, ""


def _known(name: str) -> str:
    if name not in BACKENDS:
        raise UsageError(unknown("attention backend", name, BACKENDS))
    return name


@functools.cache
def _automatic(device: torch.device, dtype: torch.dtype, head_dim: int) -> BackendChoice:
    if device.type != "cuda":
        return BackendChoice(name="sdpa", reason=f"xformers has no {device.type} kernels")
    problem = _xformers_problem(device, dtype, head_dim)
    if problem is None:
        return BackendChoice(name="xformers", reason="probed on this device and dtype")
    _log.info("attention: using sdpa, since xformers cannot run here: %s", problem)
    return BackendChoice(name="sdpa", reason=f"xformers cannot run here: {problem}")


@functools.cache
def _xformers_problem(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Run xformers once on real tensors; the reason it fails, or None."""
    if device.type != "cuda":
        return f"it has no {device.type} kernels"
    try:
        probe = torch.zeros(1, 1, 8, head_dim, device=device, dtype=dtype, requires_grad=True)
        torch.autograd.grad(_xformers(probe, probe, probe, 1.0).sum(), probe)
    except ImportError:
        return 'it is not installed: pip install "rpiae[xformers]"'
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


def _xformers_ops() -> Any:
    return importlib.import_module("xformers.ops")


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
def _xformers(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    # xformers wants (b, n, heads, d) and calls the factor `scale`.
    out = _xformers_ops().memory_efficient_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale
    )
    return out.transpose(1, 2)  # type: ignore[no-any-return]  # xformers is untyped


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _math(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    # Scaling q rather than the product costs n·d instead of n·m multiplications.
    weights = at_least_fp32((q * scale) @ k.transpose(-2, -1)).softmax(dim=-1)
    return weights.to(v.dtype) @ v


_IMPLEMENTATIONS = {"math": _math, "sdpa": _sdpa, "xformers": _xformers}
