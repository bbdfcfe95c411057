"""Probes find what is there, choose without the testing data, and refuse what cannot be probed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.evaluation import probing
from rpiae.evaluation.probing import knn_accuracy, linear_probe

CLASSES = 3


def clusters(per_class: int, seed: int, *, d: int = 6, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Classes around the corners of a simplex."""
    labels = torch.arange(CLASSES).repeat(per_class)
    draws = torch.Generator().manual_seed(seed)
    values = torch.randn(len(labels), d, generator=draws) * noise
    values[torch.arange(len(labels)), labels] += 6
    return values, labels


def test_clusters_are_told_apart() -> None:
    found = linear_probe(*clusters(30, 0), *clusters(20, 1))
    assert found.accuracy >= 0.95
    assert (found.num_training, found.num_testing, found.num_classes) == (90, 60, 3)
    assert found.converged
    assert knn_accuracy(*clusters(30, 0), *clusters(20, 1)) >= 0.95


def test_shuffled_labels_are_not() -> None:
    training, labels = clusters(60, 0)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(2))]
    found = linear_probe(training, shuffled, *clusters(60, 1))
    assert found.accuracy < 0.6
    assert knn_accuracy(training, shuffled, *clusters(60, 1)) < 0.6


def test_accuracy_counts_the_testing_data() -> None:
    testing, labels = clusters(20, 1, noise=0.1)
    wrong = labels.clone()
    wrong[:15] = (wrong[:15] + 1) % CLASSES
    wrong[15:18] = 77  # not among the training classes
    assert linear_probe(*clusters(30, 0, noise=0.1), testing, wrong).accuracy == 42 / 60
    assert knn_accuracy(*clusters(30, 0, noise=0.1), testing, wrong) == 42 / 60


def test_features_are_standardised_by_the_training_data() -> None:
    (training, labels), (testing, wanted) = clusters(30, 0, noise=2), clusters(30, 1, noise=2)
    plain = linear_probe(training, labels, testing, wanted)
    scales = torch.tensor([1e-4, 1e4, 1.0, 50.0, 1e-2, 3.0]).double()
    scaled = linear_probe(
        training * scales + 7 * scales, labels, testing * scales + 7 * scales, wanted
    )
    assert scaled == plain


def test_what_never_varies_says_nothing() -> None:
    (training, labels), (testing, wanted) = clusters(30, 0, noise=2), clusters(30, 1, noise=2)
    constant = torch.full((90, 1), 0.1)
    found = linear_probe(
        torch.cat([training, constant], 1), labels, torch.cat([testing, constant], 1), wanted
    )
    assert found == linear_probe(training, labels, testing, wanted)


def test_strength_is_chosen_on_training_data_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, list[int]]] = []
    fitted = probing._fitted

    def spy(x: np.ndarray, y: np.ndarray, strength: float) -> Any:
        seen.append((len(x), np.bincount(y).tolist()))
        return fitted(x, y, strength)

    monkeypatch.setattr(probing, "_fitted", spy)
    training, labels = clusters(20, 0, noise=4)
    found = linear_probe(training, labels, *clusters(20, 1, noise=4))
    assert seen == [(48, [16, 16, 16])] * 5 + [(60, [20, 20, 20])]
    other = linear_probe(training, labels, *clusters(20, 5, noise=0.1))
    assert other.strength == found.strength


def test_the_most_accurate_strength_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {0.01: 0.5, 0.1: 0.75, 1.0: 0.75, 10.0: 0.25}
    monkeypatch.setattr(probing, "_fitted", lambda x, y, strength: (strength, False))
    monkeypatch.setattr(probing, "_accuracy", lambda strength, x, y: accuracies[strength])
    found = linear_probe(*clusters(9, 0), *clusters(9, 1), strengths=(10.0, 1.0, 0.1, 0.01))
    assert (found.strength, found.accuracy, found.converged) == (0.1, 0.75, False)


def test_a_fit_that_does_not_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "ITERATIONS", 1)
    assert not linear_probe(*clusters(20, 0), *clusters(20, 1)).converged


def test_the_seed_divides_the_training_data(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    fitted = probing._fitted

    def spy(x: np.ndarray, y: np.ndarray, strength: float) -> Any:
        chosen.append(x)
        return fitted(x, y, strength)

    monkeypatch.setattr(probing, "_fitted", spy)
    for seed in (0, 0, 1):
        linear_probe(*clusters(20, 0), *clusters(5, 1), seed=seed, strengths=(0.1, 1.0))
    first, again, other = (chosen[i] for i in (0, 3, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_of_one_sample_is_fitted_but_never_held_out() -> None:
    training, labels = clusters(10, 0)
    labels[0] = 5
    found = linear_probe(training, labels, *clusters(10, 1))
    assert found.num_classes == 4
    alone = torch.arange(len(labels))
    with pytest.raises(UsageError, match="no class has two"):
        linear_probe(training, alone, *clusters(10, 1))
    assert linear_probe(training, alone, *clusters(10, 1), strengths=[0.1]).num_classes == 30
    assert knn_accuracy(training, alone, training, alone, k=1) == 1


def test_neighbours_are_those_of_the_angle() -> None:
    training = torch.tensor([[1.0, 0.0], [100.0, 1.0], [0.0, 1.0], [1.0, 100.0]])
    labels = torch.tensor([0, 0, 1, 1])
    testing = torch.tensor([[1e-3, 1e-5], [2e-4, 900.0]])
    assert knn_accuracy(training, labels, testing, torch.tensor([0, 1]), k=2) == 1
    assert knn_accuracy(training, labels, testing, torch.tensor([1, 0]), k=2) == 0


def test_the_majority_votes() -> None:
    training = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 1, 2])
    testing = torch.tensor([[1.0, 0.0]])
    assert knn_accuracy(training, labels, testing, torch.tensor([0]), k=1) == 1
    assert knn_accuracy(training, labels, testing, torch.tensor([1]), k=3) == 1


@pytest.mark.parametrize("probe", [linear_probe, knn_accuracy])
def test_refusals(probe: Any) -> None:
    (x, y), (testing, wanted) = clusters(10, 0), clusters(10, 1)
    missing = y.clone()
    missing[[3, 8]] = -1
    infinite = x.clone()
    infinite[4, 2] = torch.inf
    for arguments, message in (
        ((x, torch.full_like(y, 2), testing, wanted), "all training labels are 2"),
        ((x, missing, testing, wanted), "2 of 30 training samples have no label"),
        ((x, y, testing, missing), "2 of 30 testing samples have no label"),
        ((x, y[:-1], testing, wanted), "30 training features take as many labels"),
        ((x, y.float(), testing, wanted), "training labels are integers"),
        ((x[:, 0], y, testing, wanted), r"training features have shape \(n, d\)"),
        ((x, y, testing[:0], wanted[:0]), r"testing features have shape \(n, d\)"),
        ((x, y, testing[:, :3], wanted), "6 dimensions, testing ones 3"),
        ((infinite, y, testing, wanted), "training features are not finite"),
        ((x, y, infinite, wanted), "testing features are not finite"),
    ):
        with pytest.raises(UsageError, match=message):
            probe(*arguments)


def test_refused_settings() -> None:
    (x, y), (testing, wanted) = clusters(10, 0), clusters(10, 1)
    for k in (0, 31):
        with pytest.raises(UsageError, match=f"between 1 and the 30 training samples, got {k}"):
            knn_accuracy(x, y, testing, wanted, k=k)
    for strengths in ((), (1.0, 0.0)):
        with pytest.raises(UsageError, match="strengths are positive"):
            linear_probe(x, y, testing, wanted, strengths=strengths)
