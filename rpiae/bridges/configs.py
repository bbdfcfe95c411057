"""Configs of the built-in bridges (torch-free)."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import evolve, frozen

from rpiae.core.config.fields import wired, within
from rpiae.core.config.parts import BridgeConfig, BridgeDescription


@frozen(kw_only=True)
class ConvBridgeConfig(BridgeConfig):
    """Residual convolutions on the feature map.

    Attributes:
        features: channels of the encoder's features.
        latent_channels: channels C of the latent.
        width: channels of the convolutions.
        blocks: residual blocks each way.
        downsampling: 1 keeps the grid; 2 halves its sides.
    """

    module: ClassVar[str] = "rpiae.bridges.conv:ConvBridge"
    features: int | None = wired("encoder.width", what="channels")
    latent_channels: int = within(1, 65536, default=64)
    width: int = within(4, 32768, default=256)
    blocks: int = within(0, 512, default=2)
    downsampling: Literal[1, 2] = 1

    def describe(self) -> BridgeDescription:
        """A point of ``latent_channels``."""
        return BridgeDescription(
            latent_channels=self.latent_channels, gaussian=False, downsampling=self.downsampling
        )


@frozen(kw_only=True)
class ConvKlBridgeConfig(ConvBridgeConfig):
    """Residual convolutions to a Gaussian posterior; fields as in ``ConvBridgeConfig``."""

    module: ClassVar[str] = "rpiae.bridges.conv:ConvKlBridge"

    def describe(self) -> BridgeDescription:
        """A Gaussian posterior with ``latent_channels``."""
        return evolve(super().describe(), gaussian=True)


@frozen(kw_only=True)
class IdentityBridgeConfig(BridgeConfig):
    """No compression.

    Attributes:
        features: channels of the encoder's features.
    """

    module: ClassVar[str] = "rpiae.bridges.identity:IdentityBridge"
    features: int | None = wired("encoder.width", what="channels")

    def describe(self) -> BridgeDescription:
        """The latent has the features' channels."""
        assert self.features is not None
        return BridgeDescription(latent_channels=self.features, gaussian=False)


@frozen(kw_only=True)
class LinearBridgeConfig(BridgeConfig):
    """An affine map each way, which begins as principal components.

    Attributes:
        features: channels of the encoder's features.
        latent_channels: channels C of the latent; at most ``features``.
        whiten: whether the fit gives every latent channel unit variance.
    """

    module: ClassVar[str] = "rpiae.bridges.linear:LinearBridge"
    features: int | None = wired("encoder.width", what="channels")
    latent_channels: int = within(1, 65536, default=64)
    whiten: bool = False

    def describe(self) -> BridgeDescription:
        """A point of ``latent_channels``; fitted before it is used."""
        return BridgeDescription(latent_channels=self.latent_channels, gaussian=False, fitted=True)


@frozen(kw_only=True)
class VariationalBridgeConfig(BridgeConfig):
    """The paper's variational bridge.

    Attributes:
        features: channels of the encoder's features.
        latent_channels: channels C of the latent.
        decoder_layers: transformer layers on the way back.
        encoder_mlp_ratio, decoder_mlp_ratio: MLP widths over ``features``.
    """

    module: ClassVar[str] = "rpiae.bridges.variational:VariationalBridge"
    features: int | None = wired("encoder.width", what="channels")
    latent_channels: int = within(1, 65536, default=64)
    decoder_layers: int = within(0, 512, default=6)
    encoder_mlp_ratio: float = within(0, 64, default=1.0)
    decoder_mlp_ratio: float = within(0, 64, default=4.0)

    def describe(self) -> BridgeDescription:
        """A Gaussian posterior with ``latent_channels``."""
        return BridgeDescription(latent_channels=self.latent_channels, gaussian=True)
