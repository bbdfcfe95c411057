"""Config of the bridge 'template' (torch-free)."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen
from rpiae.plugin import BridgeConfig, BridgeDescription, at_least, wired


@frozen(kw_only=True)
class TemplateBridgeConfig(BridgeConfig):
    """Fields of ``TemplateBridge``.

    Attributes:
        features: channels of the encoder's features; filled in.
        latent_channels: channels C of the latent.
        hidden: channels between the two layers.
    """

    module: ClassVar[str] = "rpiae_template.bridge:TemplateBridge"
    features: int | None = wired("encoder.width", what="channels")
    latent_channels: int = at_least(1, default=16)
    hidden: int = at_least(1, default=128)

    def describe(self) -> BridgeDescription:
        """What the rest of a run needs to know."""
        return BridgeDescription(latent_channels=self.latent_channels, gaussian=True)
