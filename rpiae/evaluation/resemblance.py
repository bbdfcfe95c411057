"""How much of its pivot is left in an encoder, by the tokens of both."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.geometry import Grid
from rpiae.evaluation.accumulators import Gathered
from rpiae.evaluation.frechet import FeatureMoments


class Resemblance(Gathered):
    """An encoder's tokens compared with its pivot's, as pairs and as sets.

    Tokens are added in any number of parts; the numbers do not depend on how they were divided, up to
    rounding in float64. All are NaN where nothing was added.

    Args:
        width: channels of a token.

    Attributes:
        moments: of every token and its pivot's, one after the other, as one vector.
        cosines: sum of 1 − cosine over tokens.
        errors: sum of squared differences.
        squares: sum of squares of the pivot's tokens.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.moments = FeatureMoments(2 * width)
        self.cosines: Tensor | float = 0.0
        self.errors: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    @property
    def cosine_distance(self) -> float:
        """Mean over tokens of 1 − cosine, 0 to 2."""
        return float(self.cosines) / (self.moments.count or math.nan)

    @property
    def relative_error(self) -> float:
        """‖z − p‖/‖p‖ over all tokens z and the pivot's p, by the Frobenius norm."""
        return math.sqrt(float(self.errors) / (float(self.squares) or math.nan))

    @property
    def linear_cka(self) -> float:
        """Centred linear kernel alignment, tokens being the samples, 0 to 1.

        ‖ZᵀP‖²/(‖ZᵀZ‖ ‖PᵀP‖) of centred tokens; NaN where either set does not vary. It does not change
        with rotations and scales of either set.

        Source: Kornblith et al. 2019 (arXiv 1905.00414), equation 5 and section 3.
        """
        scatter, d = self.moments.scatter, self.width
        cross = scatter[:d, d:].square().sum().item()
        own = scatter[:d, :d].norm().item() * scatter[d:, d:].norm().item()
        return cross / (own or math.nan)

    def add(self, tokens: Float[Tensor, "b n d"], pivot: Float[Tensor, "b n d"]) -> None:
        """Add tokens of an encoder and, of the same images, of its pivot.

        Raises:
            UsageError: if the shapes differ, or are not those of tokens of ``width``.
        """
        if tokens.shape != pivot.shape or tokens.ndim != 3 or tokens.shape[-1] != self.width:
            raise UsageError(
                f"expected two times tokens of shape (b, n, {self.width}), got "
                f"{tuple(tokens.shape)} and {tuple(pivot.shape)}"
            )
        ours, theirs = (part.detach().double().flatten(0, 1) for part in (tokens, pivot))
        self.moments.add(torch.cat([ours, theirs], dim=1))
        self.cosines = self.cosines + (1 - F.cosine_similarity(ours, theirs, dim=1)).sum()
        self.errors = self.errors + (ours - theirs).square().sum()
        self.squares = self.squares + theirs.square().sum()

    def merge(self, other: Resemblance) -> None:
        """Add all that another one has seen."""
        self.moments.merge(other.moments)
        self.cosines = self.cosines + other.cosines
        self.errors = self.errors + other.errors
        self.squares = self.squares + other.squares


def similarity_map(
    tokens: Float[Tensor, "n d"], grid: Grid | tuple[int, int], place: tuple[int, int]
) -> Float[Tensor, "h w"]:
    """Cosine similarity of the token at a place with those of its image, −1 to 1.

    Args:
        tokens: of one image, row by row.
        grid: (h, w) or (1, h, w).
        place: (row, column) on the grid, from 0.

    Raises:
        UsageError: if the grid has another number of places, or the place is not on it.
    """
    h, w = grid[-2:]
    if tokens.ndim != 2 or len(tokens) != math.prod(grid) or len(tokens) != h * w:
        raise UsageError(
            f"a grid of {'×'.join(map(str, grid))} does not hold tokens {tuple(tokens.shape)}"
        )
    row, column = place
    if not (0 <= row < h and 0 <= column < w):
        raise UsageError(
            f"no row {row}, column {column} on a grid of {h} rows and {w} columns, counted from 0"
        )
    values = tokens.detach().float()
    return F.cosine_similarity(values, values[None, row * w + column], dim=1).view(h, w)
