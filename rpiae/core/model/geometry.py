"""Maps between images, patches, tokens and grids, the geometry rule, 8-bit images, and precision.

A grid is ``(t, h, w)``: frames (1 for an image), rows and columns of tokens. Tokens lie row-major,
frame by frame. No function here takes the square root of a token count, so every aspect ratio works.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError

Grid: TypeAlias = tuple[int, int, int]

#: How values become whole numbers.
Rounding: TypeAlias = Literal["nearest", "truncate"]


class Geometry(NamedTuple):
    """How an H×W image becomes tokens and comes back (method.md: geometry is a ratio, not a size).

    Attributes:
        size: (H, W) of the image.
        padded: (H, W) after padding to multiples of the output patch, times the bridge's
            downsampling.
        grid: (1, h, w) tokens.
        encoder_size: (h·p, w·p), what the encoder sees.
    """

    size: tuple[int, int]
    padded: tuple[int, int]
    grid: Grid
    encoder_size: tuple[int, int]


def geometry(
    size: tuple[int, int], *, patch: int, output_patch: int, downsampling: int = 1
) -> Geometry:
    """Geometry of an image of ``size`` (H, W) for encoder patch p and output patch q.

    Args:
        size: of the image.
        patch, output_patch: pixels per token and side, in and out.
        downsampling: tokens per latent position and side; the grid's sides are multiples of it.

    Raises:
        UsageError: if a size or a ratio is not positive.
    """
    if min(size) < 1:
        raise UsageError(f"an image needs at least one pixel, this one is {size[0]}×{size[1]}")
    if min(patch, output_patch, downsampling) < 1:
        raise UsageError(
            f"patch {patch}, output patch {output_patch} and downsampling {downsampling} must be at "
            "least 1"
        )
    h, w = (math.ceil(side / (output_patch * downsampling)) * downsampling for side in size)
    return Geometry(
        size=size,
        padded=(h * output_patch, w * output_patch),
        grid=(1, h, w),
        encoder_size=(h * patch, w * patch),
    )


def pad_to(
    images: Float[Tensor, "b c h w"], size: tuple[int, int]
) -> Float[Tensor, "b c height width"]:
    """Pad by reflection at the bottom and the right up to ``size``.

    An image too small to be reflected in one go (padding of a side or more) is reflected again and
    again; a side of one pixel is repeated.
    """
    while images.shape[-2:] != size:
        sides = images.shape[-2:]
        missing = [target - side for target, side in zip(size, sides, strict=True)]
        rows, columns = (m if side == 1 else 0 for m, side in zip(missing, sides, strict=True))
        if rows or columns:
            images = F.pad(images, (0, columns, 0, rows), mode="replicate")
            continue
        rows, columns = (min(m, side - 1) for m, side in zip(missing, sides, strict=True))
        images = F.pad(images, (0, columns, 0, rows), mode="reflect")
    return images


def encoder_view(images: Float[Tensor, "b c h w"], plan: Geometry) -> Float[Tensor, "b c y x"]:
    """Images as an encoder sees them, in fp32 (or fp64): padded by reflection, then resized (bicubic)
    to its patches."""
    images = pad_to(at_least_fp32(images), plan.padded)
    if plan.encoder_size == plan.padded:
        return images
    return F.interpolate(images, size=plan.encoder_size, mode="bicubic", align_corners=False)


def to_8_bits(images: Tensor, *, rounding: Rounding = "nearest") -> Tensor:
    """Images clamped to [0, 1] and brought to the values that 8 bits can hold, still in [0, 1].

    Args:
        images: of any shape.
        rounding: to the nearest value, or ``truncate``: to the one below, as a plain conversion to
            bytes does.
    """
    values = images.clamp(0, 1) * 255
    return (values.floor() if rounding == "truncate" else values.round()) / 255


def at_least_fp32(values: Tensor) -> Tensor:
    """Values in fp32; those in fp64 stay so. Norms, statistics and losses are computed in it."""
    return values if values.dtype == torch.float64 else values.float()


def patchify(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n d"]:
    """Cut images into patches; d = patch·patch·c with the channel fastest.

    Raises:
        ValueError: if a side is not a multiple of ``patch``.
    """
    b, c, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"{height}×{width} is not a multiple of patch {patch}")
    h, w = height // patch, width // patch
    patches = images.reshape(b, c, h, patch, w, patch).permute(0, 2, 4, 3, 5, 1)
    return patches.reshape(b, h * w, patch * patch * c)


def unpatchify(
    patches: Float[Tensor, "b n d"], grid: Grid, patch: int, *, channels: int = 3
) -> Float[Tensor, "b c h w"]:
    """Inverse of [`patchify`][rpiae.core.model.geometry.patchify] for a one-frame grid.

    Raises:
        ValueError: if the tokens do not fill the grid.
    """
    _, h, w = _filled(patches, grid)
    b = patches.shape[0]
    images = patches.reshape(b, h, w, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
    return images.reshape(b, channels, h * patch, w * patch)


def tokens_to_map(tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b d h w"]:
    """Tokens of a one-frame grid as a feature map.

    Raises:
        ValueError: if the tokens do not fill the grid.
    """
    _, h, w = _filled(tokens, grid)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[-1], h, w)


def map_to_tokens(feature_map: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n d"]:
    """A feature map as row-major tokens."""
    return feature_map.flatten(2).transpose(1, 2)


def map_grid(feature_map: Float[Tensor, "b d h w"]) -> Grid:
    """The grid of a feature map."""
    return (1, feature_map.shape[-2], feature_map.shape[-1])


def _filled(tokens: Tensor, grid: Grid) -> Grid:
    if tokens.shape[1] != math.prod(grid) or grid[0] != 1:
        raise ValueError(
            f"{tokens.shape[1]} tokens do not fill the one-frame grid {grid[0]}×{grid[1]}×{grid[2]}"
        )
    return grid
