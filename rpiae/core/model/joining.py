"""Posteriors over pieces of a latent as one over the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import GaussianPosterior, Posterior, QuantisedPosterior

#: Pieces (…, k, h, w) → the whole; and the whole → its pieces.
Join = Callable[[Sequence[Tensor]], Tensor]
Cut = Callable[[Tensor], Sequence[Tensor]]


class JoinedPosterior:
    """A posterior over a latent whose pieces have posteriors of their own.

    Args:
        parts: of the pieces.
        join, cut: put the pieces of a tensor together, whose last three dimensions are the latent's,
            and take them apart.
    """

    def __init__(self, parts: Sequence[Posterior], join: Join, cut: Cut) -> None:
        self._parts = parts
        self._join = join
        self._cut = cut

    def mode(self) -> Float[Tensor, "b c ..."]:
        """The most likely latent."""
        return self._join([part.mode() for part in self._parts])

    def sample(self, noise: Float[Tensor, "b c ..."] | None = None) -> Float[Tensor, "b c ..."]:
        """A sample; ``noise`` is standard normal of the latent's shape (drawn where not given)."""
        if noise is None:
            noise = torch.randn_like(self.mode())
        pieces = zip(self._parts, self._cut(noise), strict=True)
        return self._join([part.sample(piece) for part, piece in pieces])


class JoinedGaussian(JoinedPosterior):
    """A diagonal Gaussian over a latent in pieces.

    Attributes:
        mean, logvar: of the latent's shape.
    """

    def __init__(self, parts: Sequence[GaussianPosterior], join: Join, cut: Cut) -> None:
        super().__init__(parts, join, cut)
        self.mean = join([part.mean for part in parts])
        self.logvar = join([part.logvar for part in parts])
        self._gaussians = parts

    def kl(self) -> Float[Tensor, ""]:
        """Mean over the pieces' values; those in an overlap of tiles count in each. 0 of no latent."""
        if not self.mean.numel():
            return self.mean.sum()
        number = sum(part.mean.numel() for part in self._gaussians)
        return (
            sum(
                (part.kl() * part.mean.numel() for part in self._gaussians),
                torch.zeros(()).to(self.mean),
            )
            / number
        )


class JoinedCodes(JoinedPosterior):
    """Codes of a latent in pieces.

    Attributes:
        indices: which codes they are, (b, k, h, w).
        codebook_size: how many there are.
    """

    def __init__(self, parts: Sequence[QuantisedPosterior], join: Join, cut: Cut) -> None:
        super().__init__(parts, join, cut)
        self.indices = join([part.indices for part in parts])
        self.codebook_size = parts[0].codebook_size


def joined(parts: Sequence[Posterior], join: Join, cut: Cut) -> Posterior:
    """Posteriors of pieces as one of the whole, of their kind.

    Args:
        parts: at least one, all of the same kind.
        join, cut: see ``JoinedPosterior``.
    """
    return parts[0] if len(parts) == 1 else _of_their_kind(parts, join, cut)


def no_step_of(posterior: Posterior) -> Posterior:
    """The posterior of a piece of a clip that completes no latent, of another piece's kind."""
    mode = posterior.mode()
    return _of_their_kind(
        [posterior], lambda pieces: pieces[0].narrow(-3, 0, 0), lambda _: [torch.zeros_like(mode)]
    )


def _of_their_kind(parts: Sequence[Posterior], join: Join, cut: Cut) -> Posterior:
    gaussians = [part for part in parts if isinstance(part, GaussianPosterior)]
    if gaussians:
        return JoinedGaussian(gaussians, join, cut)
    codes = [part for part in parts if isinstance(part, QuantisedPosterior)]
    return JoinedCodes(codes, join, cut) if codes else JoinedPosterior(parts, join, cut)


def joined_in_time(parts: Sequence[Posterior]) -> Posterior:
    """Posteriors of a clip's pieces, one after the other, as one."""
    steps = [part.mode().shape[2] for part in parts]
    return joined(
        parts, lambda pieces: torch.cat(list(pieces), dim=-3),
        lambda whole: torch.split(whole, steps, dim=-3),
    )  # fmt: skip
