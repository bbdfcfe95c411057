"""Metrics of generated images, on images whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.resolve import part_config
from rpiae.evaluation import references
from rpiae.evaluation.distances import shared_space
from rpiae.evaluation.examination import ComparedMetric, Measured, TrainedMetric
from rpiae.evaluation.generated import GenerationDistance
from rpiae.evaluation.inception_score import inception_score
from rpiae.evaluation.seen import Seen

CLASSES = 3


def images_of(labels: Tensor, *, seed: int) -> Tensor:
    """Noisy images, each of its class's colour."""
    draws = torch.Generator().manual_seed(seed)
    colours = torch.eye(CLASSES)[labels].view(-1, 3, 1, 1)
    noise = torch.rand(len(labels), 3, 16, 16, generator=draws)
    return ((0.5 * colours + 0.5 * noise) * 255).round() / 255


def several(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % CLASSES
    return images_of(labels, seed=seed), labels


def batches(images: Tensor, labels: Tensor, size: int, order: Sequence[int]) -> Iterator[Seen]:
    for start in range(0, len(images), size):
        chosen = torch.tensor(list(order[start : start + size]))
        yield Seen(
            images[chosen], labels=labels[chosen], positions=chosen,
            label_names=("red", "green", "blue"),
        )  # fmt: skip


def measured(
    metric: Any,
    samples: tuple[Tensor, Tensor],
    real: tuple[Tensor, Tensor],
    training: tuple[Tensor, Tensor] | None = None,
    *,
    size: int = 7,
    turned: bool = False,
) -> Measured:
    """What a metric finds, its images batch by batch, from the last one on if ``turned``."""

    def walk(images: Tensor, labels: Tensor) -> Iterator[Seen]:
        order = range(len(images))
        return batches(images, labels, size, order[::-1] if turned else order)

    made = part_config("metrics", metric).build() if isinstance(metric, (str, dict)) else metric
    if training is not None:
        assert isinstance(made, TrainedMetric)
        for seen in walk(*training):
            made.update_training(seen)
    assert isinstance(made, ComparedMetric)
    for seen in walk(*real):
        made.update_real(seen)
    for seen in walk(*samples):
        made.update(seen)
    found = made.compute()
    assert isinstance(found, Measured)
    return found


def value(*arguments: Any, **options: Any) -> float:
    return next(iter(measured(*arguments, **options).values.values()))


class TestDistance:
    """gFD."""

    def test_of_images_to_themselves_is_nothing(self) -> None:
        found = measured("gfd:tiny", several(40, seed=0), several(40, seed=0))
        assert found.values["gfd[tiny]"] == pytest.approx(0, abs=1e-6)
        assert value("gfd:tiny", several(40, seed=0), several(40, seed=1)) > 0.01

    @given(seed=st.integers(0, 1000), size=st.integers(1, 30), turned=st.booleans())
    def test_depends_on_neither_order_nor_batches_nor_direction(
        self, seed: int, size: int, turned: bool
    ) -> None:
        a, b = several(30, seed=seed), several(24, seed=seed + 1)
        whole = value("gfd:tiny", a, b, size=30)
        parts = value("gfd:tiny", b, a, size=size, turned=turned)
        assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)

    def test_few_samples_are_a_warning(self) -> None:
        (text, *_) = measured("gfd:tiny", several(12, seed=0), several(12, seed=1)).warnings
        assert "12 samples for 192 dimensions" in text
        with pytest.raises(UsageError, match="at least 2 samples, got 1"):
            value("gfd:tiny", several(1, seed=0), several(12, seed=1))


class TestReferences:
    """Statistics of real images in files."""

    def written(self, folder: Path, **changes: Any) -> Path:
        real = GenerationDistance(space="tiny")
        for seen in batches(*several(40, seed=3), 40, range(40)):
            real.update_real(seen)
        protocol = {
            "purpose": "generation", "images_sha256": "0" * 64, "crop": "centre",
            "extractor": dict(shared_space("tiny").facts), "image_size": 16, "location": "x",
        } | changes  # fmt: skip
        path = folder / "real.safetensors"
        references.write_reference(path, real.originals, protocol)
        return path

    def test_gives_the_same_distance(self, tmp_path: Path) -> None:
        file = self.written(tmp_path)
        table = {"name": "gfd", "space": "tiny", "reference": str(file)}
        config = part_config("metrics", table)
        assert config.needed == {"samples"}  # type: ignore[attr-defined]  # of a metric
        samples = several(40, seed=4)
        through = measured(table, samples, (torch.empty(0, 3, 16, 16), torch.empty(0)))
        direct = value("gfd:tiny", samples, several(40, seed=3))
        assert through.values["gfd[tiny]"] == pytest.approx(direct, rel=1e-6)
        assert through.facts["real"] == {
            "crop": "centre", "count": 40, "images_sha256": "0" * 64
        }  # fmt: skip

    def test_for_reconstruction_is_refused(self, tmp_path: Path) -> None:
        file = self.written(tmp_path, purpose="reconstruction")
        with pytest.raises(UsageError, match=r"for reconstruction.*with real ones that --data"):
            GenerationDistance(space="tiny", reference=str(file))
        with pytest.raises(UsageError, match=r"for generation.*own originals"):
            references.read_reference(self.written(tmp_path))

    def test_of_another_size_or_none_is_refused(self, tmp_path: Path) -> None:
        found = references.read_reference(self.written(tmp_path), references.GENERATION)
        found.check_size(16)
        with pytest.raises(UsageError, match=r"16 pixels, and the samples have 32: nothing is res"):
            found.check_size(32)
        with pytest.raises(CheckpointError, match="does not say image_size"):
            references.read_reference(
                self.written(tmp_path, image_size=None), references.GENERATION
            )
        plain = tmp_path / "VIRTUAL_imagenet256.npz"
        plain.write_bytes(b"")
        with pytest.raises(UsageError, match=r"without a protocol.*Name the images with --data"):
            references.read_reference(plain, references.GENERATION)


class TestManifolds:
    """Precision and recall."""

    def test_of_the_same_images_are_one(self) -> None:
        for name in ("precision", "recall"):
            assert value(name, several(30, seed=0), several(30, seed=0)) == 1.0

    def test_of_other_things_are_nothing(self) -> None:
        black = torch.zeros(12, 3, 16, 16), torch.arange(12) % CLASSES
        for name in ("precision", "recall"):
            found = measured(f"{name}:tiny", black, several(30, seed=0))
            assert found.values == {f"{name}[tiny]": 0.0}
            assert found.facts["k"] == 3

    def test_one_class_alone_is_precise_and_misses_the_others(self) -> None:
        real = several(60, seed=0)
        red = images_of(torch.zeros(30, dtype=torch.int64), seed=1), torch.zeros(30)
        assert value("precision", red, real) > 0.6
        assert value("recall", red, real) < 0.4

    def test_too_few_images_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"more than 3 images .* 3 samples and 30 real images"):
            value("precision", several(3, seed=0), several(30, seed=1))
        assert value({"name": "recall", "k": 2}, several(3, seed=0), several(30, seed=1)) >= 0


class TestClasses:
    """Class accuracy."""

    def test_of_real_images_is_perfect(self) -> None:
        found = measured(
            "class-accuracy", several(30, seed=0), several(30, seed=1), several(60, seed=2)
        )
        assert found.values == {"class_accuracy[tiny]": 1.0, "class_accuracy_real[tiny]": 1.0}
        assert found.details["by_class"] == {"red": 1.0, "green": 1.0, "blue": 1.0}
        assert found.facts["learned"] == 60

    def test_without_training_images_a_fifth_of_the_real_ones_is_held_out(self) -> None:
        found = measured("class-accuracy", several(30, seed=0), several(45, seed=1))
        assert found.facts["learned"] == 36
        assert set(found.values.values()) == {1.0}

    def test_of_images_of_other_classes_than_asked_for(self) -> None:
        images, labels = several(60, seed=0)
        draws = torch.Generator().manual_seed(0)
        shuffled = labels[torch.randperm(60, generator=draws)]
        found = measured("class-accuracy", (images, shuffled), several(45, seed=1))
        assert found.values["class_accuracy[tiny]"] == float((shuffled == labels).double().mean())
        assert found.values["class_accuracy[tiny]"] == pytest.approx(1 / 3, abs=0.15)
        assert found.values["class_accuracy_real[tiny]"] == 1.0

    def test_images_without_a_label_count_nowhere(self) -> None:
        whole = measured(
            "class-accuracy", several(30, seed=0), several(30, seed=1), several(60, seed=2)
        )
        partly = [several(count, seed=seed) for count, seed in ((30, 0), (30, 1), (60, 2))]
        noise = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        none = torch.full((3,), -1, dtype=torch.int64)
        found = measured(
            "class-accuracy",
            *((torch.cat([images, noise]), torch.cat([labels, none])) for images, labels in partly),
        )
        assert found.values == whole.values
        assert found.details == whole.details
        assert found.facts == {**whole.facts, "without_class": 3}
        images, labels = several(30, seed=0)
        with pytest.raises(UsageError, match="none of the samples has one"):
            value("class-accuracy", (images, torch.full_like(labels, -1)), several(30, seed=1))

    def test_of_a_class_that_no_real_image_has(self) -> None:
        images, labels = several(30, seed=0)
        with pytest.raises(UsageError, match=r"class 3 was asked for, and no real image has it"):
            value("class-accuracy", (images, labels + 3), several(30, seed=1))


class TestNearest:
    """Distance to training images."""

    def test_copies_show(self) -> None:
        training, real = several(60, seed=0), several(30, seed=1)
        new = measured("nearest", several(30, seed=2), real, training)
        assert new.values["nearest_ratio[tiny]"] == pytest.approx(1, abs=0.15)
        copies = training[0][:30], training[1][:30]
        found = measured("nearest", copies, real, training)
        assert found.values["nearest_ratio[tiny]"] == pytest.approx(0, abs=1e-4)
        for row in found.details["samples"]:
            assert row["training"][0] == row["sample"]
            assert row["distances"] == sorted(row["distances"])

    def test_needs_images_that_were_not_trained_on(self) -> None:
        training = several(30, seed=0)
        with pytest.raises(UsageError, match="name images for --data that were not trained on"):
            value("nearest", several(30, seed=1), training, training)


def test_inception_score_is_that_of_torch_fidelity() -> None:
    isc = pytest.importorskip("torch_fidelity.metric_isc", reason="no torch-fidelity")
    logits = 3 * torch.randn(103, 20, generator=torch.Generator().manual_seed(0))
    for splits in (1, 10):
        expected = isc.isc_features_to_metric(logits, splits=splits, shuffle=False)
        assert inception_score(logits, splits) == pytest.approx(tuple(expected.values()))
    with pytest.raises(UsageError, match="mean over 10 parts, and there are 9 samples"):
        inception_score(logits[:9])
