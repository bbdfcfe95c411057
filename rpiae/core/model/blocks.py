"""Transformer and convolutional building blocks shared by encoders, bridges and decoders.

Parameter names of the transformer follow timm (``attn.qkv``, ``attn.proj``, ``mlp.fc1``, ``mlp.fc2``, ``norm1``,
``norm2``), so that weights of the common layouts map onto them without renaming.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rpiae.core.errors import TrainingError, UsageError
from rpiae.core.model.attention import attention
from rpiae.core.model.geometry import at_least_fp32
from rpiae.core.model.resampling import Mode, resample

#: Kinds of blocks and inputs that are compiled in a process, at most.
MOST_SHAPES = 256

#: Lines of an error of torch.compile that are told; what follows is a trace.
MOST_LINES = 3

_recompute: contextvars.ContextVar[bool] = contextvars.ContextVar("recompute", default=False)
_compile: contextvars.ContextVar[bool] = contextvars.ContextVar("compile", default=False)


@contextlib.contextmanager
def recomputing(enabled: bool) -> Iterator[None]:
    """Have blocks inside the ``with`` block forget their activations and compute them again for the
    backward pass: about a third more time for far less memory, and the same gradients."""
    token = _recompute.set(enabled)
    try:
        yield
    finally:
        _recompute.reset(token)


@contextlib.contextmanager
def compiling(enabled: bool) -> Iterator[None]:
    """Have blocks inside the ``with`` block go through ``torch.compile``, each shape of input on its own:
    what comes out depends on the block and its input, and not on what was compiled before.

    Raises:
        TrainingError: if a block cannot be compiled here, or there are more than ``MOST_SHAPES`` kinds of
            blocks and inputs.
    """
    if not enabled:
        yield
        return
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
    from torch._functorch import config as gradients

    # Left alone, torch goes on without a word where its limit is met, by other operations; cuts blocks by
    # how gradients are sent between processes; and refuses a graph that is kept after one that was not.
    settings: dict[str, Any] = {
        "recompile_limit": MOST_SHAPES, "accumulated_recompile_limit": MOST_SHAPES,
        "fail_on_recompile_limit_hit": True, "optimize_ddp": False,
    }  # fmt: skip
    token = _compile.set(True)
    try:
        with (
            config.patch(**settings),
            gradients.patch(donated_buffer=False),
            torch.autograd.set_multithreading_enabled(False),  # the settings are those of a thread
        ):
            yield
    except FailOnRecompileLimitHit as error:
        raise TrainingError(
            f"there are more than {MOST_SHAPES} kinds of blocks and inputs to compile, one for each shape of "
            "a batch: leave out --compile, or have fewer sizes of images"
        ) from error
    except TorchDynamoException as error:
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cause = getattr(error, "inner_exception", error)  # what a backend raised
        said = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise TrainingError(
            "torch.compile cannot compile the blocks here: "
            f"{' · '.join(said[:MOST_LINES]) or type(cause).__name__}. Leave out --compile (--set compile=false "
            f"goes on with a run that has it); where a run was killed while it compiled, delete {cache_dir()}"
        ) from error
    finally:
        _compile.reset(token)


def through(block: nn.Module, values: Tensor, **arguments: Any) -> Tensor:
    """Tokens or a map through one block, with what else it takes; see ``recomputing``, ``compiling``."""
    call = _compiled() if _compile.get() and not torch.compiler.is_compiling() else _call
    if _recompute.get() and torch.is_grad_enabled():
        return checkpoint(call, block, values, arguments, use_reentrant=False)
    return call(block, values, arguments)


def _call(block: nn.Module, values: Tensor, arguments: dict[str, Any]) -> Tensor:
    return block(values, **arguments)  # type: ignore[no-any-return]  # nn.Module calls are Any


@functools.cache
def _compiled() -> Callable[[nn.Module, Tensor, dict[str, Any]], Tensor]:
    return torch.compile(_call, dynamic=False)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused query-key-value projection.

    Args:
        width: channels of the tokens.
        num_heads: number of heads; must divide ``width``.

    Shapes:
        (b, n, width) → (b, n, width)
    """

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        b, n, w = tokens.shape
        qkv = self.qkv(tokens).view(b, n, 3, self.num_heads, w // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(b, n, w))  # type: ignore[no-any-return]  # nn.Module calls are Any


class Mlp(nn.Module):
    """Linear, GELU, Linear.

    Args:
        width: channels of the tokens.
        hidden: channels between the two.
        approximate: GELU's approximation, ``none`` (erf) or ``tanh``.

    Shapes:
        (b, n, width) → (b, n, width)
    """

    def __init__(
        self, *, width: int, hidden: int, approximate: Literal["none", "tanh"] = "none"
    ) -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        return self.fc2(F.gelu(self.fc1(tokens), approximate=self.approximate))  # type: ignore[no-any-return]  # nn.Module calls are Any


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        width: channels of the tokens.
        num_heads: attention heads.
        mlp_hidden: width of the MLP's hidden layer.
        eps: LayerNorm epsilon.
    """

    def __init__(self, *, width: int, num_heads: int, mlp_hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = SelfAttention(width=width, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width=width, hidden=mlp_hidden)

    def forward(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]  # nn.Module calls are Any


class ConvBlock(nn.Module):
    """Residual block: x + conv(silu(norm(conv(silu(norm(x)))))), with 3×3 convolutions.

    Args:
        width: channels of the map.

    Shapes:
        (b, width, h, w) → (b, width, h, w)

    Source: the residual block of latent diffusion's autoencoder (arXiv 2112.10752).
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm1 = group_norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = group_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        residual = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(residual)))  # type: ignore[no-any-return]  # nn.Module calls are Any


class Upsample(nn.Module):
    """Twice as many rows and columns: nearest neighbours, then a 3×3 convolution.

    Args:
        width: channels of the map.
        out_width: channels that come out; ``width`` where it is not given.

    Shapes:
        (b, width, h, w) → (b, out_width, 2h, 2w)
    """

    def __init__(self, *, width: int, out_width: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out_width or width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))  # type: ignore[no-any-return]  # nn.Module calls are Any


def group_norm(width: int) -> nn.GroupNorm:
    """GroupNorm of up to 32 groups of at least four channels; fewer where they do not divide."""
    return nn.GroupNorm(math.gcd(32, width // 4, width), width, eps=1e-6)


def sincos_positions(height: int, width: int, channels: int) -> Float[Tensor, "n channels"]:
    """Fixed 2-D sin-cos position embedding of an h × w grid, row-major.

    The first half of the channels encodes the column, the second the row; each half holds the
    sines of all frequencies, then the cosines, with frequencies 10000^(−i/(channels/4)).

    Computed in fp64 and given in torch's default dtype.

    Raises:
        UsageError: if ``channels`` is not a multiple of 4, or the grid is empty.

    Source: MAE (arXiv 2111.06377), as used by the decoder of arXiv 2603.19206.
    """
    if channels % 4 or min(height, width) < 1:
        raise UsageError(
            "sin-cos positions need a width that is a multiple of 4 and a grid of at least 1×1, not "
            f"{channels} and {height}×{width}"
        )
    return sincos_at(torch.arange(height), torch.arange(width), channels)


def sincos_at(
    rows: Float[Tensor, " h"], columns: Float[Tensor, " w"], channels: int
) -> Float[Tensor, "n channels"]:
    """As ``sincos_positions``, of a grid whose rows and columns lie at these coordinates."""
    frequency = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels / 4))
    along_rows, along_columns = torch.meshgrid(rows.double(), columns.double(), indexing="ij")
    halves = []
    for axis in (along_columns, along_rows):
        angle = axis.reshape(-1, 1) * frequency
        halves += [angle.sin(), angle.cos()]
    return torch.cat(halves, dim=1).to(torch.get_default_dtype())


def resample_positions(
    positions: Float[Tensor, "1 h w d"],
    size: tuple[int, int],
    *,
    antialias: bool,
    mode: Mode = "bicubic",
    offset: float = 0.0,
) -> Float[Tensor, "1 height width d"]:
    """Positions resampled to ``size`` (rows, columns), in fp32; unchanged at the stored size.

    Antialiasing, mode and offset are the source's own rule, which docs/encoders.md names.

    Args:
        positions: the embedding as it was trained.
        size: rows and columns wanted.
        antialias: whether the kernel widens where the grid shrinks.
        mode: the kernel.
        offset: what DINO and DINOv2 without registers add to both sides wanted, in tokens, before
            they divide by the stored ones: it shifts where each position is read.
    """
    resampled = resample(
        at_least_fp32(positions.permute(0, 3, 1, 2)), size,
        mode=mode, antialias=antialias, offset=offset,
    )  # fmt: skip
    return resampled.permute(0, 2, 3, 1).to(positions.dtype)


def aggregate(
    tokens: Sequence[Float[Tensor, "b n w"]], *, eps: float, add_final_mean: bool = False
) -> Float[Tensor, "b n w"]:
    """The mean of several blocks' tokens, each through an affine-free LayerNorm, in fp32.

    Args:
        tokens: outputs of blocks, in the blocks' order.
        eps: epsilon of the LayerNorm.
        add_final_mean: whether the spatial mean of the last block's normed tokens is added to every
            token; tokens are then not of unit variance.

    Source: layer aggregation of RAEv2 (its DINOv3 and SigLIP2 variants add the mean).
    """
    normed = [F.layer_norm(at_least_fp32(t), t.shape[-1:], eps=eps) for t in tokens]
    mean = normed[0] if len(normed) == 1 else torch.stack(normed).mean(0)
    return mean + normed[-1].mean(dim=1, keepdim=True) if add_final_mean else mean
