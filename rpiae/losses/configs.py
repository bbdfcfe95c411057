"""Configs of the built-in losses (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import frozen

from rpiae.core.config.fields import at_least, names_file, refused, within
from rpiae.core.config.parts import Alarm, CriticConfig, EncoderConfig, LossConfig
from rpiae.core.config.recipe import AdversarialConfig

if TYPE_CHECKING:
    from torch import nn

PIVOT_ALARM = Alarm(
    sign="rising",
    bound=0.05,
    advice="the encoder moves away from its pivot. Raise the term's weight, make it adaptive, or "
    "lower the learning rate",
)


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
class FlowLossConfig(LossConfig):
    """Mean squared error of the velocity from data to noise."""

    module: ClassVar[str] = "rpiae.losses.flow:FlowLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"velocity"})


@frozen(kw_only=True)
class PivotLossConfig(LossConfig):
    """Distance of the encoder's clean tokens from the replica's."""

    alarm: ClassVar[Alarm | None] = PIVOT_ALARM
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


@frozen(kw_only=True)
class LpipsLossConfig(LossConfig):
    """LPIPS with VGG-16 features.

    Attributes:
        weights: a local file of torchvision's VGG-16; empty downloads it on first use.
        pretrained: false takes random weights, for tests of everything else.
    """

    module: ClassVar[str] = "rpiae.losses.lpips:LpipsLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})
    weights: str = names_file("")
    pretrained: bool = True

    def fetch(self) -> Path | None:
        """The VGG-16 file, downloaded first where necessary."""
        if not self.pretrained:
            return None
        from rpiae.losses.lpips import vgg_weights

        return vgg_weights(self.weights)

    def build(self) -> Any:
        """The loss with its weights."""
        from rpiae.losses.lpips import LpipsLoss, packaged_heads, read_state

        path = self.fetch()
        if path is None:
            return LpipsLoss()
        return LpipsLoss(backbone=read_state(path), heads=read_state(packaged_heads()))


@frozen(kw_only=True)
class AdversarialLossConfig(AdversarialConfig):
    """The game against a critic.

    Attributes:
        objective: of both sides, see ``AdversarialLoss``.
        augment: what every image goes through before the critic sees it: translation, then colour,
            then cutout, as far as named.
    """

    module: ClassVar[str] = "rpiae.losses.adversarial:AdversarialLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"pixels", "critic"})
    objective: Literal["hinge", "non-saturating"] = "hinge"
    augment: tuple[Literal["translation", "colour", "cutout"], ...] = ("translation", "colour")

    def arguments(self) -> dict[str, Any]:
        """Those of the model's side; the critic is the trainer's."""
        return {"objective": self.objective, "augment": self.augment}


@frozen(kw_only=True)
class DinoCriticConfig(CriticConfig):
    """Heads on a frozen vision transformer.

    Attributes:
        backbone: any encoder.
        layers: blocks with a head of their own, beside the last one's.
        image_size: side of the backbone's input, in pixels.
        kernel: tokens that the heads' residual convolution spans; odd.
    """

    module: ClassVar[str] = "rpiae.losses.critics:DinoCritic"
    backbone: EncoderConfig
    layers: tuple[int, ...] = (2, 5, 8, 11)
    image_size: int = within(1, 4096, default=224)
    kernel: int = within(1, 1023, default=9)

    def __attrs_post_init__(self) -> None:
        facts = self.backbone.describe()
        for layer in self.layers:
            if not -facts.num_blocks <= layer < facts.num_blocks:
                raise refused(
                    "layers",
                    f"{self.backbone.label!r} has blocks 0 to {facts.num_blocks - 1}, not {layer}",
                )
        if self.kernel % 2 == 0:
            raise refused("kernel", f"the kernel must be odd, got {self.kernel}")
        if self.image_size < facts.patch:
            raise refused(
                "image_size",
                f"{self.image_size} pixels are less than the patch of {self.backbone.label!r}, "
                f"{facts.patch}",
            )

    def arguments(self) -> dict[str, Any]:
        """With the backbone built, its weights at random."""
        return {
            "backbone": self.backbone.build(),
            "layers": self.layers,
            "image_size": self.image_size,
            "kernel": self.kernel,
        }

    def load_pretrained(self, module: nn.Module) -> None:
        """Load the backbone's weights."""
        if self.backbone.pretrained:
            self.backbone.load_pretrained(module.backbone)  # type: ignore[arg-type]  # DinoCritic's

    def fetch(self) -> Path | None:
        """The backbone's weights."""
        return self.backbone.fetch() if self.backbone.pretrained else None


@frozen(kw_only=True)
class PatchCriticConfig(CriticConfig):
    """A small convolutional critic; needs no weights.

    Attributes:
        width: channels after the first convolution.
        halvings: convolutions with stride 2; 3 gives patches of 70×70 pixels.
    """

    module: ClassVar[str] = "rpiae.losses.critics:PatchCritic"
    width: int = within(1, 8192, default=64)
    halvings: int = within(1, 8, default=3)


@frozen(kw_only=True)
class PivotCosineLossConfig(LossConfig):
    """Cosine distance of the encoder's clean tokens from the replica's.

    Attributes:
        margin: distance that costs nothing.
    """

    alarm: ClassVar[Alarm | None] = PIVOT_ALARM
    module: ClassVar[str] = "rpiae.losses.pivot:PivotCosineLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"features", "replica"})
    margin: float = at_least(0, default=0.0)


@frozen(kw_only=True)
class PivotRelationalLossConfig(LossConfig):
    """Difference of the tokens' similarity matrices, the model's and the replica's.

    Attributes:
        of: whose tokens are compared with the replica's.
        margin: difference of similarity that costs nothing.
    """

    alarm: ClassVar[Alarm | None] = PIVOT_ALARM
    module: ClassVar[str] = "rpiae.losses.pivot:PivotRelationalLoss"
    of: Literal["features", "latent"] = "features"
    margin: float = at_least(0, default=0.0)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # here it depends on a field
        """Features or latent, and the replica."""
        return frozenset({self.of, "replica"})


@frozen(kw_only=True)
class PivotNoisyLossConfig(LossConfig):
    """Distance of the features decoded from noised latents from the replica's.

    Attributes:
        most: largest share of noise in a latent, at most 1.
    """

    module: ClassVar[str] = "rpiae.losses.pivot:PivotNoisyLoss"
    needs: ClassVar[frozenset[str]] = frozenset({"latent", "decoded_features", "replica"})
    most: float = within(0, 1, default=1.0)


@frozen(kw_only=True)
class TemporalDifferenceLossConfig(LossConfig):
    """Mean absolute error of frame differences."""

    module: ClassVar[str] = "rpiae.losses.temporal:TemporalDifferenceLoss"
    over_time: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})


@frozen(kw_only=True)
class FlickerLossConfig(LossConfig):
    """Change over time where nothing moves in the true clip.

    Attributes:
        threshold: change from which on a pixel moves, in units of [0, 1].
        neighbourhood: side of the square around a pixel that has to be still, in pixels; odd.
    """

    module: ClassVar[str] = "rpiae.losses.temporal:FlickerLoss"
    over_time: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})
    threshold: float = within(0, 1, default=0.02)
    neighbourhood: int = within(1, 1023, default=3)

    def __attrs_post_init__(self) -> None:
        if self.neighbourhood % 2 == 0:
            raise refused(
                "neighbourhood",
                f"the side must be odd, got {self.neighbourhood}: a pixel is in its middle",
            )


@frozen(kw_only=True)
class PivotTrajectoryLossConfig(LossConfig):
    """Distance of the features' motion from the replica's.

    Attributes:
        of: whose motion is compared with the replica's.
        distance: ``squared`` or ``cosine``, see ``PivotTrajectoryLoss``.
    """

    module: ClassVar[str] = "rpiae.losses.temporal:PivotTrajectoryLoss"
    over_time: ClassVar[bool] = True
    of: Literal["features", "decoded_features"] = "features"
    distance: Literal["squared", "cosine"] = "squared"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # here it depends on a field
        """The features whose motion it is, and the replica."""
        return frozenset({self.of, "replica"})
