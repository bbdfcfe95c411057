"""Pivot losses: zero at the pivot, right on numbers worked out by hand, gradients where they belong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rpiae import runs
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.contracts import BlockFeatures, Features, StepContext
from rpiae.core.runtime.draws import StepRandomness
from rpiae.losses.pivot import PivotCosineLoss, PivotNoisyLoss, PivotRelationalLoss
from tests.toys import DECODERS, ENCODERS

GRID = (1, 2, 2)


class Anchor:
    """A replica that always sees the same tokens."""

    num_blocks = 1

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def features(self, images: Tensor) -> Features:
        return Features(self.tokens, GRID)

    def blocks(self, images: Tensor, indices: Any) -> BlockFeatures:
        return BlockFeatures([self.tokens for _ in indices], GRID)


def context(anchor: Tensor, **given: Any) -> StepContext:
    empty = dict.fromkeys(StepContext._fields)
    draws = StepRandomness(0, "stage", 0, range(len(anchor)))
    fields = {
        "images": torch.zeros(len(anchor), 3, 8, 8),
        "replica": Anchor(anchor),
        "draws": draws,
    }
    return StepContext(**(empty | fields | given))


def test_cosine_beyond_a_margin() -> None:
    anchor = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [1, 0]]])
    tokens = torch.tensor([[[2.0, 0], [0, 3], [-1, 0], [1, 1]]])
    given = context(anchor, features=Features(tokens, GRID))
    cosines = torch.tensor([1, 0, -1, 0.5**0.5])
    torch.testing.assert_close(PivotCosineLoss(margin=0.0)(given), (1 - cosines).mean())
    beyond = (1 - 0.5 - cosines).clamp(min=0).mean()
    torch.testing.assert_close(PivotCosineLoss(margin=0.5)(given), beyond)


def test_relations_are_those_of_all_pairs() -> None:
    torch.manual_seed(0)
    anchor, tokens = torch.randn(2, 3, 4, 5)
    given = context(anchor, features=Features(tokens, GRID))
    total, count = 0.0, 0
    for a, t in zip(anchor, tokens, strict=True):
        for i in range(4):
            for j in range(4):
                s = torch.cosine_similarity(t[i], t[j], dim=0)
                wanted = torch.cosine_similarity(a[i], a[j], dim=0)
                total += max(abs(s - wanted).item() - 0.25, 0)
                count += 1
    found = PivotRelationalLoss(of="features", margin=0.25)(given)
    assert found.item() == pytest.approx(total / count, rel=1e-5)


def test_relations_do_not_care_about_rotation_or_scale() -> None:
    anchor = torch.randn(2, 4, 6)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))
    given = context(anchor, features=Features(3 * anchor @ rotation, GRID))
    assert PivotRelationalLoss(of="features", margin=0.0)(given).item() < 1e-6


def test_relations_of_the_latent_may_have_fewer_channels() -> None:
    anchor = torch.randn(1, 4, 6)
    latent = torch.randn(1, 2, *GRID, requires_grad=True)
    given = context(anchor, latent=latent, features=Features(anchor, GRID))
    PivotRelationalLoss(of="latent", margin=0.0)(given).backward()
    assert latent.grad is not None
    small = context(anchor, latent=torch.randn(1, 2, 1, 1, 1), features=Features(anchor, GRID))
    with pytest.raises(UsageError, match="without downsampling"):
        PivotRelationalLoss(of="latent", margin=0.0)(small)


def test_noise_on_the_way_costs_more_the_more_of_it_there_is() -> None:
    torch.manual_seed(0)
    anchor = torch.randn(64, 4, 6)
    latent = anchor.mT.reshape(64, 6, *GRID)

    def expand(noisy: Tensor) -> Features:
        return Features(noisy.flatten(2).mT, GRID)

    given = context(anchor, latent=latent, expand=expand)
    losses = [PivotNoisyLoss(most=most)(given).item() for most in (0.0, 0.5, 1.0)]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses[0] < losses[1] < losses[2] < 1
    assert PivotNoisyLoss(most=1.0)(given).item() == losses[2], "a step's draws are its own"


@pytest.mark.parametrize(
    ("loss", "lacks"),
    [
        ("pivot-noisy", "decoded_features and latent"),
        ({"name": "pivot-relational", "of": "latent"}, "latent"),
    ],
)
def test_terms_on_the_latent_need_the_bridge_in_the_path(loss: Any, lacks: str) -> None:
    stage = {
        "name": "a", "train": ["encoder"], "steps": 1, "use_bridge": False,
        "terms": [{"loss": loss}],
    }  # fmt: skip
    tree = {"encoder": ENCODERS["vit"], "bridge": "vb4", "decoder": DECODERS["vit"]}
    with pytest.raises(ConfigError, match=f"needs {lacks}, which"):
        runs.resolve(tree | {"recipe": {"name": "r", "stages": [stage]}})
    stage["use_bridge"] = True
    assert runs.resolve(tree | {"recipe": {"name": "r", "stages": [stage]}}).notices == ()
