"""diffusers' AutoencoderRAE as facts: its options, its encoders and what it calls their tensors.

Its encoders are built by transformers from three numbers, so everything else about them is fixed here.
What their tensors are called follows the transformers that is installed beside it: newer ones have
shorter names.

Source: diffusers 0.37 to 0.42, transformers 4.48 to 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from attrs import evolve, frozen
from jaxtyping import Float
from torch import Tensor

from rpiae.core.config.fields import within
from rpiae.core.model.adapters import (
    encoder_from_reference,
    encoder_to_reference,
    siglip_encoder_from_transformers,
    siglip_encoder_to_transformers,
    vit_encoder_from_transformers,
    vit_encoder_to_transformers,
)
from rpiae.core.model.blocks import sincos_at
from rpiae.core.model.layouts import DECODER, Layout, State
from rpiae.interop.reference.names import SHORTER_ATTENTION, SHORTER_VIT_MLP

CLASS = "AutoencoderRAE"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

#: Channels per attention head of every encoder.
HEAD_WIDTH = 64

#: Tokens per side with which its decoder has the positions of the reference.
PLAIN_SIDE = 16

#: What it adds to the standard deviation of latents.
STD_EPS = 1e-5

#: Input statistics where its config has none.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Its buffers.
IMAGE_MEAN, IMAGE_STD = "encoder_mean", "encoder_std"
LATENTS_MEAN, LATENTS_STD = "_latents_mean", "_latents_std"

EncoderType = Literal["dinov2", "siglip2", "mae"]


@frozen(kw_only=True)
class RaeOptions:
    """Its config, without statistics of latents, which are tensors too; the names are its own.

    Attributes:
        encoder_type, encoder_hidden_size, encoder_patch_size, encoder_num_hidden_layers: its encoder.
        decoder_hidden_size, decoder_num_hidden_layers, decoder_num_attention_heads,
            decoder_intermediate_size: its decoder.
        patch_size: output pixels per token and side.
        encoder_input_size: side of what the encoder sees, in pixels.
        image_size: side of what is decoded; follows from the others.
        num_channels: of images.
        encoder_norm_mean, encoder_norm_std: input statistics, which are tensors too.
        noise_tau, use_encoder_loss: of its training.
        reshape_to_2d: whether latents are maps rather than tokens.
        scaling_factor: what normalised latents are multiplied by.
    """

    encoder_type: EncoderType = "dinov2"
    encoder_hidden_size: int = within(HEAD_WIDTH, 65_536, default=768)
    encoder_patch_size: int = within(1, 4_096, default=14)
    encoder_num_hidden_layers: int = within(1, 1_000, default=12)
    decoder_hidden_size: int = within(4, 32_768, default=512)
    decoder_num_hidden_layers: int = within(1, 512, default=8)
    decoder_num_attention_heads: int = within(1, 1_024, default=16)
    decoder_intermediate_size: int = within(1, 131_072, default=2_048)
    patch_size: int = within(1, 4_096, default=16)
    encoder_input_size: int = within(1, 65_536, default=224)
    image_size: int = 0
    num_channels: int = within(3, 3, default=3)
    encoder_norm_mean: tuple[float, ...] = IMAGENET_MEAN
    encoder_norm_std: tuple[float, ...] = IMAGENET_STD
    noise_tau: float = within(0, 1_000, default=0.0)
    reshape_to_2d: bool = True
    use_encoder_loss: bool = False
    scaling_factor: float = 1.0

    @property
    def encoder_num_heads(self) -> int:
        """Attention heads of its encoder."""
        return self.encoder_hidden_size // HEAD_WIDTH

    @property
    def side(self) -> int:
        """Tokens per side."""
        return self.encoder_input_size // self.encoder_patch_size

    def problems(self) -> list[str]:
        """What contradicts itself."""
        found = []
        if self.encoder_hidden_size % HEAD_WIDTH:
            found.append(
                f"encoder_hidden_size: {self.encoder_hidden_size} is no multiple of {HEAD_WIDTH}"
            )
        if self.encoder_input_size % self.encoder_patch_size:
            found.append(
                f"encoder_input_size: {self.encoder_input_size} is no multiple of encoder_patch_size, "
                f"{self.encoder_patch_size}"
            )
        if self.image_size not in (0, self.side * self.patch_size):
            found.append(
                f"image_size: {self.image_size} pixels are not {self.side} tokens of {self.patch_size}"
            )
        if self.scaling_factor <= 0:
            found.append(f"scaling_factor: must be positive, got {self.scaling_factor}")
        return found


@frozen(kw_only=True)
class RaeEncoder:
    """One of its encoders.

    Attributes:
        what: it in words.
        model: timm's model of the same architecture, other sizes apart.
        transformer: the beginning of its classes' names in transformers.
        pixels: side of the images that its positions are of.
        mlp: hidden width of its MLPs at a width.
        eps: of its norms.
        prefix_tokens: before those of patches.
        approximate: torch's name of its GELU.
        antialias: whether its positions are resampled so.
        here, there: its weights under transformers' long names as ours, and back.
        shorter: parts of long names, and what newer versions of transformers have for them.
        unused: beginnings of names that ours has no use for.
        filled: shapes of what it has beside, by name, at a width; it makes no difference.
    """

    what: str
    model: str
    transformer: str
    pixels: int
    mlp: Callable[[int], int]
    eps: float
    prefix_tokens: int
    approximate: str = "none"
    antialias: bool = False
    here: Callable[[Mapping[str, Tensor]], State]
    there: Callable[[Mapping[str, Tensor]], State]
    shorter: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]
    filled: Callable[[int], Mapping[str, tuple[int, ...]]] = lambda _: {}

    def is_short(self, names: Iterable[str]) -> bool:
        """Whether the names of a file are the shorter ones."""
        return not any(self.shorter[0][0] in name for name in names)

    def names(self, long: Iterable[str], *, short: bool) -> dict[str, str]:
        """The long names → those of a file."""
        found = {name: name for name in long}
        for old, new in self.shorter if short else ():
            found = {name: given.replace(old, new) for name, given in found.items()}
        return found

    def mlp_ratio(self, width: int) -> float:
        """What timm multiplies a width with and rounds down."""
        hidden = self.mlp(width)
        ratio = hidden / width
        return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _pooling_head(width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of what SigLIP pools with."""
    head, hidden = "vision_model.head", 3_072
    return {
        f"{head}.probe": (1, 1, width),
        f"{head}.attention.in_proj_weight": (3 * width, width),
        f"{head}.attention.in_proj_bias": (3 * width,),
        f"{head}.attention.out_proj.weight": (width, width),
        f"{head}.attention.out_proj.bias": (width,),
        f"{head}.layernorm.weight": (width,),
        f"{head}.layernorm.bias": (width,),
        f"{head}.mlp.fc1.weight": (hidden, width),
        f"{head}.mlp.fc1.bias": (hidden,),
        f"{head}.mlp.fc2.weight": (width, hidden),
        f"{head}.mlp.fc2.bias": (width,),
    }


ENCODERS: Mapping[EncoderType, RaeEncoder] = {
    "dinov2": RaeEncoder(
        what="DINOv2 with registers", model="vit_small_patch14_reg4_dinov2", transformer="Dinov2WithRegisters",
        pixels=518, mlp=lambda width: 4 * width, eps=1e-6,
        prefix_tokens=5, antialias=True, here=encoder_from_reference, there=encoder_to_reference,
        shorter=SHORTER_ATTENTION, unused=("embeddings.mask_token", "layernorm."),
        filled=lambda width: {"embeddings.mask_token": (1, width)},
    ),
    "siglip2": RaeEncoder(
        what="SigLIP 2", model="vit_base_patch16_siglip_224", transformer="SiglipVision",
        pixels=256, mlp=lambda _: 3_072, eps=1e-6,
        prefix_tokens=0, approximate="tanh", here=siglip_encoder_from_transformers,
        there=siglip_encoder_to_transformers, shorter=(("vision_model.", ""),),
        unused=(
            "vision_model.head.", "vision_model.post_layernorm.", "head.", "post_layernorm.",
            "vision_model.embeddings.position_ids", "embeddings.position_ids",
        ),
        filled=_pooling_head,
    ),
    "mae": RaeEncoder(
        what="MAE", model="vit_base_patch16_224", transformer="ViTMAE",
        pixels=224, mlp=lambda _: 3_072, eps=1e-12, prefix_tokens=1,
        here=vit_encoder_from_transformers, there=vit_encoder_to_transformers,
        shorter=(
            *SHORTER_ATTENTION, *SHORTER_VIT_MLP, ("encoder.layer.", "layers."),
        ),
        unused=("layernorm.",),
    ),
}  # fmt: skip


def _decoder_layout() -> Layout:
    """Its decoder is the reference's, with diffusers' attention and without stored positions."""
    theirs = {
        "attention.attention.query": "attention.to_q", "attention.attention.key": "attention.to_k",
        "attention.attention.value": "attention.to_v", "attention.output.dense": "attention.to_out.0",
    }  # fmt: skip

    def named(name: str) -> str:
        for old, new in theirs.items():
            name = name.replace(old, new)
        return name

    names = {
        own: tuple(map(named, foreign))
        for own, foreign in DECODER.names.items()
        if own != "positions"
    }
    return evolve(
        DECODER, what=f"a decoder of {CLASS}", names=names, ignored=("decoder_pos_embed",)
    )


RAE_DECODER = _decoder_layout()


def decoder_positions(side: int, width: int) -> Float[Tensor, "n width"]:
    """Those of its decoder: sin-cos, of a grid of 16×16 that is stretched to the one at hand."""
    along = torch.arange(side, dtype=torch.float32) / (side / PLAIN_SIDE)
    return sincos_at(along, along, width)


def denominator(latents_std: Tensor) -> Tensor:
    """What it divides centred latents by, as it computes it."""
    return latents_std + STD_EPS


def std_of(wanted: Tensor) -> Tensor:
    """Standard deviations whose ``denominator`` is the given one, in fp32."""
    eps = torch.tensor(STD_EPS, dtype=torch.float32, device=wanted.device)
    return (wanted.double() - eps.double()).float()
