"""Fréchet distances of images that a tokenizer decoded to the images they come from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation.accumulators import Accumulator, Mean, Once, Rows
from rpiae.evaluation.clip_spaces import ClipSpace, clip_space
from rpiae.evaluation.examination import Examination, Measured
from rpiae.evaluation.frechet import FeatureMoments, few_samples, frechet_distance
from rpiae.evaluation.neighbours import NearestNeighbours, spherical_interpolation
from rpiae.evaluation.references import RECONSTRUCTION, FrechetReference, read_reference
from rpiae.evaluation.spaces import FeatureSpace, feature_space


@functools.cache
def shared_space(text: str) -> FeatureSpace:
    """A feature space by name, the same one for all metrics, so that images are described once."""
    return feature_space(text)


class ReconstructionDistance:
    """Fréchet distance of reconstructions to their originals in a feature space (rFD; rFID in
    Inception's).

    Args:
        space: what images are described by; see ``spaces.feature_space``.
        reference: a file of the originals' statistics, used in place of measuring them again.

    Raises:
        UnknownNameError: if nothing is called so.
        FetchError: if its weights cannot be had.
        UsageError: if the reference has no protocol, is for generation, or of another space.
    """

    purpose = RECONSTRUCTION

    def __init__(self, *, space: str, reference: str = "") -> None:
        self._space: FeatureSpace | ClipSpace = self._opened(space)
        self._made = FeatureMoments(self._space.dimensions)
        self._originals = FeatureMoments(self._space.dimensions)
        self._reference: FrechetReference | None = None
        if reference:
            self._reference = read_reference(Path(reference), self.purpose)
            self._reference.check_space(self._space.facts)

    @property
    def reference(self) -> FrechetReference | None:
        """The file's statistics, whose images the engine compares with those that were seen."""
        return self._reference

    @property
    def originals(self) -> FeatureMoments:
        """The originals' statistics as measured; of no images where a reference was given."""
        return self._originals

    @property
    def count(self) -> int:
        """Samples of the reconstructions: images, frames or clips."""
        return self._made.count

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        self._made.add(self._described(seen, "reconstruction"))
        if self._reference is None:
            self._originals.add(self._described(seen, "images"))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._made, self._originals

    def compute(self) -> Measured:
        """The distance, named after the space."""
        originals = self._reference.moments if self._reference else self._originals
        facts: dict[str, Any] = {"extractor": dict(self._space.facts), "count": self._made.count}
        if self._reference is not None:
            facts["reference"] = dict(self._reference.protocol)
        return Measured(
            values={self._name: frechet_distance(originals, self._made)},
            facts=facts,
            warnings=few_samples_of(self._name, originals, self._made),
        )

    @property
    def _name(self) -> str:
        return "rfid" if self._space.name == "inception" else f"rfd[{self._space.name}]"

    def _opened(self, space: str) -> FeatureSpace | ClipSpace:
        return shared_space(space)

    def _described(self, seen: Examination, which: str) -> Tensor:
        return seen.described(self._space, which)  # type: ignore[arg-type]  # a space of images


class VideoDistance(ReconstructionDistance):
    """Fréchet distance of reconstructed clips to their originals, a vector per clip (rFVD).

    Args:
        space: what clips are described by; see ``clip_spaces.clip_space``.
        reference: as in ``ReconstructionDistance``.

    Source: FVD, arXiv 1812.01717, whose space is another one (I3D).
    """

    def __init__(self, *, space: str, reference: str = "") -> None:
        super().__init__(space=space, reference=reference)
        self._outside = Mean()  # who measures from Python may give clips of another range

    def update(self, seen: Examination) -> None:
        """Take in some clips.

        Raises:
            UsageError: if they are shorter than the space needs.
        """
        self._outside.add((seen.images < 0) | (seen.images > 1))
        super().update(seen)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return *super().accumulators(), self._outside

    def compute(self) -> Measured:
        """The distance, named after the space.

        Raises:
            UsageError: if clips are not in [0, 1].
        """
        if self._outside.value:
            raise UsageError(
                f"{self._outside.value:.2g} of the clips' values lie outside [0, 1]: divide 8-bit "
                "values by 255"
            )
        return super().compute()

    @property
    def _name(self) -> str:
        return f"rfvd[{self._space.name}]"

    def _opened(self, space: str) -> ClipSpace:
        return clip_space(shared_space(space))

    def _described(self, seen: Examination, which: str) -> Tensor:
        assert isinstance(self._space, ClipSpace)
        return self._space.described(seen, which)


class PivotDistance:
    """Fréchet distance of reconstructions to their originals over all tokens of the run's own pivot.

    It loads nothing, and has a sample per token, so that a few images suffice. Details need the right
    statistics and not the right place: it does not prefer blur to texture that was made up, as PSNR,
    SSIM and distances of pairs do, and so can choose among the weights of an adversarial stage.
    """

    def __init__(self) -> None:
        self._made = Once()
        self._originals = Once()

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        made = seen.pivot_tokens_of(seen.reconstruction)
        for gathered, features in ((self._made, made), (self._originals, seen.pivot_features)):
            tokens = features.tokens.flatten(0, 1)
            if gathered.made is None:
                gathered.made = FeatureMoments(tokens.shape[-1])
            gathered.made.add(tokens)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._made, self._originals

    def compute(self) -> Measured:
        """The distance."""
        made, originals = self._made.made, self._originals.made
        return Measured(
            values={"pivot_rfd": frechet_distance(originals, made)},
            facts={"extractor": {"extractor": "the run's pivot, every token of its output"}},
            warnings=few_samples_of("pivot_rfd", originals, made),
        )


class InterpolationDistance:
    """Fréchet distance to the originals of images decoded between neighbouring latents (iFD).

    Each image's latent is moved towards its nearest neighbour among the latents of training images,
    along a great circle, and decoded. Neighbours are exact.

    Args:
        space: what images are described by.
        weight: how far towards the neighbour, 0 to 1; 0 gives rFD.

    Source: iFID, arXiv 2603.05630, which interpolates half-way.
    """

    def __init__(self, *, space: str, weight: float = 0.5) -> None:
        if not 0 <= weight <= 1:
            raise UsageError(f"the weight of ifd lies between 0 and 1, got {weight}")
        self._space = shared_space(space)
        self._weight = weight
        self._training = Rows()
        self._neighbours: NearestNeighbours | None = None
        self._latents = torch.empty(0)
        self._made = FeatureMoments(self._space.dimensions)
        self._originals = FeatureMoments(self._space.dimensions)

    def update_training(self, seen: Examination) -> None:
        """Take in some of the images that neighbours are among."""
        self._training.add(seen.positions, latent=seen.latent)

    def training_accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._training,)

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        self._made.add(self._described(seen, seen.decoded(self._moved(seen.latent))))
        self._originals.add(seen.described(self._space))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return self._made, self._originals

    def compute(self) -> Measured:
        """The distance, named after the space."""
        name = f"ifd[{self._space.name}]"
        facts = {
            "extractor": dict(self._space.facts), "weight": self._weight,
            "neighbours": len(self._latents), "count": self._made.count,
        }  # fmt: skip
        return Measured(
            values={name: frechet_distance(self._originals, self._made)},
            facts=facts,
            warnings=few_samples_of(name, self._originals, self._made),
        )

    def _moved(self, latent: Tensor) -> Tensor:
        if self._neighbours is None:
            self._latents = self._training.joined()["latent"]
            self._neighbours = NearestNeighbours(self._latents.flatten(1))
        own = latent.cpu()
        nearest, _ = self._neighbours.query(own.flatten(1))
        return spherical_interpolation(own, self._latents[nearest], self._weight).to(latent.device)

    def _described(self, seen: Examination, images: Tensor) -> Tensor:
        self._space.to(seen.images.device)
        return self._space(images)


def few_samples_of(name: str, *moments: FeatureMoments) -> tuple[str, ...]:
    """Warnings where a distance of that name is of too few samples."""
    found = [few_samples(each, name) for each in moments]
    return tuple(dict.fromkeys(text for text in found if text))
