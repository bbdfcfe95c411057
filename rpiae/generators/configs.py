"""Configs of the built-in generators (torch-free)."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import frozen

from rpiae.core.config.fields import at_least, within
from rpiae.core.config.parts import GeneratorConfig


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
        rms_norm: RMSNorm with weights; else LayerNorm without.
        swiglu: SwiGLU; else GELU (tanh).
        rope: axial rotary positions of queries and keys.
        positions: what is added to the tokens: sin-cos positions that stay as they are (``fixed``),
            that are ``trained`` from there, as the released code does, or ``none``.
        shifts: whether the modulation shifts as well as scales.
        frequencies: Gaussian frequencies of the time embedding.
        train_frequencies: whether they are trained, as the released code does.
        head_width, head_depth, head_heads: of a wide head behind the blocks, which reads the noised
            latents again (DDT); no head where ``head_depth`` is 0.
        init: of linear layers: ``xavier``, or torch's own.

    Source: LightningDiT, arXiv 2501.01423, as released with arXiv 2603.19206; the head: RAE, arXiv
    2510.11690.
    """

    module: ClassVar[str] = "rpiae.generators.dit:Dit"
    width: int = at_least(1, default=384)
    depth: int = at_least(1, default=12)
    num_heads: int = at_least(1, default=6)
    mlp_ratio: float = at_least(0.1, default=4.0)
    patch: int = within(1, 64, default=1)
    qk_norm: bool = True
    rms_norm: bool = True
    swiglu: bool = True
    rope: bool = True
    positions: Literal["fixed", "trained", "none"] = "trained"
    shifts: bool = True
    frequencies: int = at_least(1, default=256)
    train_frequencies: bool = True
    head_width: int = at_least(1, default=2048)
    head_depth: int = at_least(0, default=0)
    head_heads: int = at_least(1, default=16)
    init: Literal["xavier", "default"] = "xavier"
