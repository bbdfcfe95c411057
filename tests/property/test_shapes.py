"""Maps between images, patches, tokens and grids; the geometry rule; reflection padding."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.geometry import (
    Grid,
    Patch,
    geometry,
    map_grid,
    map_to_tokens,
    pad_to,
    patchify,
    tokens_to_map,
    unpatchify,
)

small = st.integers(1, 5)
sides = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


def _numbered(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


def _whole(grid: Grid, patch: Patch) -> list[int]:
    """Frames, rows and columns of pixels of a grid of patches."""
    return [along * each for along, each in zip(grid, patch, strict=True)]


@given(b=small, c=small, grid=sides, patch=sides)
def test_patchify_and_back(b: int, c: int, grid: Grid, patch: Patch) -> None:
    clip = _numbered(b, c, *_whole(grid, patch))
    patches = patchify(clip, patch)
    assert patches.shape == (b, math.prod(grid), math.prod(patch) * c)
    assert torch.equal(unpatchify(patches, grid, patch, channels=c), clip)


@given(c=small, grid=sides, patch=sides, data=st.data())
def test_where_a_pixel_goes(c: int, grid: Grid, patch: Patch, data: st.DataObject) -> None:
    clip = _numbered(1, c, *_whole(grid, patch))
    channel = data.draw(st.integers(0, c - 1))
    place = [data.draw(st.integers(0, side - 1)) for side in _whole(grid, patch)]
    (t, y, x), (k, i, j) = (
        [op(at, each) for at, each in zip(place, patch, strict=True)]
        for op in (operator.floordiv, operator.mod)
    )
    token = (t * grid[1] + y) * grid[2] + x
    position = ((k * patch[1] + i) * patch[2] + j) * c + channel
    assert patchify(clip, patch)[0, token, position] == clip[0, channel, *place]


@given(grid=sides, patch=st.integers(2, 5), off=st.integers(1, 4), axis=st.integers(0, 2))
def test_sides_that_are_no_multiple_are_refused(
    grid: Grid, patch: int, off: int, axis: int
) -> None:
    whole = _whole(grid, (patch, patch, patch))
    whole[axis] += (off - 1) % (patch - 1) + 1
    said = "×".join(map(str, whole))
    with pytest.raises(ValueError, match=f"{said} is not a multiple of patch {patch}×{patch}×"):
        patchify(torch.zeros(1, 3, *whole), (patch, patch, patch))


@given(b=small, d=small, grid=sides)
def test_tokens_and_maps(b: int, d: int, grid: Grid) -> None:
    feature_map = _numbered(b, d, *grid)
    tokens = map_to_tokens(feature_map)
    assert tokens.shape == (b, math.prod(grid), d)
    assert map_grid(feature_map) == grid
    assert torch.equal(tokens_to_map(tokens, grid), feature_map)
    assert torch.equal(tokens[:, -1], feature_map[..., -1, -1, -1])
    assert torch.equal(tokens[:, grid[2] - 1], feature_map[..., 0, 0, -1])
    assert torch.equal(tokens[:, (grid[0] - 1) * grid[1] * grid[2]], feature_map[:, :, -1, 0, 0])


@given(b=small, d=small, rows=small, columns=small)
def test_a_map_of_images_is_one_of_single_frames(b: int, d: int, rows: int, columns: int) -> None:
    feature_map = _numbered(b, d, rows, columns)
    assert map_grid(feature_map) == (1, rows, columns)
    assert torch.equal(map_to_tokens(feature_map), map_to_tokens(feature_map.unsqueeze(2)))


@given(grid=sides, extra=small)
def test_tokens_must_fill_the_grid(grid: Grid, extra: int) -> None:
    tokens = torch.zeros(1, math.prod(grid) + extra, 4)
    with pytest.raises(ValueError, match="do not fill"):
        tokens_to_map(tokens, grid)
    with pytest.raises(ValueError, match="do not fill"):
        unpatchify(tokens, grid, (1, 2, 2), channels=1)


@given(
    size=st.tuples(st.integers(1, 100), st.integers(1, 5000), st.integers(1, 5000)),
    frames=st.integers(1, 4),
    patch=st.tuples(st.integers(1, 32), st.integers(1, 32)),
    output_patch=st.tuples(st.integers(1, 32), st.integers(1, 32)),
    downsampling=st.integers(1, 3),
)
def test_geometry_is_a_ratio_of_each_side(
    size: tuple[int, int, int],
    frames: int,
    patch: tuple[int, int],
    output_patch: tuple[int, int],
    downsampling: int,
) -> None:
    seen, made = (frames, *patch), (frames, *output_patch)
    plan = geometry(size, patch=seen, output_patch=made, downsampling=downsampling)
    assert plan.size == size
    assert plan.padded == tuple(_whole(plan.grid, made))
    assert plan.encoder_size == tuple(_whole(plan.grid, seen))
    for axis, factor in enumerate((1, downsampling, downsampling)):
        assert plan.grid[axis] % factor == 0
        assert 0 <= plan.padded[axis] - size[axis] < made[axis] * factor


@given(
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    patch=st.integers(1, 32),
    output_patch=st.integers(1, 32),
)
def test_an_image_is_a_clip_of_one_frame(
    size: tuple[int, int], patch: int, output_patch: int
) -> None:
    plan = geometry(size, patch=patch, output_patch=output_patch)
    assert plan == geometry(
        (1, *size), patch=(1, patch, patch), output_patch=(1, output_patch, output_patch)
    )


@given(st.integers(-3, 0), st.integers(-3, 5))
def test_an_image_needs_a_pixel(height: int, width: int) -> None:
    with pytest.raises(UsageError, match="at least one pixel"):
        geometry((height, width), patch=14, output_patch=16)
    with pytest.raises(UsageError, match="at least one frame"):
        geometry((height, 4, 4), patch=14, output_patch=16)


def test_time_is_not_resized() -> None:
    with pytest.raises(UsageError, match="takes 2 frames per token and the decoder makes 1"):
        geometry((4, 32, 32), patch=(2, 16, 16), output_patch=16)


@pytest.mark.parametrize("patch", [0, (1, 2), (1, 0, 2), (1, 2, 3, 4)])
def test_what_is_no_patch_is_refused(patch: Any) -> None:
    with pytest.raises(
        UsageError, match=r"a patch is pixels per side, or \(frames, rows, columns\)"
    ):
        geometry((4, 4), patch=patch, output_patch=1)


def _reflected(side: int, wanted: int) -> list[int]:
    """Index of every padded position: 0, 1, …, side − 1, side − 2, …, 1, 0, 1, …"""
    period = max(1, 2 * (side - 1))
    return [min(i % period, period - i % period) for i in range(wanted)]


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    output_patch=st.integers(1, 32),
    b=st.integers(1, 2),
)
def test_padding_reflects_and_the_crop_gives_the_image_back(
    size: tuple[int, int], output_patch: int, b: int
) -> None:
    images = _numbered(b, 3, *size)
    plan = geometry(size, patch=14, output_patch=output_patch)
    padded = pad_to(images, plan.padded[1:])
    assert padded.shape == (b, 3, *plan.padded[1:])
    assert torch.equal(padded[..., : size[0], : size[1]], images)
    rows, columns = (_reflected(s, w) for s, w in zip(size, plan.padded[1:], strict=True))
    assert torch.equal(padded, images[..., rows, :][..., columns])


def test_a_single_row_is_reflected_along_its_length() -> None:
    padded = pad_to(_numbered(1, 1, 1, 5), (1, 8))
    assert padded.flatten().tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
