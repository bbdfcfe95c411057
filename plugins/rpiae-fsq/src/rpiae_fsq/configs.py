"""The config of the bridge (torch-free)."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import frozen

from rpiae.plugin import BridgeConfig, BridgeDescription, wired


@frozen(kw_only=True)
class FsqBridgeConfig(BridgeConfig):
    """Finite scalar quantisation.

    Attributes:
        features: channels of the encoder's features.
        levels: values that each latent channel can take; their product is the codebook's size.
        projection: how features become latent channels and come back: token by token
            (``"linear"``), or by 3×3 convolutions (``"conv"``).
    """

    module: ClassVar[str] = "rpiae_fsq.bridge:FsqBridge"
    features: int | None = wired("encoder.width", what="channels")
    levels: tuple[int, ...] = (8, 5, 5, 5)
    projection: Literal["linear", "conv"] = "linear"

    def describe(self) -> BridgeDescription:
        """One latent channel per entry of ``levels``; a point, not a Gaussian."""
        return BridgeDescription(latent_channels=len(self.levels), gaussian=False)
