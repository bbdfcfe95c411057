"""Configs of the built-in decoders (torch-free)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attrs import evolve, frozen

from rpiae.core.config.fields import refused, wired, within
from rpiae.core.config.parts import DecoderConfig, PartConfig


@frozen(kw_only=True)
class ConvDecoderConfig(DecoderConfig):
    """A convolutional upsampler.

    Attributes:
        width: channels on the token grid; halved by every octave, down to 32.
        depth: residual blocks on the token grid.
        blocks: residual blocks after every octave.
    """

    module: ClassVar[str] = "rpiae.decoders.conv:ConvDecoder"
    width: int = within(4, 32768, default=512)
    depth: int = within(0, 512, default=4)
    blocks: int = within(0, 512, default=1)


@frozen(kw_only=True)
class VideoDecoderConfig(DecoderConfig):
    """A decoder of images that sees earlier frames.

    Attributes:
        image: the decoder of images; its features and patch are this one's.
        frames: output frames per token.
        every: layers of the decoder of images from one block along time to the next.
        window: frames that a block along time sees, its own included.
        mlp_ratio: width of the blocks' MLPs over that of the tokens; 0 leaves them out.
    """

    module: ClassVar[str] = "rpiae.decoders.video:VideoDecoder"
    image: DecoderConfig
    frames: int | None = wired("encoder.frames", what="frames per token", maximum=64)
    every: int = within(1, 512, default=2)
    window: int = within(1, 4096, default=8)
    mlp_ratio: float = within(0, 64, default=1.0)

    def __attrs_post_init__(self) -> None:
        if isinstance(self.image, VideoDecoderConfig):
            raise refused(
                "image", f"{self.image.label!r} is one of videos itself: name a decoder of images"
            )
        for name in ("features", "patch"):
            inside, own = getattr(self.image, name), getattr(self, name)
            if None not in (inside, own) and inside != own:
                raise refused(
                    "image",
                    f"image.{name} is {inside}, and {name} of the decoder around it {own}: leave out "
                    "the former",
                )

    @property
    def frames_per_token(self) -> int:
        """Output frames per token."""
        return self.frames or 1

    def on_grid(self, rows: int, columns: int) -> VideoDecoderConfig:
        """The decoder of images decides."""
        return evolve(self, image=self.image.on_grid(rows, columns))

    def place_of(self, other: PartConfig) -> str | None:
        """A decoder of images goes to its place inside."""
        if other.name == self.name:
            return ""
        return "image" if other.name == self.image.name else None

    def arguments(self) -> dict[str, Any]:
        """With the decoder of images built."""
        image = evolve(self.image, features=self.features, patch=self.patch)
        return {
            "image": image.build(),
            "frames": self.frames_per_token,
            "every": self.every,
            "window": self.window,
            "mlp_ratio": self.mlp_ratio,
        }


@frozen(kw_only=True)
class VitDecoderConfig(DecoderConfig):
    """The paper's ViT decoder.

    Attributes:
        width, depth, num_heads, mlp_hidden: see ``VitDecoder``.
        positions: ``fixed`` sin-cos, or ``trained`` from there; the paper's text has the former, its
            released code trains them. Not given: the recipe's, else ``fixed``.
        stored_grid: rows and columns of a stored position embedding; empty computes sin-cos, or,
            where positions are trained, is filled in with the grid of the training crops.
    """

    module: ClassVar[str] = "rpiae.decoders.vit:VitDecoder"
    width: int = within(4, 32768, default=768)
    depth: int = within(1, 512, default=12)
    num_heads: int = within(1, 1024, default=12)
    mlp_hidden: int = within(1, 131072, default=3072)
    positions: Literal["fixed", "trained"] | None = wired(
        "recipe.default_positions", what="positions", strict=False
    )
    stored_grid: tuple[int, ...] = within(1, 256, default=())

    def __attrs_post_init__(self) -> None:
        if self.width % 4:
            raise refused("width", f"sin-cos positions need a multiple of 4, got {self.width}")
        if self.width % self.num_heads:
            raise refused(
                "num_heads", f"{self.num_heads} heads do not divide the width of {self.width}"
            )
        if len(self.stored_grid) not in (0, 2):
            raise refused(
                "stored_grid",
                f"expected [rows, columns] or an empty list, got {list(self.stored_grid)}",
            )

    def on_grid(self, rows: int, columns: int) -> VitDecoderConfig:
        """Trained positions are stored for the grid of the training crops."""
        if self.positions != "trained" or self.stored_grid:
            return self
        return evolve(self, stored_grid=(rows, columns))

    def arguments(self) -> dict[str, Any]:
        """Keywords of the module."""
        return super().arguments() | {"positions": self.positions or "fixed"}
