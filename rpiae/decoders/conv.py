"""A convolutional decoder."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.blocks import ConvBlock, Upsample, group_norm, through
from rpiae.core.model.contracts import Features
from rpiae.core.model.folding import per_frame
from rpiae.core.model.geometry import (
    at_least_fp32,
    map_grid,
    map_to_tokens,
    patch_triple,
    tokens_to_map,
)
from rpiae.core.model.temporal import Between

#: Channels below which an octave does not go.
LEAST_WIDTH = 32


class ConvDecoder(nn.Module):
    """Residual convolutions on the token grid, then octave by octave up to the pixels, frame by frame.

    With q = 2ᵏ·r, r odd: 3×3 convolution to ``width``, ``depth`` residual blocks, k octaves (nearest
    neighbours ×2, a convolution, ``blocks`` residual blocks at half the width, not below 32),
    GroupNorm, SiLU and one 3×3 convolution to 3·r² channels, which a pixel shuffle lays out.

    Args:
        features: channels D of the features.
        patch: output pixels per token and side (q); any.
        width: channels on the token grid.
        depth: residual blocks on the token grid.
        blocks: residual blocks after every octave.

    Shapes:
        tokens (b, n, D) on the grid (t, h, w) → (b, 3, t, h·q, w·q)

    Source: the decoder of latent diffusion's autoencoder (arXiv 2112.10752), without attention; the
    pixel shuffle (arXiv 1609.05158) is for patches such as 14, which are no power of two.
    """

    def __init__(
        self, *, features: int, patch: int, width: int = 512, depth: int = 4, blocks: int = 1
    ) -> None:
        super().__init__()
        self.features = features
        self.patch = patch_triple(patch)
        self.in_conv = nn.Conv2d(features, width, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(width=width) for _ in range(depth))
        self.octaves = nn.ModuleList()
        remainder = patch
        while remainder % 2 == 0:
            narrower = max(width // 2, min(width, LEAST_WIDTH))
            self.octaves.append(Octave(width=width, out_width=narrower, blocks=blocks))
            width, remainder = narrower, remainder // 2
        self.norm = group_norm(width)
        self.out_conv = nn.Conv2d(width, 3 * remainder**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(remainder)

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the convolution that makes the pixels."""
        weight = self.out_conv.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Channels after each residual block on the token grid."""
        return (self.in_conv.out_channels,) * len(self.blocks)

    def forward(
        self, features: Features, between: Between | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        """Pixels in the encoder's normalised space; ``between`` as in ``LayeredDecoder``."""
        return per_frame(
            lambda frames: self._pixels(frames, between), tokens_to_map(*features),
            whole=between is not None,
        )  # fmt: skip

    def _pixels(
        self, feature_map: Float[Tensor, "b d h w"], between: Between | None
    ) -> Float[Tensor, "b 3 y x"]:
        x = self.in_conv(feature_map)
        for layer, block in enumerate(self.blocks):
            x = through(block, x)
            if between is not None:
                tokens = between(layer, map_to_tokens(x))
                x = tokens_to_map(tokens, map_grid(x)).squeeze(2)
        for octave in self.octaves:
            x = through(octave, x)
        return at_least_fp32(self.shuffle(self.out_conv(F.silu(self.norm(x)))))


class Octave(nn.Module):
    """Twice as many rows and columns, then residual blocks: (b, c, h, w) → (b, d, 2h, 2w).

    The convolution after the nearest neighbours also changes the width.
    """

    def __init__(self, *, width: int, out_width: int, blocks: int) -> None:
        super().__init__()
        self.up = Upsample(width=width, out_width=out_width)
        self.blocks = nn.ModuleList(ConvBlock(width=out_width) for _ in range(blocks))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        x = self.up(x)
        for block in self.blocks:
            x = block(x)
        return x
