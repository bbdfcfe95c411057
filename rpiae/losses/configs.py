"""Configs of the built-in losses (torch-free)."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from rpiae.core.config import LossConfig
from rpiae.core.watch import Alarm


@frozen(kw_only=True)
class L1LossConfig(LossConfig):
    """Mean absolute pixel error."""

    module: ClassVar[str] = "rpiae.losses.pixels:L1Loss"
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})


@frozen(kw_only=True)
class MseLossConfig(LossConfig):
    """Mean squared pixel error."""

    module: ClassVar[str] = "rpiae.losses.pixels:MseLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})


@frozen(kw_only=True)
class PivotLossConfig(LossConfig):
    """Distance of the encoder's clean tokens from the replica's."""

    alarm: ClassVar[Alarm | None] = Alarm(
        sign="rising",
        bound=0.05,
        advice="the encoder moves away from its pivot. Raise the term's weight, make it adaptive, or "
        "lower the learning rate",
    )
    module: ClassVar[str] = "rpiae.losses.pivot:PivotLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"features", "replica"})


@frozen(kw_only=True)
class PivotPerceptualLossConfig(LossConfig):
    """Distance in the replica's intermediate features.

    Attributes:
        layers: block indices; empty takes up to four, evenly spaced, the last one included.
    """

    module: ClassVar[str] = "rpiae.losses.pivot:PivotPerceptualLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"pixels", "replica"})
    layers: tuple[int, ...] = ()


@frozen(kw_only=True)
class KlLossConfig(LossConfig):
    """KL divergence of the posterior from N(0, I), per element and doubled."""

    alarm: ClassVar[Alarm | None] = Alarm(
        sign="vanishing",
        bound=0.01,
        advice="the posterior is its prior and carries nothing. Lower the term's weight, or let it "
        "grow with ramp_steps",
    )
    module: ClassVar[str] = "rpiae.losses.bridge:KlLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"gaussian"})


@frozen(kw_only=True)
class FeatureLossConfig(LossConfig):
    """Distance of the bridge decoder's output from the clean features."""

    module: ClassVar[str] = "rpiae.losses.bridge:FeatureLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"features", "decoded_features"})
