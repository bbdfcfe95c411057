"""Frames folded into the batch, so that networks for images run on clips.

CUDA kernels take fewer than 65,536 entries in the batch (heads included, in attention), and memory
grows with what runs at once: folds are cut into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.geometry import Grid

#: Most entries of a batch, times the heads in attention, that kernels take (pytorch#142228).
MOST_FOLDED = 65_535

#: Tokens, over all frames that run at once, that a longer clip is cut for.
TOKENS_AT_ONCE = 1 << 15


def per_frame(
    network: Callable[[Tensor], Tensor],
    values: Float[Tensor, "b ..."],
    grid: Grid | None = None,
    *,
    whole: bool = False,
) -> Float[Tensor, "b ..."]:
    """Run a network for images on every frame of a clip.

    Args:
        network: takes maps (n, c, h, w) to maps (n, e, y, x), or tokens (n, h·w, c) to tokens
            (n, m, e); it treats the entries of a batch alike and apart.
        values: a map (b, c, t, h, w), or tokens (b, t·h·w, c).
        grid: of the tokens; not given for a map.
        whole: whether all frames go in one call, for a network that looks from one to another.

    Returns:
        A map (b, e, t, y, x), or tokens (b, t·m, e).

    Raises:
        ValueError: if a map is not (b, c, t, h, w).
    """
    if grid is not None:
        frames = values.reshape(values.shape[0] * grid[0], math.prod(grid[1:]), values.shape[-1])
        [made] = in_chunks(
            lambda chunk: [network(chunk)],
            frames,
            most=frames.shape[0] if whole else frames_at_once(grid),
        )
        return made.reshape(values.shape[0], grid[0] * made.shape[1], made.shape[2])
    if values.ndim != 5:
        raise ValueError(f"a map of a clip is (b, c, t, h, w), not {tuple(values.shape)}")
    t, h, w = values.shape[2:]
    frames = fold(values)
    most = frames.shape[0] if whole else frames_at_once((t, h, w))
    [made] = in_chunks(lambda chunk: [network(chunk)], frames, most=most)
    return made.reshape(values.shape[0], t, *made.shape[1:]).transpose(1, 2)


def fold(clip: Float[Tensor, "b c t h w"]) -> Float[Tensor, "bt c h w"]:
    """All frames of all clips as one batch of images, clip by clip."""
    return clip.transpose(1, 2).flatten(0, 1)


def frames_at_once(grid: Grid) -> int:
    """How many frames of a clip run at once; of images, as many as a kernel takes."""
    t, h, w = grid
    return MOST_FOLDED if t == 1 else min(MOST_FOLDED, max(1, TOKENS_AT_ONCE // (h * w)))


def in_chunks(
    function: Callable[..., Sequence[Tensor]], *values: Tensor, most: int
) -> Sequence[Tensor]:
    """A function of batches, on at most ``most`` entries at a time.

    Args:
        function: takes ``values``, or the same entries of each, and gives tensors that have as many.
        values: tensors (n, …).
        most: entries per call.
    """
    if values[0].shape[0] <= most:
        return function(*values)
    chunks = zip(*(torch.split(tensor, most) for tensor in values), strict=True)
    parts = [function(*chunk) for chunk in chunks]
    return [torch.cat(same) for same in zip(*parts, strict=True)]
