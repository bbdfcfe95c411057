"""Configs of the built-in decoders (torch-free)."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from rpiae.core.config import DecoderConfig, at_least


@frozen(kw_only=True)
class ConvDecoderConfig(DecoderConfig):
    """A convolutional upsampler.

    Attributes:
        width: channels on the token grid; halved by every octave, down to 32.
        depth: residual blocks on the token grid.
        blocks: residual blocks after every octave.
    """

    module: ClassVar[str] = "rpiae.decoders.conv:ConvDecoder"
    width: int = at_least(4, default=512)
    depth: int = at_least(0, default=4)
    blocks: int = at_least(0, default=1)


@frozen(kw_only=True)
class VitDecoderConfig(DecoderConfig):
    """The paper's ViT decoder.

    Attributes:
        width, depth, num_heads, mlp_hidden: see ``VitDecoder``.
        stored_grid: rows and columns of a stored position embedding; empty computes sin-cos.
    """

    module: ClassVar[str] = "rpiae.decoders.vit:VitDecoder"
    width: int = at_least(4, default=768)
    depth: int = at_least(1, default=12)
    num_heads: int = at_least(1, default=12)
    mlp_hidden: int = at_least(1, default=3072)
    stored_grid: tuple[int, ...] = ()
