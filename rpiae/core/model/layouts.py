"""Foreign weight layouts as tables of names, and renaming by a table in both directions.

Each part has a table, own name → foreign names, in which ``{n}`` is a block's number and ``{p}`` is
``weight`` and ``bias``; several foreign names are one tensor of ours, concatenated along its first
dimension (query, key and value, in this order).

Source: method.md section 6; the reference implementation of arXiv 2603.19206, transformers'
Dinov2Model, Dinov2WithRegistersModel, ViTMAEModel (and ViTModel), SiglipVisionModel.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from attrs import evolve, frozen
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.weights import and_more, check_finite

State = dict[str, Tensor]

#: Foreign names of what is more than a name, see ``adapters``.
FOREIGN_POSITIONS = "embeddings.position_embeddings"
FOREIGN_CLASS = "embeddings.cls_token"
FOREIGN_REGISTERS = "embeddings.register_tokens"


@frozen(kw_only=True)
class Layout:
    """A part's table.

    Attributes:
        what: the foreign layout in words, for messages.
        blocks: what stands before a block's number, foreign and own.
        names: own name → foreign names.
        ignored: foreign names that ours has no use for.
    """

    what: str
    blocks: tuple[str, str]
    names: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()


_ATTENTION = "encoder.layer.{n}.attention.attention"
ENCODER = Layout(
    what="a transformers DINOv2 encoder",
    blocks=("encoder.layer.", "network.blocks."),
    names={
        "network.cls_token": (FOREIGN_CLASS,),
        "network.pos_embed": (FOREIGN_POSITIONS,),
        "network.reg_token": (FOREIGN_REGISTERS,),
        "network.patch_embed.proj.{p}": ("embeddings.patch_embeddings.projection.{p}",),
        "network.blocks.{n}.norm1.{p}": ("encoder.layer.{n}.norm1.{p}",),
        "network.blocks.{n}.attn.qkv.{p}": tuple(
            f"{_ATTENTION}.{which}.{{p}}" for which in ("query", "key", "value")
        ),
        "network.blocks.{n}.attn.proj.{p}": ("encoder.layer.{n}.attention.output.dense.{p}",),
        "network.blocks.{n}.ls1.gamma": ("encoder.layer.{n}.layer_scale1.lambda1",),
        "network.blocks.{n}.norm2.{p}": ("encoder.layer.{n}.norm2.{p}",),
        "network.blocks.{n}.mlp.fc1.{p}": ("encoder.layer.{n}.mlp.fc1.{p}",),
        "network.blocks.{n}.mlp.fc2.{p}": ("encoder.layer.{n}.mlp.fc2.{p}",),
        "network.blocks.{n}.ls2.gamma": ("encoder.layer.{n}.layer_scale2.lambda1",),
    },
    ignored=("embeddings.mask_token", "layernorm.weight", "layernorm.bias"),
)

#: DINOv2's largest model has a gated MLP; timm packs it in the same way.
_GATED = {
    "network.blocks.{n}.mlp.fc1.{p}": ("encoder.layer.{n}.mlp.weights_in.{p}",),
    "network.blocks.{n}.mlp.fc2.{p}": ("encoder.layer.{n}.mlp.weights_out.{p}",),
}

_VIT = "encoder.layer.{n}"
VIT_ENCODER = Layout(
    what="a transformers ViT or ViT-MAE encoder",
    blocks=("encoder.layer.", "network.blocks."),
    names={
        "network.cls_token": (FOREIGN_CLASS,),
        "network.pos_embed": (FOREIGN_POSITIONS,),
        "network.patch_embed.proj.{p}": ("embeddings.patch_embeddings.projection.{p}",),
        "network.blocks.{n}.norm1.{p}": (f"{_VIT}.layernorm_before.{{p}}",),
        "network.blocks.{n}.attn.qkv.{p}": tuple(
            f"{_ATTENTION}.{which}.{{p}}" for which in ("query", "key", "value")
        ),
        "network.blocks.{n}.attn.proj.{p}": (f"{_VIT}.attention.output.dense.{{p}}",),
        "network.blocks.{n}.norm2.{p}": (f"{_VIT}.layernorm_after.{{p}}",),
        "network.blocks.{n}.mlp.fc1.{p}": (f"{_VIT}.intermediate.dense.{{p}}",),
        "network.blocks.{n}.mlp.fc2.{p}": (f"{_VIT}.output.dense.{{p}}",),
    },
    ignored=(
        "embeddings.mask_token", "layernorm.weight", "layernorm.bias", "pooler.dense.weight",
        "pooler.dense.bias",
    ),
)  # fmt: skip

_SIGLIP = "vision_model.encoder.layers.{n}"
SIGLIP_POSITIONS = "vision_model.embeddings.position_embedding.weight"
SIGLIP_ENCODER = Layout(
    what="a transformers SigLIP vision encoder",
    blocks=("vision_model.encoder.layers.", "network.blocks."),
    names={
        "network.pos_embed": (SIGLIP_POSITIONS,),
        "network.patch_embed.proj.{p}": ("vision_model.embeddings.patch_embedding.{p}",),
        "network.blocks.{n}.norm1.{p}": (f"{_SIGLIP}.layer_norm1.{{p}}",),
        "network.blocks.{n}.attn.qkv.{p}": tuple(
            f"{_SIGLIP}.self_attn.{which}_proj.{{p}}" for which in ("q", "k", "v")
        ),
        "network.blocks.{n}.attn.proj.{p}": (f"{_SIGLIP}.self_attn.out_proj.{{p}}",),
        "network.blocks.{n}.norm2.{p}": (f"{_SIGLIP}.layer_norm2.{{p}}",),
        "network.blocks.{n}.mlp.fc1.{p}": (f"{_SIGLIP}.mlp.fc1.{{p}}",),
        "network.blocks.{n}.mlp.fc2.{p}": (f"{_SIGLIP}.mlp.fc2.{{p}}",),
    },
    ignored=(
        "vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias",
        "vision_model.embeddings.position_ids",
    ),
)  # fmt: skip

DECODER = Layout(
    what="a decoder of the reference",
    blocks=("decoder_layers.", "blocks."),
    names={
        "cls_token": ("trainable_cls_token",),
        "positions": ("decoder_pos_embed",),
        "embed.{p}": ("decoder_embed.{p}",),
        "blocks.{n}.norm1.{p}": ("decoder_layers.{n}.layernorm_before.{p}",),
        "blocks.{n}.attn.qkv.{p}": tuple(
            f"decoder_layers.{{n}}.attention.attention.{which}.{{p}}"
            for which in ("query", "key", "value")
        ),
        "blocks.{n}.attn.proj.{p}": ("decoder_layers.{n}.attention.output.dense.{p}",),
        "blocks.{n}.norm2.{p}": ("decoder_layers.{n}.layernorm_after.{p}",),
        "blocks.{n}.mlp.fc1.{p}": ("decoder_layers.{n}.intermediate.dense.{p}",),
        "blocks.{n}.mlp.fc2.{p}": ("decoder_layers.{n}.output.dense.{p}",),
        "norm.{p}": ("decoder_norm.{p}",),
        "pred.{p}": ("decoder_pred.{p}",),
    },
)

_BRIDGE_LAYER = "vb_feature_decoder.net.{n}"
BRIDGE = Layout(
    what="a variational bridge of the reference",
    blocks=("vb_feature_decoder.net.", "decoder.blocks."),
    names={
        "encoder.norm1.{p}": ("vb_feature_encoder.norm1.{p}",),
        "encoder.attn.qkv.{p}": ("vb_feature_encoder.attn.in_proj_{p}",),
        "encoder.attn.proj.{p}": ("vb_feature_encoder.attn.out_proj.{p}",),
        "encoder.skip.{p}": ("vb_feature_encoder.skip_proj.{p}",),
        "encoder.norm2.{p}": ("vb_feature_encoder.norm2.{p}",),
        "encoder.mlp.fc1.{p}": ("vb_feature_encoder.proj2.0.{p}",),
        "encoder.mlp.fc2.{p}": ("vb_feature_encoder.proj2.3.{p}",),
        "encoder.moments.{p}": ("vb_feature_encoder.to_moments.{p}",),
        "decoder.in_proj.{p}": ("vb_feature_decoder.in_proj.{p}",),
        "decoder.blocks.{n}.norm1.{p}": (f"{_BRIDGE_LAYER}.norm1.{{p}}",),
        "decoder.blocks.{n}.attn.qkv.{p}": (f"{_BRIDGE_LAYER}.self_attn.in_proj_{{p}}",),
        "decoder.blocks.{n}.attn.proj.{p}": (f"{_BRIDGE_LAYER}.self_attn.out_proj.{{p}}",),
        "decoder.blocks.{n}.norm2.{p}": (f"{_BRIDGE_LAYER}.norm2.{{p}}",),
        "decoder.blocks.{n}.mlp.fc1.{p}": (f"{_BRIDGE_LAYER}.linear1.{{p}}",),
        "decoder.blocks.{n}.mlp.fc2.{p}": (f"{_BRIDGE_LAYER}.linear2.{{p}}",),
        "decoder.out_proj.{p}": ("vb_feature_decoder.out_proj.{p}",),
    },
)


def encoder_layout(*, registers: bool, gated: bool = False) -> Layout:
    """The table of a DINOv2 encoder, with or without register tokens, with a plain or a gated MLP."""
    names = {**ENCODER.names, **(_GATED if gated else {})}
    if not registers:
        del names["network.reg_token"]
    return evolve(ENCODER, names=names)


def renamed(layout: Layout, state: Mapping[str, Tensor]) -> State:
    """A foreign state under our names.

    Raises:
        CheckpointError: if a key is missing or unknown, or a tensor is not finite.
    """
    pairs = dict(_pairs(layout, _num_blocks(state, layout.blocks[0])))
    wanted = [name for names in pairs.values() for name in names]
    _check_none_missing(layout.what, wanted, state)
    check_none_unknown(layout.what, set(state) - set(wanted) - set(layout.ignored))
    for name in wanted:
        check_finite(layout.what, name, state[name])
    return {
        own: torch.cat([state[name] for name in names]) if len(names) > 1 else state[names[0]]
        for own, names in pairs.items()
    }


def restored(layout: Layout, state: Mapping[str, Tensor]) -> State:
    """A state of ours under the foreign names.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    pairs = dict(_pairs(layout, _num_blocks(state, layout.blocks[1])))
    what = f"our counterpart of {layout.what}"
    _check_none_missing(what, pairs, state)
    check_none_unknown(what, set(state) - set(pairs))
    return {
        name: piece
        for own, names in pairs.items()
        for name, piece in zip(names, state[own].chunk(len(names)), strict=True)
    }


def _pairs(layout: Layout, num_blocks: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    for own, foreign in layout.names.items():
        for n in range(num_blocks if "{n}" in own else 1):
            for p in ("weight", "bias") if "{p}" in own else ("",):
                yield own.format(n=n, p=p), tuple(name.format(n=n, p=p) for name in foreign)


def _num_blocks(state: Iterable[str], prefix: str) -> int:
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
    return max((int(m.group(1)) + 1 for name in state if (m := numbered.match(name))), default=0)


def _check_none_missing(what: str, wanted: Iterable[str], state: Collection[str]) -> None:
    missing = [name for name in wanted if name not in state]
    if missing:
        raise CheckpointError(f"{what}: {missing[0]} is missing{and_more(missing)}")


def check_none_unknown(what: str, unknown: Iterable[str]) -> None:
    """Refuse names that a layout does not have.

    Args:
        what: the layout in words.
        unknown: these names.

    Raises:
        CheckpointError: if there are any.
    """
    if names := sorted(unknown):
        raise CheckpointError(f"{what} has no {names[0]}{and_more(names)}")
