"""LightningDiT, the diffusion transformer of the paper's released generator, and the wide head of DDT."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rpiae.core.errors import UsageError
from rpiae.core.model.blocks import resample_positions, sincos_positions, through
from rpiae.core.model.geometry import at_least_fp32, map_to_tokens, unpatchify
from rpiae.generators.layers import (
    ModulatedBlock,
    ModulatedOutput,
    RotaryPositions,
    TimeEmbedding,
)

#: Standard deviation that the label table and the layers of the time embedding begin with.
STD = 0.02


class Dit(nn.Module):
    """A diffusion transformer on latents.

    Latents are cut into tokens; time and label, embedded and added, modulate every block. It gives
    exactly 0 before it is trained.

    Args:
        latent_channels: channels C of the latents.
        rows, columns: sides of latents that positions are stored for; others are computed, and
            trained positions resampled (bicubic).
        num_classes: classes; the label table has one more row, for none of them.
        width, depth, num_heads, mlp_ratio, patch, qk_norm, rms_norm, swiglu, rope, positions, shifts,
            frequencies, train_frequencies, init: see ``DitConfig``.
        head_width, head_depth, head_heads: of the wide head, see ``WideHead``; 0 blocks are none.

    Shapes:
        latents (b, C, h, w), time (b,), labels (b,) → (b, C, h, w)

    Raises:
        ValueError: if the sizes do not fit each other.

    Source: LightningDiT, arXiv 2501.01423, as released with arXiv 2603.19206. Differences:
    docs/generators.md.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        latent_channels: int,
        rows: int,
        columns: int,
        num_classes: int,
        width: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        patch: int = 1,
        qk_norm: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        rope: bool = True,
        positions: Literal["fixed", "trained", "none"] = "trained",
        shifts: bool = True,
        frequencies: int = 256,
        train_frequencies: bool = True,
        head_width: int = 2048,
        head_depth: int = 0,
        head_heads: int = 16,
        init: Literal["xavier", "default"] = "xavier",
    ) -> None:
        super().__init__()
        if rows % patch or columns % patch:
            raise ValueError(f"latents of {rows}×{columns} cannot be cut into patches of {patch}")
        self.latent_channels = latent_channels
        self.num_classes = num_classes
        self.patch = (patch, patch)
        self.width = width
        self.stored_grid = (rows // patch, columns // patch)
        style = {
            "mlp_ratio": mlp_ratio, "qk_norm": qk_norm, "rms_norm": rms_norm, "swiglu": swiglu,
            "shifts": shifts,
        }  # fmt: skip
        self.embed = nn.Conv2d(latent_channels, width, patch, stride=patch)
        self._store_positions(positions)
        self.time = TimeEmbedding(width=width, frequencies=frequencies, trained=train_frequencies)
        self.labels = nn.Embedding(num_classes + 1, width)
        self.blocks = _blocks(depth, width, num_heads, style)
        self.rotary = _rotary(width, num_heads, self.stored_grid) if rope else None
        self.head = (
            WideHead(
                latent_channels=latent_channels, patch=patch, features=width, width=head_width,
                depth=head_depth, num_heads=head_heads, style=style,
                grid=self.stored_grid if rope else None,
            )
            if head_depth
            else None
        )  # fmt: skip
        self.final = ModulatedOutput(
            width=head_width if head_depth else width,
            values=patch * patch * latent_channels,
            rms_norm=rms_norm,
        )
        self._initialise(init)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        labels: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c h w"]:
        """What it predicts of noised latents, in fp32 at least; see ``rpiae.plugin.Generator``.

        Raises:
            UsageError: if the latents cannot be cut into patches.
        """
        grid = self._grid(latents)
        moment = self.time(time).unsqueeze(1)
        condition = F.silu(moment + self.labels(labels).unsqueeze(1))
        if self.head is not None:  # where there is a head, there is a SiLU more
            condition = F.silu(condition)
        rotation = None if self.rotary is None else self.rotary(grid)
        tokens = at_least_fp32(map_to_tokens(self.embed(latents))) + self._positions(grid)
        for block in self.blocks:
            tokens = through(block, tokens, condition=condition, rotation=rotation)
        if self.head is not None:
            tokens, condition = self.head(latents, F.silu(moment + tokens), grid)
        patches = at_least_fp32(self.final(tokens, condition))
        return unpatchify(
            patches, (1, *grid), (1, *self.patch), channels=self.latent_channels
        ).squeeze(2)

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of the tokens of latents."""
        (rows, columns), patch = latents.shape[-2:], self.patch[0]
        if rows % patch or columns % patch:
            raise UsageError(
                f"latents of {rows}×{columns} cannot be cut into patches of {patch}: their sides must "
                f"be multiples of {patch}"
            )
        return rows // patch, columns // patch

    def _store_positions(self, kind: Literal["fixed", "trained", "none"]) -> None:
        self.position_kind = kind
        if kind == "none":
            return
        values = sincos_positions(*self.stored_grid, self.width)
        values = values.reshape(1, *self.stored_grid, self.width)
        if kind == "trained":
            self.positions = nn.Parameter(values)
        else:
            self.register_buffer("positions", values, persistent=False)

    def _positions(self, grid: tuple[int, int]) -> Tensor | float:
        """What is added to the tokens of a grid."""
        if self.position_kind == "none":
            return 0.0
        if self.position_kind == "fixed" and grid != self.stored_grid:
            return sincos_positions(*grid, self.width).to(self.positions)
        return resample_positions(self.positions, grid, antialias=False).flatten(1, 2)

    def _initialise(self, init: Literal["xavier", "default"]) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear) and init == "xavier":
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.detach().flatten(1))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.labels.weight, std=STD)
        for layer in self.time.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=STD)
        for module in self.modules():
            if isinstance(module, (ModulatedBlock, ModulatedOutput)):
                _zero(module.modulation)
        _zero(self.final.linear)


class WideHead(nn.Module):
    """Few wide blocks that read the noised latents again, modulated token by token by the features of
    the blocks before them.

    Args:
        latent_channels, patch: of the latents.
        features: channels of those features.
        width, depth, num_heads: of the blocks.
        style: keywords of every block.
        grid: rows and columns that rotary positions are kept for; None without them.

    Source: DDT, arXiv 2504.05741; the head of RAE, arXiv 2510.11690.
    """

    def __init__(
        self,
        *,
        latent_channels: int,
        patch: int,
        features: int,
        width: int,
        depth: int,
        num_heads: int,
        style: dict[str, Any],
        grid: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(latent_channels, width, patch, stride=patch)
        self.projection = nn.Linear(features, width) if features != width else nn.Identity()
        self.blocks = _blocks(depth, width, num_heads, style)
        self.rotary = None if grid is None else _rotary(width, num_heads, grid)

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        features: Float[Tensor, "b n d"],
        grid: tuple[int, int],
    ) -> tuple[Float[Tensor, "b n w"], Float[Tensor, "b n w"]]:
        """Tokens, and the condition of each."""
        condition = F.silu(self.projection(features))
        rotation = None if self.rotary is None else self.rotary(grid)
        tokens = at_least_fp32(map_to_tokens(self.embed(latents)))
        for block in self.blocks:
            tokens = through(block, tokens, condition=condition, rotation=rotation)
        return tokens, condition


def _blocks(depth: int, width: int, num_heads: int, style: dict[str, Any]) -> nn.ModuleList:
    if width % num_heads:
        raise ValueError(f"{num_heads} heads do not divide the width of {width}")
    return nn.ModuleList(
        ModulatedBlock(width=width, num_heads=num_heads, **style) for _ in range(depth)
    )


def _rotary(width: int, num_heads: int, grid: tuple[int, int]) -> RotaryPositions:
    if width // num_heads % 4:
        raise ValueError(
            f"rotary positions need heads of a multiple of 4 channels, and {num_heads} heads of "
            f"{width} have {width // num_heads}"
        )
    return RotaryPositions(head_width=width // num_heads, grid=grid)


def _zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
