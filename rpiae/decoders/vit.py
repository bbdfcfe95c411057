"""The paper's MAE-style ViT decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.blocks import Block, resample_positions, sincos_positions, through
from rpiae.core.model.contracts import Features
from rpiae.core.model.folding import per_frame
from rpiae.core.model.geometry import Grid, at_least_fp32, patch_triple, unpatchify
from rpiae.core.model.temporal import Between

EPS = 1e-12


class VitDecoder(nn.Module):
    """Linear in, one trainable class token, pre-norm blocks, LayerNorm, Linear out, un-patchify.

    Positions are the fixed sin-cos embedding of the grid at hand. Released checkpoints hold a
    trained embedding instead; with ``stored_grid`` it is stored, and resampled for other grids.

    Args:
        features: channels D of the features.
        patch: output pixels per token and side (q).
        width, depth, num_heads, mlp_hidden: of the transformer.
        positions: whether a stored embedding is trained with the rest; it starts from sin-cos.
        stored_grid: (rows, columns) of a stored position embedding; ``"trained"`` needs them.

    Shapes:
        tokens (b, n, D) on the grid (t, h, w) → (b, 3, t, h·q, w·q), frame by frame

    Raises:
        ValueError: if the width is no multiple of 4, or positions to be trained have no grid.

    Source: arXiv 2111.06377; sizes from arXiv 2603.19206. LayerNorm eps is 1e-12. The class token
    starts at zero.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        features: int,
        patch: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_hidden: int,
        positions: Literal["fixed", "trained"] = "fixed",
        stored_grid: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"width {width} is not a multiple of 4, as sin-cos positions need it")
        if positions == "trained" and not stored_grid:
            raise ValueError("positions that are trained need a stored_grid: (rows, columns)")
        self.features = features
        self.patch = patch_triple(patch)
        self.width = width
        self.embed = nn.Linear(features, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            Block(width=width, num_heads=num_heads, mlp_hidden=mlp_hidden, eps=EPS)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.pred = nn.Linear(width, patch * patch * 3)
        self._stored = len(stored_grid) > 0
        if self._stored:
            rows, columns = stored_grid
            stored = sincos_positions(rows, columns, width).reshape(1, rows, columns, width)
            if positions == "trained":
                self.positions = nn.Parameter(stored.to(torch.get_default_dtype()))
            else:
                self.register_buffer("positions", stored)

    @property
    def layer_widths(self) -> tuple[int, ...]:
        """Channels of the patches' tokens after each block."""
        return (self.width,) * len(self.blocks)

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the layer that makes the pixels."""
        weight = self.pred.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(
        self, features: Features, between: Between | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        """Pixels in the encoder's normalised space; ``between`` as in ``LayeredDecoder``."""
        positions = self._positions(features.grid)
        patches = per_frame(
            lambda tokens: self._patches(tokens, positions, between), *features,
            whole=between is not None,
        )  # fmt: skip
        return unpatchify(patches, features.grid, self.patch)

    def _patches(
        self,
        tokens: Float[Tensor, "b n d"],
        positions: Float[Tensor, "*one n w"],
        between: Between | None,
    ) -> Float[Tensor, "b n p"]:
        """Tokens of images → their patches of pixels."""
        tokens = self.embed(tokens) + positions
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for layer, block in enumerate(self.blocks):
            tokens = through(block, tokens)
            if between is not None:
                tokens = torch.cat([tokens[:, :1], between(layer, tokens[:, 1:])], dim=1)
        return at_least_fp32(self.pred(self.norm(tokens[:, 1:])))

    def _positions(self, grid: Grid) -> Tensor:
        """Of the tokens of a frame."""
        _, rows, columns = grid
        if not self._stored:
            return sincos_positions(rows, columns, self.width).to(self.cls_token)
        return resample_positions(self.positions, (rows, columns), antialias=False).flatten(1, 2)
