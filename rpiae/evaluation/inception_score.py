"""Inception Score, by the classes that FID's Inception-v3 sees in generated images."""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.runtime.files import file_digest
from rpiae.data.orders import permutation
from rpiae.evaluation.accumulators import Accumulator, Rows
from rpiae.evaluation.examination import Measured
from rpiae.evaluation.seen import Seen
from rpiae.evaluation.spaces import InceptionNetwork

#: Parts of the samples, of each of which there is a score.
SPLITS = 10


def inception_score(logits: Float[Tensor, "n c"], splits: int = SPLITS) -> tuple[float, float]:
    """exp E[KL(p(y|x) ‖ p(y))], its mean and standard deviation over parts of the samples.

    Args:
        logits: of the classes.
        splits: consecutive parts of nearly equal size.

    Raises:
        UsageError: if there are fewer samples than parts.

    Source: Salimans et al. 2016, arXiv 1606.03498.
    """
    if len(logits) < splits:
        raise UsageError(
            f"the Inception Score is a mean over {splits} parts, and there are {len(logits)} samples"
        )
    scores = []
    bounds = [part * len(logits) // splits for part in range(splits + 1)]
    for start, end in itertools.pairwise(bounds):
        part = logits[start:end].double()
        found = part.log_softmax(dim=1)
        mean = found.logsumexp(dim=0) - torch.tensor(len(part)).double().log()
        scores.append((found.exp() * (found - mean)).sum(dim=1).mean().exp())
    each = torch.stack(scores)
    return float(each.mean()), float(each.std(correction=0))


class InceptionScore:
    """Inception Score of generated images; no real ones are looked at.

    Args:
        weights: a file of torch-fidelity's Inception-v3; downloaded where empty.

    Raises:
        MissingExtraError, FetchError, CheckpointError: see ``spaces.InceptionSpace``.
    """

    def __init__(self, *, weights: str = "") -> None:
        self._network = InceptionNetwork(weights, layer="logits_unbiased")
        self._rows = Rows()

    def update(self, seen: Seen) -> None:
        """Take in some of the generated images."""
        self._network.to(seen.images.device)
        self._rows.add(seen.positions, logits=self._network(seen.images))

    def accumulators(self) -> Sequence[Accumulator]:
        """What was gathered of them."""
        return (self._rows,)

    def compute(self) -> Measured:
        """The score; its standard deviation over parts is under details."""
        logits = self._rows.joined()["logits"]
        # Samples often lie class by class, and a part has to be like the whole.
        mean, spread = inception_score(logits[permutation(len(logits), 0, "inception-score")])
        facts = {
            "extractor": {
                "extractor": "Inception-v3 of 2015-12-05 (FID), by torch-fidelity",
                "layer": "classes, without their bias",
                "weights_sha256": file_digest(self._network.file),
                "versions": {"torch-fidelity": importlib.metadata.version("torch-fidelity")},
            },
            "splits": SPLITS,
        }
        return Measured(values={"inception_score": mean}, details={"spread": spread}, facts=facts)
