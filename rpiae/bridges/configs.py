"""Configs of the built-in bridges (torch-free)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attrs import evolve, frozen

from rpiae.core.config.fields import refused, wired, within
from rpiae.core.config.parts import BridgeConfig, BridgeDescription, PartConfig, explained


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
class TimeConfig(BridgeConfig):
    """Base of the configs of bridges that compress time around a bridge of images.

    Attributes:
        temporal_downsampling: steps of tokens per latent step, T.
        window: latent steps that a block along time sees, its own included.
        depth: blocks along time each way.
        mlp_ratio: width of the MLPs along time over ``features``.
    """

    temporal_downsampling: Literal[1, 2, 4, 8] = 4
    window: int = within(1, 4096, default=4)
    depth: int = within(0, 64, default=2)
    mlp_ratio: float = within(0, 64, default=2.0)

    def image_bridge(self) -> BridgeConfig:
        """The bridge of images."""
        raise NotImplementedError

    def describe(self) -> BridgeDescription:
        """That of the bridge of images, with time."""
        return evolve(
            self.image_bridge().describe(), temporal_downsampling=self.temporal_downsampling
        )

    def place_of(self, other: PartConfig) -> str | None:
        """A bridge of images goes to its place inside."""
        if other.name == self.name:
            return ""
        return "image" if other.name == self.image_bridge().name else None

    def build(self) -> Any:
        """Around a bridge with an analytic fit, it has one too."""
        from rpiae.bridges.temporal import FittableTemporalBridge, TemporalBridge

        built = FittableTemporalBridge if self.image_bridge().describe().fitted else TemporalBridge
        with explained(self, "cannot be built"):
            return built(
                image=self.image_bridge().build(),
                temporal_downsampling=self.temporal_downsampling,
                window=self.window, depth=self.depth, mlp_ratio=self.mlp_ratio,
            )  # fmt: skip


@frozen(kw_only=True)
class TemporalBridgeConfig(TimeConfig):
    """Compression of time around any bridge of images.

    Attributes:
        image: the bridge of images.
    """

    module: ClassVar[str] = "rpiae.bridges.temporal:TemporalBridge"
    image: BridgeConfig

    def __attrs_post_init__(self) -> None:
        if isinstance(self.image, TimeConfig):
            raise refused(
                "image", f"{self.image.label!r} compresses time itself: name a bridge of images"
            )

    def image_bridge(self) -> BridgeConfig:
        """The bridge of images."""
        return self.image


@frozen(kw_only=True)
class TemporalVariationalBridgeConfig(TimeConfig):
    """Compression of time around the paper's variational bridge.

    Attributes:
        features: channels of the encoder's features.
        latent_channels: channels C of the latent.
        decoder_layers, encoder_mlp_ratio, decoder_mlp_ratio: see ``VariationalBridgeConfig``.
    """

    module: ClassVar[str] = "rpiae.bridges.temporal:TemporalBridge"
    features: int | None = wired("encoder.width", what="channels")
    latent_channels: int = within(1, 65536, default=64)
    decoder_layers: int = within(0, 512, default=6)
    encoder_mlp_ratio: float = within(0, 64, default=1.0)
    decoder_mlp_ratio: float = within(0, 64, default=4.0)

    def image_bridge(self) -> BridgeConfig:
        """The variational bridge."""
        return VariationalBridgeConfig(
            name="variational", features=self.features, latent_channels=self.latent_channels,
            decoder_layers=self.decoder_layers, encoder_mlp_ratio=self.encoder_mlp_ratio,
            decoder_mlp_ratio=self.decoder_mlp_ratio,
        )  # fmt: skip


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
