"""Attention along time far from a clip's beginning."""

from __future__ import annotations

import torch

from rpiae.core.model.temporal import Past, TemporalBlock, rotated


def test_a_long_clip_in_pieces_is_the_clip_as_a_whole() -> None:
    torch.manual_seed(0)
    block = TemporalBlock(width=32, num_heads=1, mlp_hidden=32, window=8)
    with torch.no_grad():
        for weight in block.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        tokens = torch.randn(1, 2001, 32)
        whole = block(tokens, grid=(2001, 1, 1))
        past = Past()
        pieces = [
            block(piece, grid=(piece.shape[1], 1, 1), past=past, name="block")
            for piece in tokens.split(7, dim=1)
        ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=0)


def test_products_of_rotated_values_depend_on_their_distance_wherever_they_are() -> None:
    one, other = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    for distance in (0, 3, 40):
        near = (rotated(one, first=distance) * rotated(other)).sum()
        far = (rotated(one, first=100_000 + distance) * rotated(other, first=100_000)).sum()
        torch.testing.assert_close(far, near, atol=1e-5, rtol=0)
