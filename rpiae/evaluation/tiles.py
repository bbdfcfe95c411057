"""Reconstruction of large images in overlapping, blended tiles."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.geometry import pad_to
from rpiae.core.model.tiling import ramp, spread_starts
from rpiae.core.model.tokenizer import RPiAE

#: Tiles per forward pass.
BATCH = 32


@torch.no_grad()
def reconstruct_tiled(
    model: RPiAE, images: Float[Tensor, "1 3 h w"], *, tile: int
) -> Float[Tensor, "1 3 h w"]:
    """Reconstruct one image of any size in tiles of ``tile`` pixels that overlap by a quarter.

    Each tile counts with a weight that falls linearly to its border, so no seam shows. An image
    smaller than a tile is padded by reflection.
    """
    height, width = images.shape[-2:]
    padded = pad_to(images, (max(height, tile), max(width, tile)))
    places = [
        (y, x)
        for y in spread_starts(padded.shape[-2], tile)
        for x in spread_starts(padded.shape[-1], tile)
    ]
    weight = ramp(tile, images)[:, None] * ramp(tile, images)
    total = torch.zeros_like(padded)
    weights = torch.zeros_like(padded[:, :1])
    for i in range(0, len(places), BATCH):
        chosen = places[i : i + BATCH]
        tiles = torch.cat([padded[..., y : y + tile, x : x + tile] for y, x in chosen])
        for (y, x), made in zip(chosen, model.reconstruct(tiles), strict=True):
            total[0, :, y : y + tile, x : x + tile] += made * weight
            weights[0, :, y : y + tile, x : x + tile] += weight
    return (total / weights)[..., :height, :width]
