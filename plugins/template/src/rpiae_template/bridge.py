"""The bridge 'template'."""

from __future__ import annotations

from rpiae.plugin import (
    DiagonalGaussian,
    Features,
    map_grid,
    map_to_tokens,
    tokens_to_map,
)
from torch import Tensor, nn


class TemplateBridge(nn.Module):
    """Two linear layers per token to mean and log-variance, and two back.

    Args:
        features: channels D of the features.
        latent_channels: channels C of the latent.
        hidden: channels between the two layers.

    Shapes:
        tokens (b, n, D) on the grid (t, h, w) → latent (b, C, t, h, w) → tokens (b, n, D)
    """

    gaussian = True
    downsampling = 1

    def __init__(self, *, features: int, latent_channels: int, hidden: int) -> None:
        super().__init__()
        self.features = features
        self.latent_channels = latent_channels
        self.encoder = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, 2 * latent_channels)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_channels, hidden), nn.GELU(), nn.Linear(hidden, features)
        )

    def encode(self, features: Features) -> DiagonalGaussian:
        """Posterior of the features."""
        moments = tokens_to_map(self.encoder(features.tokens), features.grid)
        mean, logvar = moments.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar)

    def decode(self, latent: Tensor) -> Features:
        """Features of a latent."""
        return Features(self.decoder(map_to_tokens(latent)).float(), map_grid(latent))
