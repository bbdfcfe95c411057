"""Frames too large for one pass, in overlapping tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import Posterior
from rpiae.core.model.joining import joined


@frozen(kw_only=True)
class Tiling:
    """Where tiles lie, all of one size, on the positions of a latent.

    Encoded, a position is that of the tile in which it lies further from the border; decoded, each
    tile counts with a weight that falls linearly to its border, so no seam shows.

    Attributes:
        grid: rows and columns of latent positions of the whole.
        own: those of a tile.
        step: (height, width) in pixels of a position.
        rows, columns: at which position tiles begin, in each direction.
    """

    grid: tuple[int, int]
    own: tuple[int, int]
    step: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def over(cls, size: Sequence[int], *, step: Sequence[int], tile: int | None) -> Tiling:
        """Tiles that overlap by at least a quarter, evenly spread.

        Args:
            size: (H, W) of the whole in pixels, multiples of ``step``.
            step: (height, width) of a latent position.
            tile: side of a tile in pixels, rounded down to whole positions, at least one; None takes
                the whole as one tile.
        """
        height, width = (side // along for side, along in zip(size, step, strict=True))
        own = [
            whole if tile is None else min(whole, max(1, tile // along))
            for whole, along in zip((height, width), step, strict=True)
        ]
        rows, columns = (
            tuple(spread_starts(whole, part))
            for whole, part in zip((height, width), own, strict=True)
        )
        return cls(
            grid=(height, width), own=(own[0], own[1]), step=(step[0], step[1]), rows=rows,
            columns=columns,
        )  # fmt: skip

    @property
    def places(self) -> list[tuple[int, int]]:
        """The first row and column of each tile, row by row."""
        return [(row, column) for row in self.rows for column in self.columns]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the whole in pixels."""
        return self.grid[0] * self.step[0], self.grid[1] * self.step[1]

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of a tile in pixels."""
        return self.own[0] * self.step[0], self.own[1] * self.step[1]

    def tiles(self, frames: Float[Tensor, "... height width"]) -> list[Tensor]:
        """The tiles' pixels."""
        (height, width), (y, x) = self.tile, self.step
        return [
            frames[..., row * y : row * y + height, column * x : column * x + width]
            for row, column in self.places
        ]

    def latent_tiles(self, latent: Float[Tensor, "... h w"]) -> list[Tensor]:
        """The tiles' positions."""
        height, width = self.own
        return [
            latent[..., row : row + height, column : column + width] for row, column in self.places
        ]

    def stitched(self, posteriors: Sequence[Posterior]) -> Posterior:
        """Posteriors of the tiles as one of the whole."""
        return joined(posteriors, self._joined, self.latent_tiles)

    def blended(self, tiles: Sequence[Float[Tensor, "... height width"]]) -> Tensor:
        """Pixels of the tiles as those of the whole."""
        if len(tiles) == 1:
            return tiles[0]
        (height, width), (y, x) = self.tile, self.step
        weight = ramp(height, tiles[0])[:, None] * ramp(width, tiles[0])
        total = tiles[0].new_zeros(*tiles[0].shape[:-2], *self.size)
        weights = total.new_zeros(self.size)
        for (row, column), tile in zip(self.places, tiles, strict=True):
            part = (slice(row * y, row * y + height), slice(column * x, column * x + width))
            total[(..., *part)] += tile * weight
            weights[part] += weight
        return total / weights

    def _joined(self, tiles: Sequence[Tensor]) -> Tensor:
        columns = len(self.columns)
        rows = [
            _cut_and_joined(tiles[i : i + columns], self.columns, self.grid[1], dim=-1)
            for i in range(0, len(tiles), columns)
        ]
        return _cut_and_joined(rows, self.rows, self.grid[0], dim=-2)


def spread_starts(length: int, tile: int) -> list[int]:
    """Evenly spread starts of tiles that cover ``length`` with at least a quarter of overlap."""
    if length <= tile:
        return [0]
    stride = max(1, tile - tile // 4)
    count = -(-(length - tile) // stride) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def ramp(length: int, like: Tensor) -> Float[Tensor, " length"]:
    """Weights that fall linearly from the middle of a tile to its border, where they stay above 0."""
    middles = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return 1 - (2 * middles / length - 1).abs()


def _cut_and_joined(
    tiles: Sequence[Tensor], starts: Sequence[int], length: int, *, dim: int
) -> Tensor:
    """Tiles along a dimension, each cut in the middle of its overlaps."""
    ends = [start + tiles[0].shape[dim] for start in starts]
    cuts = [0, *((end + start) // 2 for end, start in zip(ends, starts[1:], strict=False)), length]
    parts = zip(tiles, starts, cuts, cuts[1:], strict=False)
    return torch.cat(
        [tile.narrow(dim, first - start, last - first) for tile, start, first, last in parts],
        dim=dim,
    )
