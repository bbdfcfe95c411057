"""Classes of encoders in transformers, and what is published of each.

Each runs with timm's architecture of the same rules: how positions are resampled, whether there is a class
token, which GELU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import evolve, field, frozen
from torch import Tensor

from rpiae.core.model.adapters import (
    encoder_from_reference,
    encoder_to_reference,
    siglip_encoder_from_transformers,
    siglip_encoder_to_transformers,
    vit_encoder_from_transformers,
    vit_encoder_to_transformers,
)
from rpiae.core.model.layouts import SIGLIP_ENCODER, VIT_ENCODER, Layout, State, encoder_layout
from rpiae.interop.reference.facts import Triple

IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@frozen(kw_only=True)
class Kind:
    """A class of encoders in transformers, and what is published of it.

    Attributes:
        what: the class in words.
        architecture, processor: its class there, and that of its input.
        model_types: in its ``config.json``.
        classes: of the reference, that wrap it.
        path_argument: what they call the folder that they load it from.
        layout: its names, without what stands before all of them.
        model: timm's architecture of the same rules.
        model_args: what of that architecture is replaced.
        here, there: key maps.
        positions: dimension that counts positions.
        class_tokens: positions that are not of patches.
        eps, activation, statistics: as its class was published.
        heads: (width, blocks) → attention heads of the published sizes.
        unused: names that patch tokens do not need, and beginnings of such.
        final_norm: beginning of the final norm's names.
        has_ratio: whether ``config.json`` has the MLP's width as ``mlp_ratio``, not ``intermediate_size``.
    """

    what: str
    architecture: str
    processor: str
    model_types: tuple[str, ...]
    classes: tuple[str, ...]
    path_argument: str
    layout: Layout
    model: str
    here: Callable[[Mapping[str, Tensor]], State]
    there: Callable[[Mapping[str, Tensor]], State]
    heads: Mapping[tuple[int, int], int]
    model_args: Mapping[str, Any] = field(factory=dict)
    positions: int = 1
    class_tokens: int = 1
    eps: float = 1e-6
    activation: str = "gelu"
    statistics: tuple[Triple, Triple] = IMAGENET
    unused: tuple[str, ...] = ("embeddings.mask_token",)
    final_norm: str = "layernorm."
    has_ratio: bool = False


_DINO_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1536, 40): 24}

REGISTERS = Kind(
    what="a DINOv2 encoder with registers",
    architecture="Dinov2WithRegistersModel",
    processor="BitImageProcessor",
    has_ratio=True,
    model_types=("dinov2_with_registers",),
    classes=("Dinov2withNorm",),
    path_argument="dinov2_path",
    layout=encoder_layout(registers=True),
    model="vit_small_patch14_reg4_dinov2",
    here=encoder_from_reference,
    there=encoder_to_reference,
    heads=_DINO_HEADS,
)

#: timm's own DINOv2 without registers resamples positions as the original code does, not as transformers.
PLAIN = Kind(
    what="a DINOv2 encoder without registers",
    architecture="Dinov2Model",
    processor="BitImageProcessor",
    has_ratio=True,
    model_types=("dinov2",),
    classes=("Dinov2withNorm",),
    path_argument="dinov2_path",
    layout=encoder_layout(registers=False),
    model="vit_small_patch16_224",
    model_args={"init_values": 1e-5},
    here=encoder_from_reference,
    there=encoder_to_reference,
    heads=_DINO_HEADS,
)

VIT_MAE = Kind(
    what="a ViT-MAE encoder",
    architecture="ViTMAEModel",
    processor="ViTImageProcessor",
    model_types=("vit_mae", "vit"),
    classes=("MAEwNorm",),
    path_argument="model_name",
    layout=VIT_ENCODER,
    model="vit_base_patch16_224",
    here=vit_encoder_from_transformers,
    there=vit_encoder_to_transformers,
    heads={(768, 12): 12, (1024, 24): 16, (1280, 32): 16},
    eps=1e-12,
    unused=("embeddings.mask_token", "pooler."),
)

_TOWER = "vision_model."


def _siglip_here(state: Mapping[str, Tensor]) -> State:
    return siglip_encoder_from_transformers({_TOWER + n: t for n, t in state.items()})


def _siglip_there(state: Mapping[str, Tensor]) -> State:
    foreign = siglip_encoder_to_transformers(state)
    return {name.removeprefix(_TOWER): tensor for name, tensor in foreign.items()}


SIGLIP = Kind(
    what="a SigLIP vision encoder",
    architecture="SiglipVisionModel",
    processor="SiglipImageProcessor",
    model_types=("siglip", "siglip_vision_model"),
    classes=("SigLIP2wNorm", "SigLIPwNorm"),
    path_argument="model_name",
    layout=evolve(
        SIGLIP_ENCODER,
        blocks=(SIGLIP_ENCODER.blocks[0].removeprefix(_TOWER), SIGLIP_ENCODER.blocks[1]),
        names={
            own: tuple(name.removeprefix(_TOWER) for name in names)
            for own, names in SIGLIP_ENCODER.names.items()
        },
    ),
    model="vit_base_patch16_siglip_224",
    here=_siglip_here,
    there=_siglip_there,
    heads={(768, 12): 12, (1024, 24): 16, (1152, 27): 16},
    positions=0,
    class_tokens=0,
    activation="gelu_pytorch_tanh",
    statistics=HALVES,
    unused=("embeddings.position_ids", "head."),
    final_norm="post_layernorm.",
)

KINDS = (REGISTERS, PLAIN, VIT_MAE, SIGLIP)
