"""Time: what causal parts remember, attention over it, and the contracts of parts that have it.

A causal part makes of every frame what depends on that frame and earlier ones alone. It can be given a
clip piece by piece then, with a ``Past`` that keeps what the next piece needs, and gives the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.attention import Window, attention
from rpiae.core.model.blocks import Mlp
from rpiae.core.model.contracts import Bridge, Decoder, Features, Posterior
from rpiae.core.model.geometry import Grid

#: A layer's number and its tokens (b·t, n, width), frame by frame → such tokens.
Between: TypeAlias = Callable[[int, Tensor], Tensor]

#: Slowest frequency of rotary time positions, as a period in steps over 2π.
LONGEST = 100.0


class Past:
    """What a causal part remembers of the earlier pieces of a clip; empty before the first one.

    Every layer keeps what it needs under a name of its own.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """What was kept under a name."""
        return self._kept.get(name)

    def keep(self, name: str, values: Tensor) -> None:
        """Keep values, in place of those that were kept under their name, apart from their graph."""
        self._kept[name] = values.detach().clone()

    def with_earlier(self, name: str, values: Tensor, *, most: int, dim: int) -> Tensor:
        """Values behind the earlier ones of their name; the last ``most`` of them all are kept.

        Args:
            name: what they are kept under.
            values: of the piece at hand.
            most: steps to keep.
            dim: the dimension of time.
        """
        earlier = self._kept.get(name)
        joined = values if earlier is None else torch.cat([earlier, values], dim=dim)
        self.keep(
            name, joined.narrow(dim, max(0, joined.shape[dim] - most), min(most, joined.shape[dim]))
        )
        return joined


@runtime_checkable
class TemporalBridge(Bridge, Protocol):
    """A causal bridge that also compresses time.

    The first step of tokens alone, then groups of T: 1 + k·T steps give 1 + k latents. The tokenizer
    repeats a clip's last frame to fill the last group.

    Attributes:
        temporal_downsampling: steps of tokens per latent step, T.
    """

    temporal_downsampling: int

    def encode(self, features: Features, past: Past | None = None) -> Posterior:
        """As ``Bridge.encode``. With a past, these are a clip's next 1 + k·T steps where it is empty,
        and k·T after that."""

    def decode(self, latent: Float[Tensor, "b c t h w"], past: Past | None = None) -> Features:
        """As ``Bridge.decode``; with a past, of a clip's next latents."""


@runtime_checkable
class TemporalDecoder(Decoder, Protocol):
    """A causal decoder that sees earlier frames.

    Attributes:
        window: steps of tokens that a layer sees, its own included.
    """

    window: int

    def forward(self, features: Features, past: Past | None = None) -> Float[Tensor, "b 3 t h w"]:
        """As ``Decoder.forward``; with a past, of a clip's next steps."""

    def __call__(
        self, features: Features, past: Past | None = None
    ) -> Float[Tensor, "b 3 t h w"]: ...


@runtime_checkable
class LayeredDecoder(Decoder, Protocol):
    """A decoder of images that lets others in between its layers.

    Attributes:
        layer_widths: channels of the tokens after each layer that others are let in behind.
    """

    layer_widths: tuple[int, ...]

    def forward(
        self, features: Features, between: Between | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        """As ``Decoder.forward``; behind each layer, tokens are what ``between`` makes of them."""

    def __call__(
        self, features: Features, between: Between | None = None
    ) -> Float[Tensor, "b 3 t h w"]: ...


def temporal_downsampling(bridge: Bridge) -> int:
    """Steps of tokens per latent step; 1 for a bridge of images."""
    return bridge.temporal_downsampling if isinstance(bridge, TemporalBridge) else 1


class TemporalBlock(nn.Module):
    """A transformer block along time, position by position: causal attention, then an MLP.

    Every token sees the last ``window`` steps at its place, its own included. Positions are relative:
    queries and keys are rotated by their step (RoPE). Both residual branches end in zeros, so that a
    new block changes nothing. A clip in which nothing moves is left without movement whatever the
    weights are, as attention over equal values gives that value, and the rest works token by token.

    Args:
        width: channels of the tokens.
        num_heads: attention heads; each has an even number of channels.
        mlp_hidden: width of the MLP's hidden layer; 0 leaves the MLP out.
        window: steps that are seen.

    Shapes:
        (b, t·n, width) on the grid (t, h, w), n = h·w → the same

    Raises:
        ValueError: if the heads do not divide the width into even numbers.
    """

    def __init__(self, *, width: int, num_heads: int, mlp_hidden: int, window: int) -> None:
        super().__init__()
        if width % (2 * num_heads):
            raise ValueError(
                f"width {width} is not {num_heads} heads of an even number of channels, as rotary "
                "positions need them"
            )
        self.num_heads = num_heads
        self._mask = Window(last=window)
        self.window = window
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width) if mlp_hidden else None
        self.mlp = Mlp(width=width, hidden=mlp_hidden) if mlp_hidden else None
        for last in [self.proj, *([self.mlp.fc2] if self.mlp else [])]:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        tokens: Float[Tensor, "b n w"],
        *,
        grid: Grid,
        past: Past | None = None,
        name: str = "",
    ) -> Float[Tensor, "b n w"]:
        """Tokens that know of earlier ones.

        Args:
            tokens: of a clip.
            grid: theirs.
            past: of the clip's earlier pieces, which end where this one begins.
            name: of the block, in the past.
        """
        tokens = tokens + self._attended(self.norm1(tokens), grid, past, name)
        if self.norm2 is not None and self.mlp is not None:
            tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens

    def _attended(self, tokens: Tensor, grid: Grid, past: Past | None, name: str) -> Tensor:
        (b, _, w), (t, height, width) = tokens.shape, grid
        n = height * width
        qkv = self.qkv(tokens).view(b, t, n, 3, self.num_heads, w // self.num_heads)
        # (3, b·n, heads, t, d): one sequence in time for every place
        qkv = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        if past is not None and self.window > 1:
            keys_and_values = past.with_earlier(name, qkv[1:], most=self.window - 1, dim=3)
        else:
            keys_and_values = qkv[1:]
        k, v = keys_and_values.unbind(0)
        steps = k.shape[2]
        q, k = rotated(qkv[0], first=steps - t), rotated(k)
        attended = attention(q, k, v, mask=self._mask)
        attended = attended.reshape(b, n, *attended.shape[1:]).permute(0, 3, 1, 2, 4)
        return self.proj(attended.reshape(tokens.shape))  # type: ignore[no-any-return]  # nn.Module calls are Any


def rotated(
    values: Float[Tensor, "b heads t d"], *, first: int = 0
) -> Float[Tensor, "b heads t d"]:
    """Queries or keys rotated by their step, so that their products depend on distances alone.

    Channel i of the first half turns with channel i of the second, by LONGEST^(−i/(d/2)) per step.
    Angles grow with the clip: they are computed in fp64 where the device has it, so that a step far on
    is turned as exactly as a near one.

    Args:
        values: with an even number d of channels.
        first: the first one's step.

    Source: RoFormer (arXiv 2104.09864).
    """
    half, device = values.shape[-1] // 2, values.device
    exact = torch.float32 if device.type == "mps" else torch.float64
    frequencies = LONGEST ** -(torch.arange(half, device=device, dtype=exact) / half)
    steps = torch.arange(first, first + values.shape[-2], device=device)
    angle = steps.unsqueeze(1) * frequencies
    cos, sin = angle.cos().to(values.dtype), angle.sin().to(values.dtype)
    one, other = values.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, one * sin + other * cos], dim=-1)
