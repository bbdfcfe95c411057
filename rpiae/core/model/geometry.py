"""Maps between clips, patches, tokens and grids, the geometry rule, 8-bit images, and precision.

A grid is ``(t, h, w)``: steps in time (1 for an image), rows and columns of tokens. A patch is
``(pt, ph, pw)``: frames and pixels per token. Tokens lie row-major, step by step. No function here
takes the square root of a token count or one side for the other, so every aspect ratio works.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.resampling import resample

Grid: TypeAlias = tuple[int, int, int]

#: Frames, rows and columns of pixels per token.
Patch: TypeAlias = tuple[int, int, int]

#: How values become whole numbers.
Rounding: TypeAlias = Literal["nearest", "truncate"]


class Geometry(NamedTuple):
    """How a clip of T frames of H×W becomes tokens and comes back (method.md: geometry is a ratio,
    not a size). An image is a clip of one frame.

    Attributes:
        size: (T, H, W) of the clip.
        padded: (T, H, W) after padding to multiples of the output patch, rows and columns also
            times the bridge's downsampling, and frames to the bridge's groups.
        grid: (t, h, w) tokens.
        encoder_size: (t·pt, h·ph, w·pw), what the encoder sees.
    """

    size: tuple[int, int, int]
    padded: tuple[int, int, int]
    grid: Grid
    encoder_size: tuple[int, int, int]


def patch_triple(patch: int | Sequence[int]) -> Patch:
    """A patch as (pt, ph, pw); a bare number p is the patch of an image part, (1, p, p).

    Raises:
        UsageError: if it is neither, or a number is below 1.
    """
    triple = (1, patch, patch) if isinstance(patch, int) else tuple(patch)
    if len(triple) != 3 or min(triple) < 1:
        raise UsageError(
            f"a patch is pixels per side, or (frames, rows, columns), each at least 1, not {patch}"
        )
    return triple


def geometry(
    size: Sequence[int],
    *,
    patch: int | Patch,
    output_patch: int | Patch,
    downsampling: int = 1,
    temporal_downsampling: int = 1,
) -> Geometry:
    """Geometry of a clip or image for encoder patch p and output patch q.

    Rows and columns are padded and resized, each by itself. Time is padded and never resized, so p
    and q have the same number of frames.

    Args:
        size: (T, H, W) of a clip, or (H, W) of an image.
        patch, output_patch: frames and pixels per token, in and out; see ``patch_triple``.
        downsampling: tokens per latent position and side; the grid's rows and columns are multiples
            of it.
        temporal_downsampling: steps of tokens T per latent step after the first, which has one: the
            grid has 1 + k·T steps.

    Raises:
        UsageError: if a size or a ratio is not positive, or p and q differ in frames.
    """
    seen, made = patch_triple(patch), patch_triple(output_patch)
    frames, height, width = size if len(size) == 3 else (1, *size)
    if frames < 1:
        raise UsageError("a clip needs at least one frame, this one has none")
    if min(height, width) < 1:
        raise UsageError(f"an image needs at least one pixel, this one is {height}×{width}")
    if min(downsampling, temporal_downsampling) < 1:
        raise UsageError(
            f"downsampling must be at least 1, in space ({downsampling}) and in time "
            f"({temporal_downsampling})"
        )
    if seen[0] != made[0]:
        raise UsageError(
            f"the encoder takes {seen[0]} frames per token and the decoder makes {made[0]}: time is "
            "not resampled, so they must be equal"
        )
    steps = _covering(frames, made[0])
    steps = 1 + _covering(steps - 1, temporal_downsampling) * temporal_downsampling
    rows, columns = (
        _covering(side, pixels * downsampling) * downsampling
        for side, pixels in zip((height, width), made[1:], strict=True)
    )
    return Geometry(
        size=(frames, height, width),
        padded=(steps * made[0], rows * made[1], columns * made[2]),
        grid=(steps, rows, columns),
        encoder_size=(steps * seen[0], rows * seen[1], columns * seen[2]),
    )


def _covering(side: int, unit: int) -> int:
    """How many units cover a side, which may be a symbol of a graph that is exported."""
    return -(-side // unit)


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
    """Images, or frames of a clip, as an encoder sees them, in fp32 (or fp64): padded by reflection,
    then resized (bicubic) to its patches."""
    images = pad_to(at_least_fp32(images), plan.padded[1:])
    return resample(images, plan.encoder_size[1:])


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


def patchify(clip: Float[Tensor, "b c t h w"], patch: Patch) -> Float[Tensor, "b n d"]:
    """Cut a clip into patches; d = pt·ph·pw·c, row-major within a patch, with the channel fastest.

    Raises:
        ValueError: if a side is not a multiple of the patch's.
    """
    b, c, *sides = clip.shape
    if any(side % along for side, along in zip(sides, patch, strict=True)):
        raise ValueError(f"{_times(sides)} is not a multiple of patch {_times(patch)}")
    t, h, w = (side // along for side, along in zip(sides, patch, strict=True))
    pt, ph, pw = patch
    patches = clip.reshape(b, c, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return patches.reshape(b, t * h * w, pt * ph * pw * c)


def unpatchify(
    patches: Float[Tensor, "b n d"], grid: Grid, patch: Patch, *, channels: int = 3
) -> Float[Tensor, "b c t h w"]:
    """Inverse of [`patchify`][rpiae.core.model.geometry.patchify].

    Raises:
        ValueError: if the tokens do not fill the grid.
    """
    _check_fill(patches, grid)
    (t, h, w), (pt, ph, pw), b = grid, patch, patches.shape[0]
    clip = patches.reshape(b, t, h, w, pt, ph, pw, channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return clip.reshape(b, channels, t * pt, h * ph, w * pw)


def tokens_to_map(tokens: Float[Tensor, "b n d"], grid: Grid) -> Float[Tensor, "b d t h w"]:
    """Tokens as a feature map.

    Raises:
        ValueError: if the tokens do not fill the grid.
    """
    _check_fill(tokens, grid)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[-1], *grid)


def map_to_tokens(feature_map: Float[Tensor, "b d ..."]) -> Float[Tensor, "b n d"]:
    """A feature map (b, d, t, h, w), or one of images (b, d, h, w), as row-major tokens."""
    return feature_map.flatten(2).transpose(1, 2)


def map_grid(feature_map: Float[Tensor, "b d ..."]) -> Grid:
    """The grid of a feature map (b, d, t, h, w), or of one of images (b, d, h, w)."""
    *t, h, w = feature_map.shape[2:]
    return (t[0] if t else 1, h, w)


def _check_fill(tokens: Tensor, grid: Grid) -> None:
    """Refuse tokens that do not fill a grid."""
    if tokens.shape[1] != math.prod(grid):
        raise ValueError(f"{tokens.shape[1]} tokens do not fill the grid {_times(grid)}")


def _times(sides: Sequence[int]) -> str:
    return "×".join(map(str, sides))
