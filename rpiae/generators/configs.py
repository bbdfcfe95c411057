"""Configs of the built-in generators (torch-free)."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import frozen

from rpiae.core.config.fields import refused, within
from rpiae.core.config.generation import GeneratorConfig

#: Sin-cos positions and rotary ones share channels out among two axes, with sine and cosine of each.
_CHANNELS = 4


@frozen(kw_only=True)
class DitConfig(GeneratorConfig):
    """A diffusion transformer.

    Attributes:
        width: channels of the tokens.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP over ``width``; of SwiGLU two thirds of it.
        patch: side of the square of latent positions that is a token.
        qk_norm: whether queries and keys are normalised, before RoPE.
        rms_norm: RMSNorm with weights; else LayerNorm, with weights for queries and keys alone.
        swiglu: SwiGLU; else GELU (tanh).
        rope: rotary positions of queries and keys along both axes.
        positions: what is added to the tokens: sin-cos positions that stay as they are (``fixed``),
            that are ``trained`` from there, as the released code does, or ``none``.
        shifts: whether the blocks' modulation shifts as well as scales.
        frequencies: Gaussian frequencies of the time embedding.
        train_frequencies: whether they are trained, as the released code does.
        head_width, head_depth, head_heads: of a wide head behind the blocks, which reads the noised
            latents again (DDT); no head where ``head_depth`` is 0.
        init: of linear layers: ``xavier`` with biases of 0, or torch's own (``default``).

    Source: LightningDiT, arXiv 2501.01423, as released with arXiv 2603.19206; the head: DDT, arXiv
    2504.05741, as in RAE, arXiv 2510.11690.
    """

    module: ClassVar[str] = "rpiae.generators.dit:Dit"
    width: int = within(1, 32768, default=384)
    depth: int = within(1, 512, default=12)
    num_heads: int = within(1, 1024, default=6)
    mlp_ratio: float = within(0.1, 64, default=4.0)
    patch: int = within(1, 64, default=1)
    qk_norm: bool = True
    rms_norm: bool = True
    swiglu: bool = True
    rope: bool = True
    positions: Literal["fixed", "trained", "none"] = "trained"
    shifts: bool = True
    frequencies: int = within(1, 65536, default=256)
    train_frequencies: bool = True
    head_width: int = within(1, 32768, default=2048)
    head_depth: int = within(0, 512, default=0)
    head_heads: int = within(1, 1024, default=16)
    init: Literal["xavier", "default"] = "xavier"

    def __attrs_post_init__(self) -> None:
        if self.positions != "none" and self.width % _CHANNELS:
            raise refused(
                "width", f"sin-cos positions need a multiple of {_CHANNELS}, got {self.width}"
            )
        self._check_heads("num_heads", self.num_heads, self.width)
        if self.head_depth:
            self._check_heads("head_heads", self.head_heads, self.head_width)
        for name in ("rows", "columns"):
            side = getattr(self, name)
            if side is not None and side % self.patch:
                raise refused(
                    "patch", f"patches of {self.patch} do not divide latents of {side} {name}"
                )

    def _check_heads(self, field: str, heads: int, width: int) -> None:
        if width % heads:
            raise refused(field, f"{heads} heads do not divide the width of {width}")
        if self.rope and width // heads % _CHANNELS:
            raise refused(
                field,
                f"rotary positions need heads of a multiple of {_CHANNELS} channels, and {heads} heads "
                f"of {width} have {width // heads}: take another number, or set rope = false",
            )
