"""Metrics of generated images that name a class or an image: is it what was asked for, is it a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation.accumulators import Accumulator, Rows
from rpiae.evaluation.distances import shared_space
from rpiae.evaluation.examination import Measured
from rpiae.evaluation.manifolds import nearest
from rpiae.evaluation.probing import LinearProbe, apart
from rpiae.evaluation.seen import Seen

#: Samples that ``nearest`` names, and training images beside each.
NAMED, BESIDE = 12, 4


class _Described:
    """Vectors of training, real and generated images in a feature space, with what tells them apart.

    Args:
        space: what images are described by.
    """

    def __init__(self, *, space: str) -> None:
        self._space = shared_space(space)
        self._training, self._real, self._made = Rows(), Rows(), Rows()

    def update_training(self, seen: Seen) -> None:
        """Take in some of the training images."""
        self._add(self._training, seen)

    def training_accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._training,)

    def update_real(self, seen: Seen) -> None:
        """Take in some of the real images."""
        self._add(self._real, seen)

    def real_accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._real,)

    def update(self, seen: Seen) -> None:
        """Take in some of the generated images."""
        self._add(self._made, seen)

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._made,)

    def _add(self, rows: Rows, seen: Seen) -> None:
        rows.add(
            seen.positions, vectors=seen.described(self._space), labels=seen.labels,
            index=seen.positions,
        )  # fmt: skip


class ClassAccuracy(_Described):
    """Share of generated images that a linear probe of real images reads as what was asked for.

    The probe learns from the training images where there are any, and else from four fifths of each
    class of the real ones; how it reads the real images that it did not learn from stands beside.

    Args:
        space: what images are described by.
        seed: of the divisions of real images.
    """

    def __init__(self, *, space: str, seed: int = 0) -> None:
        super().__init__(space=space)
        self._seed = seed
        self._names: Sequence[str] = ()

    def update(self, seen: Seen) -> None:
        """Take in some of the generated images."""
        self._names = seen.label_names
        super().update(seen)

    def compute(self) -> Measured:
        """Accuracies, 0 to 1; of every class under details.

        Images without a label count nowhere.

        Raises:
            UsageError: if labels are missing, or a class was asked for that no real image has.
        """
        learned, held = self._divided()
        generated = self._made.joined()
        made = _labelled(generated, "samples")
        strange = sorted(set(made["labels"].tolist()) - set(learned["labels"].tolist()))
        if strange:
            raise UsageError(
                f"class {strange[0]} was asked for, and no real image has it: nothing can be learned "
                "about it"
            )
        probe = LinearProbe(learned["vectors"], learned["labels"], seed=self._seed)
        found = {
            name: probe.accuracy(of["vectors"], of["labels"])
            for name, of in (("class_accuracy", made), ("class_accuracy_real", held))
        }
        warnings = () if probe.converged else ("the probe of class-accuracy did not converge",)
        facts: dict[str, Any] = {
            "extractor": dict(self._space.facts), "learned": len(learned["labels"]),
            "strength": probe.strength, "seed": self._seed,
        }  # fmt: skip
        if unasked := len(generated["labels"]) - len(made["labels"]):
            facts["without_class"] = unasked
        return Measured(
            values={f"{name}[{self._space.name}]": value for name, value in found.items()},
            details={"by_class": _by_class(probe, made, self._names)},
            facts=facts,
            warnings=warnings,
        )

    def _divided(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """What is learned from, and the real images that are read."""
        training, real = self._training.joined(), _labelled(self._real.joined(), "real images")
        if training:
            return _labelled(training, "training images"), real
        held = torch.from_numpy(apart(real["labels"].numpy(), seed=self._seed))
        return tuple({name: rows[mask] for name, rows in real.items()} for mask in (~held, held))  # type: ignore[return-value]  # two of them


def _labelled(rows: Mapping[str, Tensor], what: str) -> Mapping[str, Tensor]:
    """The rows that have a label.

    Raises:
        UsageError: if none has.
    """
    has = rows["labels"] >= 0
    if not has.any():
        raise UsageError(f"class-accuracy needs classes, and none of the {what} has one")
    return {name: values[has] for name, values in rows.items()}


def _by_class(
    probe: LinearProbe, made: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, float]:
    """Accuracy by the name of a class, or by its number."""
    found = {}
    for label in sorted(set(made["labels"].tolist())):
        of_class = made["labels"] == label
        name = names[label] if names else str(label)
        found[name] = probe.accuracy(made["vectors"][of_class], made["labels"][of_class])
    return found


class NearestTraining(_Described):
    """How far generated images are from their nearest training images.

    ``nearest_ratio`` is the median of that distance over the median of the same of real images that
    nobody learned from: about 1 where samples are as new as these, towards 0 where they are copies.
    The samples that are nearest of all are named under details, with their nearest training images;
    ``nearest.png`` shows them.

    Args:
        space: what images are described by.
    """

    def compute(self) -> Measured:
        """The ratio of the medians, named after the space.

        Raises:
            UsageError: if there are too few training images, or all real ones are among them.
        """
        training, real, made = (rows.joined() for rows in (self._training, self._real, self._made))
        beside = min(BESIDE, len(training["vectors"]))
        distances, indices = nearest(made["vectors"], training["vectors"], beside)
        theirs = nearest(real["vectors"], training["vectors"], 1)[0].median()
        if not theirs:
            raise UsageError(
                "most real images are among the training images, so nothing says how far from these "
                "a new image is: name images for --data that were not trained on"
            )
        name = f"nearest_ratio[{self._space.name}]"
        return Measured(
            values={name: float(distances[:, 0].median() / theirs)},
            details={"samples": _named(made, training, distances, indices)},
            facts={"extractor": dict(self._space.facts)},
        )


def _named(
    made: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
    distances: Tensor,
    indices: Tensor,
) -> list[dict[str, Any]]:
    """The samples nearest to training images: positions of both, and distances."""
    chosen = distances[:, 0].argsort(stable=True)[:NAMED]
    return [
        {
            "sample": int(made["index"][row]),
            "training": training["index"][indices[row]].tolist(),
            "distances": distances[row].tolist(),
        }
        for row in chosen.tolist()
    ]
