"""What features say about labels: linear probes and nearest neighbours."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rpiae.core.errors import UsageError

#: Share of each class of the training data that chooses the strength.
HELD_OUT = 0.2

#: Values of C that a probe chooses from.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)

#: Iterations of a logistic regression, at most.
ITERATIONS = 1000


@frozen(kw_only=True)
class ProbeResult:
    """What a linear probe found.

    Attributes:
        accuracy: share of the testing data whose label it says, 0 to 1.
        strength: the chosen C, inverse of the weight decay.
        num_training, num_testing: samples.
        num_classes: of the training data.
        converged: whether the fit on all training data ended before ``ITERATIONS``.
    """

    accuracy: float
    strength: float
    num_training: int
    num_testing: int
    num_classes: int
    converged: bool


def linear_probe(
    training: Float[Tensor, "m d"],
    training_labels: Int[Tensor, " m"],
    testing: Float[Tensor, "n d"],
    testing_labels: Int[Tensor, " n"],
    *,
    seed: int = 0,
    strengths: Sequence[float] = STRENGTHS,
) -> ProbeResult:
    """Accuracy of a multinomial logistic regression on frozen features.

    Features are standardised by the training data, in float64; one that never varies is left
    unscaled. The strength is the one most accurate on a fifth of each class of the training data, the
    smallest of equals; a class of one sample is not divided. Then all training data are fitted again.

    Args:
        training, testing: features.
        training_labels, testing_labels: classes, from 0; those only in testing count as mistakes.
        seed: of the division of the training data.
        strengths: values of C to choose from.

    Raises:
        UsageError: for shapes that do not fit, missing labels (−1), features that are not finite, a
            single class, no class of two samples, or strengths that are not positive.
    """
    probe = LinearProbe(training, training_labels, seed=seed, strengths=strengths)
    accuracy = probe.accuracy(testing, testing_labels)
    return ProbeResult(
        accuracy=accuracy,
        strength=probe.strength,
        num_training=len(training),
        num_testing=len(testing),
        num_classes=probe.num_classes,
        converged=probe.converged,
    )


class LinearProbe:
    """A multinomial logistic regression on frozen features; see ``linear_probe``.

    Args:
        features, labels: that it learns from.
        seed: of the division that chooses the strength.
        strengths: values of C to choose from.

    Attributes:
        strength: the chosen C.
        num_classes: that it tells apart.
        converged: whether the fit ended before ``ITERATIONS``.

    Raises:
        UsageError: see ``linear_probe``.
    """

    def __init__(
        self,
        features: Float[Tensor, "m d"],
        labels: Int[Tensor, " m"],
        *,
        seed: int = 0,
        strengths: Sequence[float] = STRENGTHS,
    ) -> None:
        if not strengths or min(strengths) <= 0:
            raise UsageError(f"strengths are positive and at least one, got {tuple(strengths)}")
        x, y = _checked("training", features, labels)
        self.num_classes = _number_of_classes(y)
        self._dimensions = x.shape[1]
        self._scaler = StandardScaler().fit(x)
        x = self._scaler.transform(x)
        self.strength = _chosen(x, y, sorted(strengths), seed)
        self._model, self.converged = _fitted(x, y, self.strength)

    def accuracy(self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> float:
        """Share of samples whose label it says, 0 to 1.

        Raises:
            UsageError: for shapes that do not fit, missing labels, or features that are not finite.
        """
        x, y = _checked("testing", features, labels)
        _check_dimensions(self._dimensions, x)
        return _accuracy(self._model, self._scaler.transform(x), y)


def knn_accuracy(
    training: Float[Tensor, "m d"],
    training_labels: Int[Tensor, " m"],
    testing: Float[Tensor, "n d"],
    testing_labels: Int[Tensor, " n"],
    *,
    k: int = 20,
) -> float:
    """Accuracy, 0 to 1, of a vote among the k training samples of highest cosine similarity.

    Every vote counts alike; of classes with equal votes the lowest wins.

    Raises:
        UsageError: for shapes that do not fit, missing labels (−1), features that are not finite, a
            single class, or a ``k`` that is not between 1 and the number of training samples.
    """
    x, y = _checked("training", training, training_labels)
    x_testing, y_testing = _checked("testing", testing, testing_labels)
    _check_dimensions(x.shape[1], x_testing)
    _number_of_classes(y)
    if not 1 <= k <= len(x):
        raise UsageError(f"k is between 1 and the {len(x)} training samples, got {k}")
    model = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    with _quiet():
        model.fit(x, y)
    return _accuracy(model, x_testing, y_testing)


def _chosen(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], seed: int) -> float:
    """The strength, of ascending ones, that is best on held-out training data."""
    if len(strengths) == 1:
        return strengths[0]
    held = apart(y, seed=seed)
    if not held.any():
        raise UsageError("no class has two training samples, so none can choose the strength")
    best, highest = strengths[0], -1.0
    for strength in strengths:
        model, _ = _fitted(x[~held], y[~held], strength)
        accuracy = _accuracy(model, x[held], y[held])
        if accuracy > highest:
            best, highest = strength, accuracy
    return best


def apart(labels: np.ndarray, *, seed: int) -> np.ndarray:
    """A fifth of each class, as a mask; of a class of one sample, none.

    Args:
        labels: (n,), of the classes.
        seed: of the draw.
    """
    draws = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of_class = draws.permutation(np.flatnonzero(labels == label))
        if len(of_class) > 1:
            held[of_class[: max(1, round(HELD_OUT * len(of_class)))]] = True
    return held


def _fitted(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[Any, bool]:
    """The regression, and whether it converged."""
    model = LogisticRegression(C=strength, solver="lbfgs", max_iter=ITERATIONS)
    with _quiet():
        model.fit(x, y)
    return model, bool(np.max(model.n_iter_) < ITERATIONS)


def _accuracy(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(model.predict(x) == y))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the result
        # Few samples of many classes are still classes.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        yield


def _checked(what: str, features: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features (float64) and labels (int64) as arrays."""
    if features.ndim != 2 or not features.numel():
        raise UsageError(f"{what} features have shape (n, d), got {tuple(features.shape)}")
    if labels.shape != features.shape[:1]:
        raise UsageError(
            f"{len(features)} {what} features take as many labels, got shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point():
        raise UsageError(f"{what} labels are integers, got {labels.dtype}")
    missing = int((labels < 0).sum())
    if missing:
        raise UsageError(
            f"{missing} of {len(labels)} {what} samples have no label (−1); a probe needs all of them"
        )
    if not features.isfinite().all():
        raise UsageError(f"the {what} features are not finite")
    return features.detach().cpu().double().numpy(), labels.detach().cpu().long().numpy()


def _check_dimensions(dimensions: int, testing: np.ndarray) -> None:
    if testing.shape[1] != dimensions:
        raise UsageError(
            f"training features have {dimensions} dimensions, testing ones {testing.shape[1]}"
        )


def _number_of_classes(labels: np.ndarray) -> int:
    classes = np.unique(labels)
    if len(classes) < 2:
        raise UsageError(
            f"a probe tells classes apart, and all training labels are {classes[0]}; take samples of "
            "at least 2 classes"
        )
    return len(classes)
