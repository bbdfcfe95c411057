"""Finite scalar quantisation of a feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rpiae.plugin import (
    Features,
    UsageError,
    at_least_fp32,
    map_grid,
    map_to_tokens,
    per_frame,
    tokens_to_map,
)

#: By how much a channel's bound reaches past its outermost level, so that it can be reached.
MARGIN = 1e-3


class Codes:
    """A posterior that is one code per latent position.

    Args:
        latent: (b, C, t, h, w), the codes in [−1, 1], with straight-through gradients.
        indices: (b, t, h, w), which of the ``codebook_size`` codes each is.
        codebook_size: how many there are.
    """

    def __init__(
        self,
        latent: Float[Tensor, "b c t h w"],
        indices: Int[Tensor, "b t h w"],
        *,
        codebook_size: int,
    ) -> None:
        self._latent = latent
        self.indices = indices
        self.codebook_size = codebook_size

    def mode(self) -> Float[Tensor, "b c t h w"]:
        """The codes."""
        return self._latent

    def sample(self, noise: Float[Tensor, "b c t h w"] | None = None) -> Float[Tensor, "b c t h w"]:
        """The codes; there is nothing to draw."""
        return self._latent


class FsqBridge(nn.Module):
    """Projects features to a few channels and rounds each of them to one of a few levels.

    A channel of L levels is bounded by tanh to just past the integers from −⌊L/2⌋ to ⌈L/2⌉ − 1,
    rounded with a straight-through gradient and divided by ⌊L/2⌋. No codebook is learned, and
    nothing has to be kept from collapsing.

    Args:
        features: channels D of the features.
        levels: values that each latent channel can take, each at least 2.
        projection: ``"linear"`` or ``"conv"`` (3×3, frame by frame), both ways.

    Shapes:
        tokens (b, n, D) on the grid (t, h, w) ↔ latent (b, len(levels), t, h, w)

    Raises:
        ValueError: if there is no level, one is below 2, the codes are too many to number, or the
            projection is unknown.

    Source: arXiv 2309.15505. Ours differs in two points: the shift of an even number of levels is
    atanh(½/bound), so that an input of zero is at the centre of a level, where the paper's listing
    has tan; and the bound reaches past the outermost level by 0.001, not within it by a thousandth.
    """

    gaussian = False
    downsampling = 1
    levels: Tensor

    def __init__(
        self, *, features: int, levels: Sequence[int] = (8, 5, 5, 5), projection: str = "linear"
    ) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(
                f"levels = {list(levels)}: name at least one channel, each of 2 levels or more, "
                "such as [8, 5, 5, 5]"
            )
        if math.prod(levels) >= 2**63:
            raise ValueError(f"levels = {list(levels)} are more codes than 64 bits can number")
        if projection not in ("linear", "conv"):
            raise ValueError(f"projection is 'linear' or 'conv', not {projection!r}")
        self.features = features
        self.latent_channels = len(levels)
        self.codebook_size = math.prod(levels)
        kernel = 3 if projection == "conv" else 1
        self.encoder = nn.Conv2d(features, len(levels), kernel, padding=kernel // 2)
        self.decoder = nn.Conv2d(len(levels), features, kernel, padding=kernel // 2)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)

    def encode(self, features: Features) -> Codes:
        """The code of every token."""
        feature_map = tokens_to_map(features.tokens, features.grid)
        projected = at_least_fp32(per_frame(self.encoder, feature_map)).movedim(1, -1)
        bounded = self._bounded(projected)
        rounded = bounded + (bounded.round() - bounded).detach()
        latent = (rounded / self._half).movedim(-1, 1)
        return Codes(latent, self.indices_of(latent.detach()), codebook_size=self.codebook_size)

    def decode(self, latent: Float[Tensor, "b c t h w"]) -> Features:
        """Features ẑ of a latent."""
        expanded = at_least_fp32(per_frame(self.decoder, latent))
        return Features(map_to_tokens(expanded), map_grid(expanded))

    def indices_of(self, latent: Float[Tensor, "b c ..."]) -> Int[Tensor, "b ..."]:
        """Numbers of codes, 0 to ``codebook_size`` − 1; the first channel counts fastest.

        Latents are of images, (b, C, h, w), or of clips, (b, C, t, h, w).
        """
        digits = (latent.movedim(1, -1) * self._half).round().long() + self._half
        return (digits * self._basis).sum(dim=-1)

    def latent_of(self, indices: Int[Tensor, "b ..."]) -> Float[Tensor, "b c ..."]:
        """Codes of their numbers, the inverse of ``indices_of``.

        Raises:
            UsageError: if a number is not one of the codebook's.
        """
        if indices.numel() and not 0 <= indices.min() <= indices.max() < self.codebook_size:
            raise UsageError(
                f"codes are numbered 0 to {self.codebook_size - 1}, these go from "
                f"{int(indices.min())} to {int(indices.max())}"
            )
        digits = indices.unsqueeze(-1) // self._basis % self.levels
        return ((digits - self._half) / self._half).movedim(-1, 1)

    @property
    def _half(self) -> Tensor:
        return self.levels // 2

    @property
    def _basis(self) -> Tensor:
        """What one step of each channel adds to a code's number, (C,)."""
        return self.levels.cumprod(dim=0) // self.levels

    def _bounded(self, values: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        bound = (self.levels - 1) / 2 + MARGIN
        offset = (1 - self.levels % 2) / 2
        return torch.tanh(values + torch.atanh(offset / bound)) * bound - offset
