"""Maps between images, patches, tokens and grids; the geometry rule; reflection padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.core.model.geometry import (
    geometry,
    map_grid,
    map_to_tokens,
    pad_to,
    patchify,
    tokens_to_map,
    unpatchify,
)

small = st.integers(1, 5)


def _numbered(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)


@given(b=small, c=small, rows=small, columns=small, patch=small)
def test_patchify_and_back(b: int, c: int, rows: int, columns: int, patch: int) -> None:
    images = _numbered(b, c, rows * patch, columns * patch)
    patches = patchify(images, patch)
    assert patches.shape == (b, rows * columns, patch * patch * c)
    assert torch.equal(unpatchify(patches, (1, rows, columns), patch, channels=c), images)


@given(c=small, rows=small, columns=small, patch=small, data=st.data())
def test_where_a_pixel_goes(
    c: int, rows: int, columns: int, patch: int, data: st.DataObject
) -> None:
    images = _numbered(1, c, rows * patch, columns * patch)
    channel = data.draw(st.integers(0, c - 1))
    y = data.draw(st.integers(0, rows * patch - 1))
    x = data.draw(st.integers(0, columns * patch - 1))
    token = (y // patch) * columns + x // patch
    position = ((y % patch) * patch + x % patch) * c + channel
    assert patchify(images, patch)[0, token, position] == images[0, channel, y, x]


@given(rows=small, columns=small, patch=st.integers(2, 5), off=st.integers(1, 4))
def test_sides_that_are_no_multiple_are_refused(
    rows: int, columns: int, patch: int, off: int
) -> None:
    height = rows * patch + (off - 1) % (patch - 1) + 1
    with pytest.raises(ValueError, match=f"{height}×{columns * patch} is not a multiple"):
        patchify(torch.zeros(1, 3, height, columns * patch), patch)


@given(b=small, d=small, rows=small, columns=small)
def test_tokens_and_maps(b: int, d: int, rows: int, columns: int) -> None:
    feature_map = _numbered(b, d, rows, columns)
    tokens = map_to_tokens(feature_map)
    assert tokens.shape == (b, rows * columns, d)
    assert map_grid(feature_map) == (1, rows, columns)
    assert torch.equal(tokens_to_map(tokens, (1, rows, columns)), feature_map)
    assert torch.equal(tokens[:, -1], feature_map[..., -1, -1])
    assert torch.equal(tokens[:, columns - 1], feature_map[..., 0, -1])


@given(rows=small, columns=small, extra=small)
def test_tokens_must_fill_the_grid(rows: int, columns: int, extra: int) -> None:
    tokens = torch.zeros(1, rows * columns + extra, 4)
    with pytest.raises(ValueError, match="do not fill"):
        tokens_to_map(tokens, (1, rows, columns))
    with pytest.raises(ValueError, match="do not fill"):
        unpatchify(tokens, (1, rows, columns), 2, channels=1)


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    patch=st.integers(1, 32),
    output_patch=st.integers(1, 32),
    downsampling=st.integers(1, 3),
)
def test_geometry_is_a_ratio(
    size: tuple[int, int], patch: int, output_patch: int, downsampling: int
) -> None:
    plan = geometry(size, patch=patch, output_patch=output_patch, downsampling=downsampling)
    assert plan.size == size
    assert plan.grid[0] == 1
    for side, padded, tokens, seen in zip(
        size, plan.padded, plan.grid[1:], plan.encoder_size, strict=True
    ):
        assert padded == tokens * output_patch
        assert seen == tokens * patch
        assert tokens % downsampling == 0
        assert 0 <= padded - side < output_patch * downsampling


@given(st.integers(-3, 0), st.integers(-3, 5))
def test_an_image_needs_a_pixel(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        geometry((height, width), patch=14, output_patch=16)


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
    padded = pad_to(images, plan.padded)
    assert padded.shape == (b, 3, *plan.padded)
    assert torch.equal(padded[..., : size[0], : size[1]], images)
    rows, columns = (_reflected(s, w) for s, w in zip(size, plan.padded, strict=True))
    assert torch.equal(padded, images[..., rows, :][..., columns])


def test_a_single_row_is_reflected_along_its_length() -> None:
    padded = pad_to(_numbered(1, 1, 1, 5), (1, 8))
    assert padded.flatten().tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
