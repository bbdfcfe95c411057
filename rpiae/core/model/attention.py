"""One attention function for the whole toolkit, with interchangeable backends.

Every transformer here (encoders, bridges, decoders) computes softmax(q kᵀ · scale) v through
[`attention`][rpiae.core.model.attention.attention]. Which kernel does it is decided in this order:
the ``backend`` argument, the [`attention_backend`][rpiae.core.model.attention.attention_backend]
context, the environment variable ``RPIAE_ATTENTION``, and last the automatic choice.

* ``xformers``: memory-efficient attention, on CUDA where the package is installed.
* ``sdpa``: ``torch.nn.functional.scaled_dot_product_attention``.
* ``math``: two matrix products and a softmax in fp32 (fp64 for such tensors). It is the reference the others are tested
  against.

A mask says which keys a query may see: ``Causal``, or ``Window`` for its last stretch alone. Both
count in frames where several tokens make one. More entries than kernels take go in chunks.

Under ``torch.compile`` the choice is made once per traced graph, while it is traced, and is a
constant in it: set context or environment before the first call. Left alone, it is ``sdpa`` there
instead of ``xformers``, which cannot be traced. What ``torch.export`` traces has ``sdpa``, as it may run
anywhere, and no chunks.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from attrs import field, frozen, validators
from jaxtyping import Bool, Float
from torch import Tensor

from rpiae.core.errors import UsageError, unknown
from rpiae.core.model import folding
from rpiae.core.model.geometry import at_least_fp32

BACKENDS = ("math", "sdpa", "xformers")
ENVIRONMENT = "RPIAE_ATTENTION"

#: In bf16 on CPU, sdpa with its backward pass is slower than two matrix products up to about here:
#: 4.3 times at 64 tokens, 1.9 times at 256; at 1024 it is twice as fast (benchmarks/attention.py).
MOST_CPU_MATH_TOKENS = 512

#: Masks that are kept, by what they mask, their size and their device.
KEPT_MASKS = 8

#: xformers reads rows of a mask that begin at multiples of so many entries.
ALIGNMENT = 8

_log = logging.getLogger(__name__)
_context: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "attention_backend", default=None
)


@frozen(kw_only=True)
class BackendChoice:
    """Which backend will run, and the reason in words (``rpiae doctor`` prints it)."""

    name: str
    reason: str


@frozen(kw_only=True)
class Causal:
    """A query sees its own frame and those before it.

    Attributes:
        frame: tokens per frame, which see each other; 1 masks token by token. The first key begins
            a frame.
    """

    frame: int = field(default=1, validator=validators.ge(1))

    def reach(self, m: int) -> int:
        """How many frames of m keys a query sees at most, its own included."""
        return -(-m // self.frame)

    def needed(self, n: int, m: int) -> Causal | None:
        """The mask for the last n of m positions; None if it hides nothing there.

        Raises:
            UsageError: if there are more queries than keys.
        """
        if n > m:
            raise UsageError(
                f"with a mask, queries are the last of the keys' positions: {n} queries do not fit "
                f"{m} keys"
            )
        first, last = (m - n) // self.frame, (m - 1) // self.frame
        return None if first == last < self.reach(m) else self

    def is_triangle(self, n: int, m: int) -> bool:
        """Whether query i of n sees keys 0 to i of as many, and no other."""
        return n == m and self.frame == 1 and self.reach(m) >= m


@frozen(kw_only=True)
class Window(Causal):
    """A query sees its own frame and those before it, ``last`` in all.

    Attributes:
        frame: see ``Causal``.
        last: frames that are seen.
    """

    last: int = field(validator=validators.ge(1))

    def reach(self, m: int) -> int:
        """How many frames of m keys a query sees at most, its own included."""
        return self.last


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
    mask: Causal | None = None,
    backend: str | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Scaled dot-product attention.

    Args:
        q: queries; with a mask, those of the last n of the keys' m positions.
        k: keys, of the queries' dtype and device.
        v: values.
        scale: factor on q kᵀ; 1/√d where it is not given.
        mask: which keys a query sees, ``Causal`` or ``Window``; all of them where it is not given.
        backend: one of ``BACKENDS``; see the module's text for what applies where it is not given.

    Returns:
        The attended values, in the layout and dtype of ``q``.

    Raises:
        UsageError: if the backend's name is unknown, an explicitly named one cannot run here, or a
            mask is given more queries than keys.
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if mask is not None:
        mask = mask.needed(q.shape[-2], k.shape[-2])
    if torch.compiler.is_exporting():
        return _sdpa(q, k, v, scale, mask)
    # Traced with a symbolic number of tokens, this is one constant or the other, and a guard.
    tokens = 0 if k.shape[-2] <= MOST_CPU_MATH_TOKENS else MOST_CPU_MATH_TOKENS + 1
    name = _name_of_choice(
        q.device, q.dtype, q.shape[-1], backend, tokens, torch.is_grad_enabled(),
        torch.compiler.is_compiling(), mask is not None,
    )  # fmt: skip
    [attended] = folding.in_chunks(
        lambda *qkv: [_IMPLEMENTATIONS[name](*qkv, scale, mask)], q, k, v,
        most=max(1, folding.MOST_FOLDED // q.shape[1]),
    )  # fmt: skip
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
    masked: bool,
) -> str:
    """Name of ``choose_backend``'s choice; traced code takes it as a constant."""
    return choose_backend(
        device, dtype, head_dim,
        backend=backend, num_tokens=num_tokens, gradients=gradients, compiled=compiled, masked=masked,
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
    masked: bool = False,
) -> BackendChoice:
    """Decide which backend serves tensors of this device, dtype and head dimension.

    Args:
        device, dtype, head_dim: of the queries.
        backend: an explicit choice.
        num_tokens: length of the keys.
        gradients: whether a backward pass may follow.
        compiled: whether ``torch.compile`` traces the call.
        masked: whether a mask hides some keys.

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
        return _automatic(device, dtype, head_dim, masked)
    if asked == "xformers":
        problem = _xformers_problem(device, dtype, head_dim, masked)
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
def _automatic(
    device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool
) -> BackendChoice:
    if device.type != "cuda":
        return BackendChoice(name="sdpa", reason=f"xformers has no {device.type} kernels")
    problem = _xformers_problem(device, dtype, head_dim, masked)
    if problem is None:
        return BackendChoice(name="xformers", reason="probed on this device and dtype")
    _log.info("attention: using sdpa, since xformers cannot run here: %s", problem)
    return BackendChoice(name="sdpa", reason=f"xformers cannot run here: {problem}")


@functools.cache
def _xformers_problem(
    device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool
) -> str | None:
    """Run xformers once on real tensors, with a mask if one is wanted; the reason it fails, or None."""
    if device.type != "cuda":
        return f"it has no {device.type} kernels"
    try:
        probe = torch.zeros(1, 1, 8, head_dim, device=device, dtype=dtype, requires_grad=True)
        mask = Window(last=1, frame=4) if masked else None
        torch.autograd.grad(_xformers(probe, probe, probe, 1.0, mask).sum(), probe)
    except ImportError:
        return 'it is not installed: pip install "rpiae[xformers]"'
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).splitlines()[0]
    return None


def _xformers_ops() -> Any:
    return importlib.import_module("xformers.ops")


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
def _xformers(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Causal | None) -> Tensor:
    # xformers wants (b, n, heads, d), calls the factor `scale`, and adds the mask to the scores.
    ops = _xformers_ops()
    (b, heads, n, _), m = q.shape, k.shape[-2]
    bias: Any = None
    if mask is not None and mask.is_triangle(n, m):
        bias = ops.LowerTriangularMask()
    elif mask is not None:
        bias = _built(_bias, mask, n, m, q.device, q.dtype).expand(b, heads, n, m)
    out = ops.memory_efficient_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_bias=bias, scale=scale
    )
    return out.transpose(1, 2)  # type: ignore[no-any-return]  # xformers is untyped


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Causal | None) -> Tensor:
    n, m = q.shape[-2], k.shape[-2]
    if mask is None or mask.is_triangle(n, m):
        return F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=mask is not None)
    seen = _built(_seen, mask, n, m, q.device)
    return F.scaled_dot_product_attention(q, k, v, scale=scale, attn_mask=seen)


def _math(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Causal | None) -> Tensor:
    # Scaling q rather than the product costs n·d instead of n·m multiplications.
    scores = at_least_fp32((q * scale) @ k.transpose(-2, -1))
    if mask is not None:
        seen = _built(_seen, mask, q.shape[-2], k.shape[-2], q.device)
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _built(build: Callable[..., Tensor], *key: Any) -> Tensor:
    """A mask's tensor, built once for the same key; in traced code it is part of the graph."""
    return build(*key) if torch.compiler.is_compiling() else _kept(build, *key)


@functools.lru_cache(maxsize=KEPT_MASKS)
def _kept(build: Callable[..., Tensor], *key: Any) -> Tensor:
    # What inference mode makes could not be used in training later.
    with torch.inference_mode(False):
        return build(*key)


def _seen(mask: Causal, n: int, m: int, device: torch.device) -> Bool[Tensor, "n m"]:
    """Whether each query sees each key."""
    query = torch.arange(m - n, m, device=device).unsqueeze(1) // mask.frame
    ago = query - torch.arange(m, device=device) // mask.frame
    return (ago >= 0) & (ago < mask.reach(m))


def _bias(
    mask: Causal, n: int, m: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "n m"]:
    """What is added to scores: 0 where a query sees a key, else −∞."""
    rows = torch.zeros(n, -(-m // ALIGNMENT) * ALIGNMENT, device=device, dtype=dtype)
    return rows[:, :m].masked_fill_(~_seen(mask, n, m, device), -torch.inf)


_IMPLEMENTATIONS = {"math": _math, "sdpa": _sdpa, "xformers": _xformers}
