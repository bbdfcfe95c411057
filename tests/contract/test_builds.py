"""The kit's check that parts build, train and load, on built-in parts and on broken ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from attrs import frozen
from torch import nn

from rpiae.bridges.identity import Delta, IdentityBridge
from rpiae.core.config.fields import wired
from rpiae.core.config.parts import BridgeConfig, BridgeDescription
from rpiae.core.errors import ConfigError
from rpiae.core.model.contracts import Features
from rpiae.core.registry.registry import registry
from rpiae.testing import check_builds
from tests.toys import BRIDGES, DECODERS


class Still(IdentityBridge):
    """Has a parameter that takes no part in what it does."""

    def __init__(self, *, features: int) -> None:
        super().__init__(features=features)
        self.idle = nn.Parameter(torch.zeros(()))

    def decode(self, latent: torch.Tensor) -> Features:
        tokens, grid = super().decode(latent)
        return Features(tokens + 0 * self.idle, grid)


class Drifting(IdentityBridge):
    """Keeps what it needs where no state is saved."""

    made = 0

    def __init__(self, *, features: int) -> None:
        super().__init__(features=features)
        Drifting.made += 1
        self.scale = float(Drifting.made)

    def encode(self, features: Features) -> Delta:
        return super().encode(Features(features.tokens * self.scale, features.grid))


@pytest.fixture
def odd_bridge(request: pytest.FixtureRequest) -> Iterator[str]:
    """A registered bridge around one of the modules above."""
    name = request.param.__name__

    @frozen(kw_only=True)
    class OddConfig(BridgeConfig):
        """Of an odd bridge."""

        module: ClassVar[str] = f"{__name__}:{name}"
        features: int | None = wired("encoder.width", what="channels")

        def describe(self) -> BridgeDescription:
            assert self.features is not None
            return BridgeDescription(latent_channels=self.features, gaussian=False)

    bridges = registry("bridges")
    label = f"odd-{name.lower()}"
    bridges.register(label, OddConfig, summary="odd")
    yield label
    del bridges._entries[label]


@pytest.mark.parametrize(
    "parts",
    [
        {"bridge": BRIDGES["conv-kl-half"]},
        {"bridge": BRIDGES["linear4"], "decoder": DECODERS["conv"]},
        {"losses": ("mse", "pivot-perceptual"), "data": "sample"},
        {"bridge": "identity", "recipe": "quick-gan"},
        {"recipe": "quick-gan", "losses": ("pivot-perceptual", "flicker"), "frames": 3},
        {
            "bridge": BRIDGES["tvb4x4"],
            "decoder": DECODERS["video-vit"],
            "recipe": "video",
            "frames": 5,
        },
        {"bridge": BRIDGES["temporal-linear"], "decoder": DECODERS["video-conv"], "frames": 4},
    ],
    ids=[
        "half grid",
        "fitted",
        "losses and data",
        "critic",
        "images on clips",
        "clips",
        "incomplete groups",
    ],
)
def test_built_in_parts(parts: dict[str, Any]) -> None:
    check_builds(**parts)


@pytest.mark.parametrize("odd_bridge", [Still], indirect=True)
def test_a_part_that_training_leaves_alone(odd_bridge: str) -> None:
    with pytest.raises(AssertionError, match="training leaves the bridge as it was"):
        check_builds(bridge=odd_bridge)


@pytest.mark.parametrize("odd_bridge", [Drifting], indirect=True)
def test_a_part_that_is_not_what_was_saved(odd_bridge: str) -> None:
    with pytest.raises(AssertionError, match="reconstructs otherwise than what was saved"):
        check_builds(bridge=odd_bridge)


def test_a_loss_that_no_stage_can_have() -> None:
    with pytest.raises(AssertionError, match="no stage of recipe 'quick' offers what kl needs"):
        check_builds(bridge="identity", losses=("kl",))


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="was built for 33 channels"):
        check_builds(bridge={"name": "vb4", "features": 33})
