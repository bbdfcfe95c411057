"""Metrics of what the encoder still knows: probes, and drift from the pivot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.runtime.draws import key
from rpiae.evaluation.accumulators import Accumulator, Once, Rows
from rpiae.evaluation.examination import Examination, Measured, pooled, pooled_latent
from rpiae.evaluation.probing import ProbeResult, knn_accuracy, linear_probe
from rpiae.evaluation.resemblance import Resemblance

#: Name of the features of the tokenizer's own encoder, whose numbers have no suffix.
ENCODER = "encoder"

T = TypeVar("T")


class _Probe:
    """Features of training and testing images with labels, and probes of them."""

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed
        self._training = Rows()
        self._testing = Rows()

    def update_training(self, seen: Examination) -> None:
        """Take in some of the images to learn from."""
        self._training.add(seen.positions, **self._features(seen))

    def training_accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._training,)

    def update(self, seen: Examination) -> None:
        """Take in some of the images to be told apart."""
        self._testing.add(seen.positions, **self._features(seen))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._testing,)

    def _features(self, seen: Examination) -> dict[str, Tensor]:
        raise AssertionError("a probe says what it probes")

    def _of_each(self, probe: Callable[[Tensor, Tensor, Tensor, Tensor], T]) -> dict[str, T]:
        """What a probe finds about each kind of features."""
        training, testing = self._training.joined(), self._testing.joined()
        return {
            kind: probe(training[kind], training["labels"], testing[kind], testing["labels"])
            for kind in training
            if kind != "labels"
        }

    def linear(self) -> dict[str, ProbeResult]:
        """Linear probes, by the kind of features."""
        return self._of_each(partial(linear_probe, seed=self._seed))


def _named(name: str, accuracies: Mapping[str, float]) -> dict[str, float]:
    """Accuracies as numbers of a metric, and the share of the pivot's that the encoder keeps."""
    found = {
        name if kind == ENCODER else f"{name}_{kind}": value for kind, value in accuracies.items()
    }
    if found.get(f"{name}_pivot"):
        found[f"{name}_retention"] = found[name] / found[f"{name}_pivot"]
    return found


class ClassProbe(_Probe):
    """Linear probe and k-NN of classes.

    ``probe`` and ``knn`` are of the mean of the encoder's tokens, ``…_latent`` of the latent's values,
    ``…_pivot`` of the pivot's tokens; ``…_retention`` is the share of the pivot's accuracy that the
    encoder keeps.

    Args:
        k: neighbours that vote.
        latent_values: features that a latent is probed by at most.
        seed: of the division that chooses the regularisation.
    """

    def __init__(self, *, k: int = 20, latent_values: int = 2048, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self._k = k
        self._values = latent_values

    def _features(self, seen: Examination) -> dict[str, Tensor]:
        found = {
            "labels": seen.labels,
            ENCODER: pooled(seen.features.tokens),
        }
        if seen.use_bridge:
            found["latent"] = pooled_latent(seen.latent, self._values)
        if seen.replica is not None:
            found["pivot"] = pooled(seen.pivot_features.tokens)
        return found

    def compute(self) -> Measured:
        """Accuracies, 0 to 1."""
        linear = {kind: found.accuracy for kind, found in self.linear().items()}
        values = _named("probe", linear) | _named("knn", self.nearest())
        facts = {"k": self._k, "latent_values": self._values, "features": "mean of patch tokens"}
        return Measured(values=values, facts=facts)

    def nearest(self) -> dict[str, float]:
        """Accuracies of the vote of neighbours, by the kind of features."""

        def vote(x: Tensor, y: Tensor, x_testing: Tensor, y_testing: Tensor) -> float:
            return knn_accuracy(x, y, x_testing, y_testing, k=min(self._k, len(x)))

        return self._of_each(vote)


class RotationProbe(_Probe):
    """Linear probe of whether an image was turned by 0, 90, 180 or 270 degrees.

    Which it is, is drawn for every image from its position. ``rotation`` is of the mean of the
    encoder's tokens, ``rotation_pivot`` of the pivot's.

    Args:
        seed: of the turns, and of the division that chooses the regularisation.
    """

    def _features(self, seen: Examination) -> dict[str, Tensor]:
        images, turns = turned(seen.images, seen.positions, seed=self._seed)
        found = {
            "labels": turns,
            ENCODER: pooled(seen.tokens_of(images).tokens),
        }
        if seen.replica is not None:
            found["pivot"] = pooled(seen.pivot_tokens_of(images).tokens)
        return found

    def compute(self) -> Measured:
        """Accuracies, 0 to 1; chance is 0.25."""
        linear = {kind: found.accuracy for kind, found in self.linear().items()}
        return Measured(values=_named("rotation", linear))


def turned(
    images: Float[Tensor, "b 3 s s"], positions: Int[Tensor, " b"], *, seed: int
) -> tuple[Float[Tensor, "b 3 s s"], Int[Tensor, " b"]]:
    """Images turned by a multiple of 90 degrees that is drawn from their positions, and which."""
    turns = [key(seed, "rotation", int(position)) % 4 for position in positions]
    made = [image.rot90(turn, (-2, -1)) for image, turn in zip(images, turns, strict=True)]
    return torch.stack(made), torch.tensor(turns)


class Drift:
    """Difference of the encoder's tokens from the pivot's.

    ``drift`` is the mean over tokens of 1 − cosine, ``drift_relative`` ‖z − p‖/‖p‖ over all of them,
    ``cka`` their linear CKA.
    """

    def __init__(self) -> None:
        self._resemblance = Once()

    def update(self, seen: Examination) -> None:
        """Take in some images."""
        tokens, pivot = seen.features.tokens, seen.pivot_features.tokens
        if self._resemblance.made is None:
            self._resemblance.made = Resemblance(tokens.shape[-1])
        self._resemblance.made.add(tokens, pivot)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered."""
        return (self._resemblance,)

    def compute(self) -> Measured:
        """The three numbers."""
        found: Resemblance = self._resemblance.made
        return Measured(
            values={
                "drift": found.cosine_distance,
                "drift_relative": found.relative_error,
                "cka": found.linear_cka,
            }
        )
