"""Metrics of generated images against real ones, in feature spaces: Fréchet distance, precision, recall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation.accumulators import Accumulator, Rows
from rpiae.evaluation.distances import few_samples_of, shared_space
from rpiae.evaluation.examination import Measured
from rpiae.evaluation.frechet import FeatureMoments, frechet_distance
from rpiae.evaluation.manifolds import inside, nearest
from rpiae.evaluation.references import GENERATION, FrechetReference, read_reference
from rpiae.evaluation.seen import Seen
from rpiae.evaluation.spaces import FeatureSpace


class GenerationDistance:
    """Fréchet distance of generated images to real ones in a feature space (gFD; gFID in Inception's).

    Args:
        space: what images are described by; see ``spaces.feature_space``.
        reference: a file of the real images' statistics, used in place of measuring them again.

    Raises:
        UnknownNameError: if nothing is called so.
        FetchError: if its weights cannot be had.
        UsageError: if the reference has no protocol, is for reconstruction, or of another space.

    Source: FID, arXiv 1706.08500.
    """

    purpose = GENERATION

    def __init__(self, *, space: str, reference: str = "") -> None:
        self._space = shared_space(space)
        self._made = FeatureMoments(self._space.dimensions)
        self._real = FeatureMoments(self._space.dimensions)
        self._reference: FrechetReference | None = None
        if reference:
            self._reference = read_reference(Path(reference), GENERATION)
            self._reference.check_space(self._space.facts)

    @property
    def reference(self) -> FrechetReference | None:
        """The file's statistics."""
        return self._reference

    @property
    def originals(self) -> FeatureMoments:
        """The real images' statistics as measured; of no images where a reference was given."""
        return self._real

    def update_real(self, seen: Seen) -> None:
        """Take in some of the real images."""
        if self._reference is None:
            self._real.add(seen.described(self._space))

    def real_accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._real,)

    def update(self, seen: Seen) -> None:
        """Take in some of the generated images."""
        self._made.add(seen.described(self._space))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._made,)

    def compute(self) -> Measured:
        """The distance, named after the space."""
        real = self._reference.moments if self._reference else self._real
        name = "gfid" if self._space.name == "inception" else f"gfd[{self._space.name}]"
        facts: dict[str, Any] = {"extractor": dict(self._space.facts)}
        if self._reference is not None:
            facts["reference"] = dict(self._reference.protocol)
            facts["real"] = self._reference.images
        return Measured(
            values={name: frechet_distance(real, self._made)},
            facts=facts,
            warnings=few_samples_of(name, real, self._made),
        )


class _Manifolds:
    """Vectors of generated and of real images, and the share of one kind that lies among the other.

    An image lies among others where its distance to some of these is at most that one's own to its
    k-th neighbour in its own kind.

    Args:
        space: what images are described by.
        k: which neighbour.

    Source: Kynkäänniemi et al. 2019, arXiv 1904.06991.
    """

    name: str

    def __init__(self, *, space: str, k: int = 3) -> None:
        self._space: FeatureSpace = shared_space(space)
        self._k = k
        self._real = Rows()
        self._made = Rows()

    def update_real(self, seen: Seen) -> None:
        """Take in some of the real images."""
        self._real.add(seen.positions, vectors=seen.described(self._space))

    def real_accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._real,)

    def update(self, seen: Seen) -> None:
        """Take in some of the generated images."""
        self._made.add(seen.positions, vectors=seen.described(self._space))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._made,)

    def compute(self) -> Measured:
        """The share, 0 to 1, named after the space.

        Raises:
            UsageError: if there are not more than k images of either kind.
        """
        made, real = self._made.joined()["vectors"], self._real.joined()["vectors"]
        if min(len(made), len(real)) <= self._k:
            raise UsageError(
                f"the {self._k} nearest neighbours of an image need more than {self._k} images of "
                f"either kind, and there are {len(made)} samples and {len(real)} real images: take "
                "more, or a lower k"
            )
        facts = {"extractor": dict(self._space.facts), "k": self._k}
        share = self._share(made, real)
        return Measured(values={f"{self.name}[{self._space.name}]": share}, facts=facts)

    def _share(self, made: Tensor, real: Tensor) -> float:
        raise AssertionError("a kind of share says of which")

    def _among(self, queries: Tensor, references: Tensor) -> float:
        radii = nearest(references, references, self._k, themselves=True)[0][:, -1]
        return float(inside(queries, references, radii).double().mean())


class Precision(_Manifolds):
    """Share of generated images that lie among the real ones: what they look like."""

    name = "precision"

    def _share(self, made: Tensor, real: Tensor) -> float:
        return self._among(made, real)


class Recall(_Manifolds):
    """Share of real images that lie among the generated ones: how much of what there is is made."""

    name = "recall"

    def _share(self, made: Tensor, real: Tensor) -> float:
        return self._among(real, made)
