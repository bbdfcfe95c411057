"""What of a tokenizer diffusers' AutoencoderRAE can be: its options and tensors, or why it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.blocks import sincos_positions
from rpiae.core.model.layouts import State, restored
from rpiae.core.model.tokenizer import NORM_EPS, RPiAE
from rpiae.decoders.vit import VitDecoder
from rpiae.encoders.timm import TimmEncoder
from rpiae.interop.diffusers.layout import (
    CLASS,
    ENCODERS,
    HEAD_WIDTH,
    IMAGE_MEAN,
    IMAGE_STD,
    LATENTS_MEAN,
    LATENTS_STD,
    PLAIN_SIDE,
    RAE_DECODER,
    EncoderType,
    RaeEncoder,
    RaeOptions,
    decoder_positions,
    std_of,
)

#: By how much positions may differ and be taken for the same: more than rounding.
_SAME_POSITIONS = 1e-6


@frozen(kw_only=True)
class RaeModel:
    """A tokenizer as an AutoencoderRAE.

    Attributes:
        options: its config.
        encoder, decoder: our states of the parts.
        mean, std: its statistics of latents.
    """

    options: RaeOptions
    encoder: State
    decoder: State
    mean: Tensor
    std: Tensor

    @property
    def kind(self) -> RaeEncoder:
        """Its encoder."""
        return ENCODERS[self.options.encoder_type]

    def config(self) -> dict[str, Any]:
        """What its config holds, by diffusers' names."""
        return {
            **attrs.asdict(self.options),
            "latents_mean": self.mean.tolist(),
            "latents_std": self.std.tolist(),
        }

    def state(self, *, short: bool) -> State:
        """Its tensors, under short or long names of transformers.

        What ours has not, and what makes no difference, is zero.
        """
        long = self.kind.there(self.encoder)
        like = next(iter(long.values()))
        filled = self.kind.filled(self.options.encoder_hidden_size)
        long |= {name: like.new_zeros(shape) for name, shape in filled.items()}
        names = self.kind.names(long, short=short)
        tensors = {
            IMAGE_MEAN: torch.tensor(self.options.encoder_norm_mean).reshape(1, 3, 1, 1),
            IMAGE_STD: torch.tensor(self.options.encoder_norm_std).reshape(1, 3, 1, 1),
            LATENTS_MEAN: self.mean,
            LATENTS_STD: self.std,
            **{f"encoder.{names[name]}": value for name, value in long.items()},
            **{f"decoder.{n}": v for n, v in restored(RAE_DECODER, self.decoder).items()},
        }
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def as_autoencoder_rae(model: RPiAE, *, size: int | None = None) -> RaeModel:
    """A tokenizer without a bridge as an AutoencoderRAE.

    Args:
        model: the tokenizer.
        size: side in pixels of the images that it is for; that of the training crops where not given.

    Raises:
        UsageError: if it cannot be one, with every reason.
    """
    encoder, decoder = model.encoder, model.decoder
    patch = decoder.patch[1]
    side, problems = _side(model, size)
    if isinstance(encoder, TimmEncoder):
        problems += _encoder_problems(encoder)
    else:
        known = ", ".join(kind.what for kind in ENCODERS.values())
        problems.append(f"its encoder is a {type(encoder).__name__}, and there are {known} of timm")
    if isinstance(decoder, VitDecoder):
        problems += _decoder_problems(decoder, side)
    else:
        problems.append(f"its decoder is a {type(decoder).__name__}, and there is the ViT alone")
    problems += _norm_problems(model, side)
    if problems:
        raise UsageError(f"this tokenizer cannot become an {CLASS}: " + " · ".join(problems))
    assert isinstance(encoder, TimmEncoder)
    assert isinstance(decoder, VitDecoder)
    mean, std = _statistics(model)
    own = decoder.state_dict()
    own.pop("positions", None)
    return RaeModel(
        options=RaeOptions(
            encoder_type=_type_of(encoder), encoder_hidden_size=encoder.width,
            encoder_patch_size=encoder.patch[1], encoder_num_hidden_layers=encoder.num_blocks,
            encoder_input_size=side * encoder.patch[1], image_size=side * patch, patch_size=patch,
            encoder_norm_mean=encoder.mean, encoder_norm_std=encoder.std,
            decoder_hidden_size=decoder.width, decoder_num_hidden_layers=len(decoder.blocks),
            decoder_num_attention_heads=_block(decoder).attn.num_heads,
            decoder_intermediate_size=_block(decoder).mlp.fc1.out_features,
        ),
        encoder=encoder.state_dict(), decoder=own, mean=mean, std=std,
    )  # fmt: skip


def _side(model: RPiAE, size: int | None) -> tuple[int, list[str]]:
    """Tokens per side of the images that it is for, and what is wrong with their size."""
    _, rows, columns = model.decoder.patch
    if rows != columns or model.decoder.patch[0] != 1:
        return 0, [
            f"its output patch is {model.decoder.patch}, and there are square ones of images"
        ]
    facts = model.config.encoder_facts.image_size if model.config else 0
    pixels = size or model.trained_size or facts
    if not pixels or pixels % rows:
        return 0, [
            f"it takes images of one size, and {pixels or 'none'} is no multiple of the output patch, "
            f"{rows} pixels: say another one with size"
        ]
    return pixels // rows, []


def _type_of(encoder: TimmEncoder) -> EncoderType:
    """Which of its encoders this one may be, by the tokens before those of patches."""
    state = encoder.state_dict()
    if "network.reg_token" in state:
        return "dinov2"
    return "mae" if "network.cls_token" in state else "siglip2"


def _encoder_problems(encoder: TimmEncoder) -> Iterator[str]:
    kind, state = ENCODERS[_type_of(encoder)], encoder.state_dict()
    if encoder.layers != (encoder.num_blocks - 1,) or encoder.add_final_mean:
        yield "its features are of several blocks, and there they are those of the last one"
    try:
        kind.there(state)
    except CheckpointError as error:
        yield f"its encoder is not built as {kind.what}, which is the nearest ({error})"
        return
    block: Any = encoder.network.blocks[0]
    table = encoder.network.patch_embed.grid_size
    along = kind.pixels // encoder.patch[1]
    norms = {norm.eps for norm in encoder.network.modules() if isinstance(norm, nn.LayerNorm)}
    values = torch.linspace(-3, 3, 7)
    gelu = F.gelu(values, approximate=kind.approximate)
    facts = (
        ("channels per attention head", encoder.width / block.attn.num_heads, HEAD_WIDTH),
        ("hidden channels of its MLPs", block.mlp.fc1.out_features, kind.mlp(encoder.width)),
        ("tokens before those of patches", encoder.prefix_tokens, kind.prefix_tokens),
        ("rows and columns of stored positions", tuple(table), (along, along)),
        ("the epsilon of its norms", sorted(norms), [kind.eps]),
        ("resampling of positions with antialiasing", encoder.antialias, kind.antialias),
        (f"GELU with approximation {kind.approximate!r}",
         torch.allclose(block.mlp.act(values), gelu, rtol=0, atol=1e-6), True),
    )  # fmt: skip
    for what, ours, theirs in facts:
        if ours != theirs:
            yield f"{what}: {_shown(ours)} here, and {_shown(theirs)} in its {kind.what}"


def _decoder_problems(decoder: VitDecoder, side: int) -> Iterator[str]:
    if not side:
        return
    theirs = decoder_positions(side, decoder.width).reshape(side, side, -1)
    stored = decoder.state_dict().get("positions")
    ours = sincos_positions(side, side, decoder.width).reshape(theirs.shape)
    if stored is not None:
        ours = stored[0].float().cpu()
    if ours.shape != theirs.shape:
        yield (
            f"its decoder's positions are stored for a grid of {ours.shape[0]}×{ours.shape[1]}, and "
            f"images of {side * decoder.patch[1]} pixels have {side}×{side}"
        )
        return
    rounding = 0.0 if stored is None else torch.finfo(stored.dtype).eps
    difference = (ours - theirs).abs().max().item()
    if difference > _SAME_POSITIONS + rounding:
        trained = "trained or stored" if stored is not None else "sin-cos of the grid itself"
        yield (
            f"its decoder's positions, {trained}, differ by up to {difference:.3g} from those there, "
            f"which are sin-cos of {PLAIN_SIDE}×{PLAIN_SIDE} stretched to {side}×{side}"
        )


def _norm_problems(model: RPiAE, side: int) -> Iterator[str]:
    if model.feature_mean is None or not side:
        return
    grid = tuple(model.feature_mean.shape[-2:])
    if grid not in ((1, 1), (side, side)):
        yield f"its feature_norm is of a grid of {grid[0]}×{grid[1]}, and the images have {side}×{side}"


def _statistics(model: RPiAE) -> tuple[Tensor, Tensor]:
    """Mean and std of latents with which it gives ours; its own epsilon is taken off."""
    if model.feature_mean is None or model.feature_var is None:
        return torch.zeros(1), std_of(torch.ones(1))
    return model.feature_mean.float(), std_of((model.feature_var.float() + NORM_EPS).sqrt())


def _block(decoder: VitDecoder) -> Any:
    return decoder.blocks[0]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
