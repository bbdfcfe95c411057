"""Bridges of residual convolutions on the feature map."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.bridges.posterior import Delta, DiagonalGaussian
from rpiae.core.errors import UsageError
from rpiae.core.model.blocks import ConvBlock, Upsample, group_norm, through
from rpiae.core.model.contracts import Features
from rpiae.core.model.folding import per_frame
from rpiae.core.model.geometry import at_least_fp32, map_grid, map_to_tokens, tokens_to_map


class ConvBridge(nn.Module):
    """Compresses the feature map by convolutions, frame by frame, to a point, and expands it again.

    Encoder: 1×1 convolution to ``width``, residual blocks, where wanted a 3×3 convolution of stride
    2, GroupNorm, SiLU, 3×3 convolution to the latent. The decoder mirrors it, with nearest-neighbour
    upsampling.

    Args:
        features: channels D of the features.
        latent_channels: channels C of the latent.
        width: channels of the convolutions.
        blocks: residual blocks each way.
        downsampling: 1 keeps the grid; 2 halves its rows and columns, which must then be even.

    Shapes:
        tokens (b, n, D) on the grid (t, s·h, s·w) ↔ latent (b, C, t, h, w), s = ``downsampling``

    Raises:
        ValueError: if ``downsampling`` is neither 1 nor 2.

    Source: the residual autoencoder of latent diffusion (arXiv 2112.10752), on features instead of
    pixels and without attention.
    """

    gaussian = False

    def __init__(
        self,
        *,
        features: int,
        latent_channels: int,
        width: int = 256,
        blocks: int = 2,
        downsampling: int = 1,
    ) -> None:
        super().__init__()
        if downsampling not in (1, 2):
            raise ValueError(f"downsampling is 1 or 2, not {downsampling}")
        self.features = features
        self.latent_channels = latent_channels
        self.downsampling = downsampling
        moments = 2 if self.gaussian else 1
        self.encoder = ConvBridgeEncoder(
            features=features, out_channels=moments * latent_channels, width=width, blocks=blocks,
            downsampling=downsampling,
        )  # fmt: skip
        self.decoder = ConvBridgeDecoder(
            latent_channels=latent_channels, features=features, width=width, blocks=blocks,
            downsampling=downsampling,
        )  # fmt: skip

    def encode(self, features: Features) -> Delta | DiagonalGaussian:
        """The latent of the features.

        Raises:
            UsageError: if the grid's sides are no multiples of ``downsampling``.
        """
        return Delta(self._encoded(features))

    def decode(self, latent: Float[Tensor, "b c t h w"]) -> Features:
        """Features ẑ of a latent."""
        expanded = at_least_fp32(per_frame(self.decoder, latent))
        return Features(map_to_tokens(expanded), map_grid(expanded))

    def _encoded(self, features: Features) -> Tensor:
        _, rows, columns = features.grid
        if rows % self.downsampling or columns % self.downsampling:
            raise UsageError(
                f"a grid of {rows}×{columns} tokens cannot be downsampled by {self.downsampling}: "
                f"its sides must be multiples of {self.downsampling}, as RPiAE.geometry gives them"
            )
        return at_least_fp32(per_frame(self.encoder, tokens_to_map(*features)))


class ConvKlBridge(ConvBridge):
    """As ``ConvBridge``, to a diagonal Gaussian posterior."""

    gaussian = True

    def encode(self, features: Features) -> DiagonalGaussian:
        """Posterior of the features.

        Raises:
            UsageError: if the grid's sides are no multiples of ``downsampling``.
        """
        mean, logvar = self._encoded(features).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar)


class ConvBridgeEncoder(nn.Module):
    """Feature map (b, D, s·h, s·w) → (b, out_channels, h, w)."""

    def __init__(
        self, *, features: int, out_channels: int, width: int, blocks: int, downsampling: int
    ) -> None:
        super().__init__()
        self.in_conv = nn.Conv2d(features, width, 1)
        self.blocks = nn.ModuleList(ConvBlock(width=width) for _ in range(blocks))
        self.down = (
            nn.Conv2d(width, width, 3, stride=2, padding=1) if downsampling == 2 else nn.Identity()
        )
        self.norm = group_norm(width)
        self.out_conv = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, feature_map: Float[Tensor, "b d y x"]) -> Float[Tensor, "b m h w"]:
        x = self.in_conv(feature_map)
        for block in self.blocks:
            x = through(block, x)
        return self.out_conv(F.silu(self.norm(self.down(x))))  # type: ignore[no-any-return]  # nn.Module calls are Any


class ConvBridgeDecoder(nn.Module):
    """Latent (b, C, h, w) → feature map (b, D, s·h, s·w)."""

    def __init__(
        self, *, latent_channels: int, features: int, width: int, blocks: int, downsampling: int
    ) -> None:
        super().__init__()
        self.in_conv = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.up = Upsample(width=width) if downsampling == 2 else nn.Identity()
        self.blocks = nn.ModuleList(ConvBlock(width=width) for _ in range(blocks))
        self.norm = group_norm(width)
        self.out_conv = nn.Conv2d(width, features, 1)

    def forward(self, latent: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        x = self.up(self.in_conv(latent))
        for block in self.blocks:
            x = through(block, x)
        return self.out_conv(F.silu(self.norm(x)))  # type: ignore[no-any-return]  # nn.Module calls are Any
