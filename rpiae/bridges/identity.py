"""The bridge that does nothing."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from rpiae.bridges.posterior import Delta
from rpiae.core.model.contracts import Features
from rpiae.core.model.geometry import map_grid, map_to_tokens, tokens_to_map


class IdentityBridge(nn.Module):
    """The latent is the feature map; no parameters, so stages that train it are skipped.

    Args:
        features: channels of the features.

    Source: the tokenizer of RAE (arXiv 2510.11690) has no compression.
    """

    gaussian = False
    downsampling = 1

    def __init__(self, *, features: int) -> None:
        super().__init__()
        self.features = features
        self.latent_channels = features

    def encode(self, features: Features) -> Delta:
        """Tokens as a map."""
        return Delta(tokens_to_map(features.tokens, features.grid))

    def decode(self, latent: Float[Tensor, "b c t h w"]) -> Features:
        """The map as tokens."""
        return Features(map_to_tokens(latent), map_grid(latent))
