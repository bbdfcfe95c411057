"""What a diffusion transformer is made of: modulated blocks, rotary positions, the embedding of time.

A *condition* is what modulation is computed from, after its SiLU: (b, 1, d) for all tokens of a latent
alike, or (b, n, d), one for each. Norms, rotation and the features of time are computed in fp32.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.attention import attention
from rpiae.core.model.blocks import Mlp
from rpiae.core.model.geometry import at_least_fp32

#: Of every norm but LayerNorm of queries and keys.
EPS = 1e-6
QK_LAYER_NORM_EPS = 1e-5

#: Of the frequencies of rotary positions.
BASE = 10000.0

#: Cosines and sines of the angles by which channels are turned, (n, d) each; pairs have one angle.
Rotation: TypeAlias = tuple[Tensor, Tensor]


class ModulatedBlock(nn.Module):
    """Pre-norm transformer block, scaled, shifted and gated by a condition (adaLN).

    x + gate·attention(modulated(norm(x))), then x + gate·mlp(modulated(norm(x))).

    Args:
        width: channels of the tokens.
        num_heads: attention heads.
        mlp_ratio: see ``DitConfig``.
        qk_norm, rms_norm, swiglu: see ``DitConfig``.
        shifts: whether modulation shifts as well as scales.

    Shapes:
        tokens (b, n, width), condition (b, 1 or n, width) → (b, n, width)

    Source: DiT, arXiv 2212.09748; LightningDiT, arXiv 2501.01423.
    """

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        qk_norm: bool,
        rms_norm: bool,
        swiglu: bool,
        shifts: bool,
    ) -> None:
        super().__init__()
        hidden = mlp_hidden(width, mlp_ratio, swiglu=swiglu)
        self.norm1 = token_norm(width, rms=rms_norm)
        self.attn = RotaryAttention(
            width=width, num_heads=num_heads, qk_norm=qk_norm, rms_norm=rms_norm
        )
        self.norm2 = token_norm(width, rms=rms_norm)
        self.mlp = (
            SwiGlu(width=width, hidden=hidden)
            if swiglu
            else Mlp(width=width, hidden=hidden, approximate="tanh")
        )
        self.modulation = nn.Linear(width, (6 if shifts else 4) * width)

    def forward(
        self,
        tokens: Float[Tensor, "b n w"],
        *,
        condition: Float[Tensor, "b m w"],
        rotation: Rotation | None,
    ) -> Float[Tensor, "b n w"]:
        modulation = self.modulation(condition).unflatten(-1, (2, -1, tokens.shape[-1]))
        (*shift1, scale1, gate1), (*shift2, scale2, gate2) = (
            half.unbind(-2) for half in modulation.unbind(-3)
        )
        attended = self.attn(modulated(normed(self.norm1, tokens), scale1, *shift1), rotation)
        tokens = torch.addcmul(tokens, gate1, attended)
        return torch.addcmul(
            tokens, gate2, self.mlp(modulated(normed(self.norm2, tokens), scale2, *shift2))
        )


class ModulatedOutput(nn.Module):
    """Norm, modulation with scale and shift, and a linear layer to the values of a token's patch.

    Args:
        width: channels of the tokens.
        values: of a token's patch.
        rms_norm: see ``DitConfig``.

    Shapes:
        tokens (b, n, width), condition (b, 1 or n, width) → (b, n, values)
    """

    def __init__(self, *, width: int, values: int, rms_norm: bool) -> None:
        super().__init__()
        self.norm = token_norm(width, rms=rms_norm)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, values)

    def forward(
        self, tokens: Float[Tensor, "b n w"], condition: Float[Tensor, "b m w"]
    ) -> Float[Tensor, "b n values"]:
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return self.linear(modulated(normed(self.norm, tokens), scale, shift))  # type: ignore[no-any-return]  # nn.Module calls are Any


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys are normalised, then turned by their position.

    Args:
        width: channels of the tokens.
        num_heads: attention heads.
        qk_norm: whether queries and keys are normalised, over the channels of a head.
        rms_norm: by RMSNorm, else by LayerNorm; both with weights.

    Shapes:
        (b, n, width) → (b, n, width)
    """

    def __init__(self, *, width: int, num_heads: int, qk_norm: bool, rms_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = head_norm(width // num_heads, rms=rms_norm) if qk_norm else nn.Identity()
        self.k_norm = head_norm(width // num_heads, rms=rms_norm) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "b n w"], rotation: Rotation | None
    ) -> Float[Tensor, "b n w"]:
        b, n, w = tokens.shape
        qkv = self.qkv(tokens).view(b, n, 3, self.num_heads, w // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = normed(self.q_norm, q), normed(self.k_norm, k)
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        attended = attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(attended.transpose(1, 2).reshape(b, n, w))  # type: ignore[no-any-return]  # nn.Module calls are Any


class SwiGlu(nn.Module):
    """Linear to twice the hidden channels, SiLU of the first half times the second, linear.

    Args:
        width: channels of the tokens.
        hidden: channels between.

    Shapes:
        (b, n, width) → (b, n, width)

    Source: arXiv 2002.05202.
    """

    def __init__(self, *, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, tokens: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        gate, values = self.w12(tokens).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * values)  # type: ignore[no-any-return]  # nn.Module calls are Any


class TimeEmbedding(nn.Module):
    """Sines, then cosines, of 2π·t times Gaussian frequencies, through linear, SiLU, linear.

    Args:
        width: channels that come out.
        frequencies: number of them.
        trained: whether the frequencies are trained.

    Shapes:
        (b,) → (b, width)

    Source: arXiv 2006.10739; as used by arXiv 2501.01423.
    """

    frequencies: Tensor

    def __init__(self, *, width: int, frequencies: int, trained: bool) -> None:
        super().__init__()
        values = torch.randn(frequencies)
        if trained:
            self.frequencies = nn.Parameter(values)
        else:
            self.register_buffer("frequencies", values)
        self.mlp = nn.Sequential(
            nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b w"]:
        angle = at_least_fp32(time).unsqueeze(1) * self.frequencies * (2 * math.pi)
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))  # type: ignore[no-any-return]  # nn.Module calls are Any


class RotaryPositions(nn.Module):
    """Cosines and sines of rotary positions, kept for one grid and computed for others.

    The first half of a head's channels turns with the row, the second with the column; pair j of a
    half by index · 10000^(−4j/d).

    Args:
        head_width: channels d of a head, a multiple of 4.
        grid: rows and columns of tokens that they are kept for.

    Source: arXiv 2104.09864, along two axes as in arXiv 2501.01423.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, *, head_width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.head_width = head_width
        self.grid = grid
        cosines, sines = self._computed(grid)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)

    def forward(self, grid: tuple[int, int]) -> Rotation:
        """Of the tokens of a grid, row-major."""
        if grid == self.grid:
            return self.cosines, self.sines
        cosines, sines = self._computed(grid)
        return cosines.to(self.cosines), sines.to(self.sines)

    def _computed(self, grid: tuple[int, int]) -> Rotation:
        pairs = torch.arange(self.head_width // 4, dtype=torch.float64)
        frequency = BASE ** -(4 * pairs / self.head_width)
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
        angle = torch.cat(
            [
                torch.outer(rows, frequency).unsqueeze(1).expand(*grid, -1),
                torch.outer(columns, frequency).unsqueeze(0).expand(*grid, -1),
            ],
            dim=-1,
        )
        angle = angle.flatten(0, 1).repeat_interleave(2, dim=-1)
        precision = torch.get_default_dtype()
        return angle.cos().to(precision), angle.sin().to(precision)


def rotated(x: Float[Tensor, "b heads n d"], rotation: Rotation) -> Float[Tensor, "b heads n d"]:
    """Channels 2i and 2i + 1 turned as a pair."""
    cosines, sines = rotation
    even, odd = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    quarter = torch.stack([-odd, even], dim=-1).flatten(-2)  # every pair turned by 90°
    return torch.addcmul(x * cosines, quarter, sines)


def modulated(x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """x·(1 + scale), and the shift where there is one."""
    return x * (1 + scale) if shift is None else torch.addcmul(shift, x, 1 + scale)


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Through a norm, in fp32 at least."""
    return norm(at_least_fp32(x))  # type: ignore[no-any-return]  # nn.Module calls are Any


class _RMSNorm(nn.RMSNorm):
    """RMSNorm of values that may be wider than its weights."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def token_norm(width: int, *, rms: bool) -> nn.Module:
    """RMSNorm with weights, or LayerNorm without."""
    if rms:
        return _RMSNorm(width, eps=EPS)
    return nn.LayerNorm(width, eps=EPS, elementwise_affine=False)


def head_norm(width: int, *, rms: bool) -> nn.Module:
    """Of queries or keys: RMSNorm, or LayerNorm with weights and biases."""
    return _RMSNorm(width, eps=EPS) if rms else nn.LayerNorm(width, eps=QK_LAYER_NORM_EPS)


def mlp_hidden(width: int, ratio: float, *, swiglu: bool) -> int:
    """Hidden channels of a block's MLP; SwiGLU, with a matrix more, has two thirds of them."""
    hidden = int(width * ratio)
    return int(2 / 3 * hidden) if swiglu else hidden
