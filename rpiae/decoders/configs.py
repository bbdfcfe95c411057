"""Configs of the built-in decoders (torch-free)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attrs import evolve, frozen

from rpiae.core.config.fields import refused, wired, within
from rpiae.core.config.parts import DecoderConfig


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
