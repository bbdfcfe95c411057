"""A plain vision transformer with an optional convolutional stem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.blocks import Block, aggregate, resample_positions, sincos_positions, through
from rpiae.core.model.contracts import BlockFeatures, Features, block_index
from rpiae.core.model.geometry import Grid, map_grid, map_to_tokens, patch_triple
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weights import load_whole, read_weights

#: What a file must have, under whatever prefix.
SIGNATURES = (("pos_embed", "transformer.0.norm1.weight"),)


class VitEncoder(nn.Module):
    """Pre-norm ViT without class token, for small pivots and for encoders trained from scratch.

    The embedded pivot ``tiny`` is one. Positions are learned, start from sin-cos and are resampled
    with antialiasing for other grids; the final LayerNorm has no affine parameters.

    Args:
        width: channels of the tokens.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over ``width``.
        patch: pixels per token and side; a power of two with the convolutional stem.
        native_grid: tokens per side that the positions are stored for.
        stem: ``"patch"`` is one convolution with stride ``patch``; ``"conv"`` is 3×3 convolutions,
            the first with stride 1 and then one with stride 2 per halving (arXiv 2106.14881).
        layers: blocks whose normalised tokens are averaged (layer aggregation of RAEv2); empty is the
            last block alone. Blocks behind the last one named are left out.
        add_final_mean: whether the spatial mean of the last of these blocks is added to every token.
        mean, std: statistics that the input is normalised with.

    Shapes:
        (b, 3, H, W) → tokens (b, n, width), n = (H/patch)·(W/patch)
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        patch: int = 4,
        native_grid: int = 8,
        stem: Literal["patch", "conv"] = "conv",
        layers: Sequence[int] = (),
        add_final_mean: bool = False,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.width = width
        self.patch = patch_triple(patch)
        self.mean = mean
        self.std = std
        self.layers = tuple(sorted(layers)) or (depth - 1,)
        self.add_final_mean = add_final_mean
        self.num_blocks = max(self.layers) + 1
        self._depth = depth
        self.stem = _stem(stem, width, patch)
        self.pos_embed = nn.Parameter(
            sincos_positions(native_grid, native_grid, width).reshape(
                1, native_grid, native_grid, width
            )
            * 0.1
        )
        self.transformer = nn.ModuleList(
            Block(width=width, num_heads=num_heads, mlp_hidden=int(width * mlp_ratio), eps=1e-6)
            for _ in range(self.num_blocks)
        )

    @property
    def last_weight(self) -> nn.Parameter:
        """MLP output weight of the last block."""
        return self.transformer[-1].mlp.fc2.weight  # type: ignore[union-attr, return-value]  # ModuleList items are Module

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """Final-normed patch tokens of normalised images."""
        after = self.blocks(images, self.layers)
        tokens = aggregate(after.tokens, eps=1e-6, add_final_mean=self.add_final_mean)
        return Features(tokens, after.grid)

    def blocks(self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]) -> BlockFeatures:
        """Patch tokens after the blocks with these indices, in the order asked for."""
        wanted = [block_index(index, self.num_blocks) for index in indices]
        tokens, grid = self._embed(images)
        kept: dict[int, Tensor] = {}
        for index, block in enumerate(self.transformer[: max(wanted) + 1]):
            tokens = through(block, tokens)
            if index in wanted:
                kept[index] = tokens
        return BlockFeatures([kept[index] for index in wanted], grid)

    def load_weights(self, path: Path, *, key: str = "") -> None:
        """Load a file of this encoder, in any float precision.

        Args:
            path: the file.
            key: which weights to take where it has several, see ``read_weights``.

        Raises:
            CheckpointError: if it does not hold this architecture, or holds more than that.
        """
        state = read_weights(path, what="this plain ViT", signatures=SIGNATURES, key=key)
        behind = [f"transformer.{index}." for index in range(self.num_blocks, self._depth)]
        load_whole(self, state, source=printable(str(path)), unused=behind)

    def _embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        feature_map = self.stem(images)
        grid = map_grid(feature_map)
        positions = resample_positions(self.pos_embed, (grid[1], grid[2]), antialias=True)
        return map_to_tokens(feature_map) + positions.flatten(1, 2), grid


def _stem(kind: str, width: int, patch: int) -> nn.Module:
    if kind == "patch":
        return nn.Conv2d(3, width, patch, stride=patch)
    halvings = int(math.log2(patch))
    if 2**halvings != patch:
        raise ValueError(f"a convolutional stem needs a patch that is a power of two, not {patch}")
    channels = [max(width // 2 ** (halvings - i), 8) for i in range(halvings + 1)]
    layers: list[nn.Module] = []
    inputs = 3
    for i, outputs in enumerate(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=1 if i == 0 else 2, padding=1), nn.GELU()]
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(inputs, width, 1))
