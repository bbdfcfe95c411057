"""The paper's variational bridge."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from rpiae.bridges.posterior import DiagonalGaussian
from rpiae.core.model.blocks import Block, Mlp, SelfAttention, through
from rpiae.core.model.contracts import Features
from rpiae.core.model.folding import per_frame
from rpiae.core.model.geometry import at_least_fp32, map_grid, map_to_tokens, tokens_to_map


class VariationalBridge(nn.Module):
    """Compresses features, frame by frame, to a Gaussian over C channels and expands them again.

    Encoder: a = LN₁(t); t ← W_skip t + MHA(a); t ← t + MLP(LN₂(t)), the MLP's last layer starting
    at zero; Linear(D → 2C) gives mean and log-variance. Decoder: Linear(C → D), pre-norm
    transformer layers, Linear(D → D). Heads: min(8, max(1, D // 64)). No positions. All attentions
    start as torch's ``MultiheadAttention`` does.

    Args:
        features: channels D of the features.
        latent_channels: channels C of the latent.
        decoder_layers: transformer layers of the decoder.
        encoder_mlp_ratio, decoder_mlp_ratio: MLP widths over D.

    Source: arXiv 2603.19206, variational bridge.
    """

    gaussian = True
    downsampling = 1

    def __init__(
        self,
        *,
        features: int,
        latent_channels: int,
        decoder_layers: int = 6,
        encoder_mlp_ratio: float = 1.0,
        decoder_mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.features = features
        self.latent_channels = latent_channels
        num_heads = min(8, max(1, features // 64))
        self.encoder = BridgeEncoder(
            features=features,
            latent_channels=latent_channels,
            num_heads=num_heads,
            mlp_hidden=int(features * encoder_mlp_ratio),
        )
        self.decoder = BridgeDecoder(
            features=features,
            latent_channels=latent_channels,
            num_heads=num_heads,
            num_layers=decoder_layers,
            mlp_hidden=int(features * decoder_mlp_ratio),
        )
        for module in self.modules():
            if isinstance(module, SelfAttention):
                _reset_as_multihead(module)

    def encode(self, features: Features) -> DiagonalGaussian:
        """Posterior of the features."""
        moments = tokens_to_map(per_frame(self.encoder, *features), features.grid)
        mean, logvar = moments.chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar)

    def decode(self, latent: Float[Tensor, "b c t h w"]) -> Features:
        """Features ẑ of a latent."""
        grid = map_grid(latent)
        return Features(at_least_fp32(per_frame(self.decoder, map_to_tokens(latent), grid)), grid)


class BridgeEncoder(nn.Module):
    """Tokens (b, n, D) → moments (b, n, 2C)."""

    def __init__(
        self, *, features: int, latent_channels: int, num_heads: int, mlp_hidden: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.attn = SelfAttention(width=features, num_heads=num_heads)
        self.skip = nn.Linear(features, features)
        self.norm2 = nn.LayerNorm(features)
        self.mlp = Mlp(width=features, hidden=mlp_hidden)
        nn.init.zeros_(self.mlp.fc2.weight)
        nn.init.zeros_(self.mlp.fc2.bias)
        self.moments = nn.Linear(features, 2 * latent_channels)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n m"]:
        tokens = self.skip(tokens) + self.attn(self.norm1(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return self.moments(tokens)  # type: ignore[no-any-return]  # nn.Module calls are Any


class BridgeDecoder(nn.Module):
    """Latent tokens (b, n, C) → feature tokens (b, n, D)."""

    def __init__(
        self,
        *,
        features: int,
        latent_channels: int,
        num_heads: int,
        num_layers: int,
        mlp_hidden: int,
    ) -> None:
        super().__init__()
        self.in_proj = nn.Linear(latent_channels, features)
        self.blocks = nn.ModuleList(
            Block(width=features, num_heads=num_heads, mlp_hidden=mlp_hidden, eps=1e-5)
            for _ in range(num_layers)
        )
        self.out_proj = nn.Linear(features, features)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        tokens = self.in_proj(tokens)
        for block in self.blocks:
            tokens = through(block, tokens)
        return self.out_proj(tokens)  # type: ignore[no-any-return]  # nn.Module calls are Any


def _reset_as_multihead(attention: SelfAttention) -> None:
    """Start as ``torch.nn.MultiheadAttention``: Xavier over the fused projection, no biases."""
    nn.init.xavier_uniform_(attention.qkv.weight)
    nn.init.zeros_(attention.qkv.bias)
    nn.init.zeros_(attention.proj.bias)
