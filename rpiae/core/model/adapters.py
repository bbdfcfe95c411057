"""Foreign weight layouts as pure key maps: a state dict in, a state dict out.

Nothing here reads a file or builds a module. Each part has a table, own name → foreign names, in
which ``{n}`` is a block's number and ``{p}`` is ``weight`` and ``bias``; several foreign names are
one tensor of ours, concatenated along its first dimension (query, key and value, in this order).
A map and its inverse read the same table. Only positions and class tokens are more than a name:
where a source adds a position to its class token and ours does not, the map folds the position into
the token, and the inverse leaves zeros in its place.

Source: method.md section 6; the reference implementation of arXiv 2603.19206, transformers'
Dinov2Model, Dinov2WithRegistersModel, ViTMAEModel (and ViTModel), SiglipVisionModel.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from attrs import frozen
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.weights import and_more, check_finite

State = dict[str, Tensor]

_FOREIGN_POSITIONS = "embeddings.position_embeddings"
_FOREIGN_CLASS = "embeddings.cls_token"
_FOREIGN_REGISTERS = "embeddings.register_tokens"


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
        "network.cls_token": (_FOREIGN_CLASS,),
        "network.pos_embed": (_FOREIGN_POSITIONS,),
        "network.reg_token": (_FOREIGN_REGISTERS,),
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

_VIT = "encoder.layer.{n}"
VIT_ENCODER = Layout(
    what="a transformers ViT or ViT-MAE encoder",
    blocks=("encoder.layer.", "network.blocks."),
    names={
        "network.cls_token": (_FOREIGN_CLASS,),
        "network.pos_embed": (_FOREIGN_POSITIONS,),
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
_SIGLIP_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_SIGLIP_UNUSED = ("vision_model.head.", "text_model.", "logit_")
SIGLIP_ENCODER = Layout(
    what="a transformers SigLIP vision encoder",
    blocks=("vision_model.encoder.layers.", "network.blocks."),
    names={
        "network.pos_embed": (_SIGLIP_POSITIONS,),
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


def encoder_from_reference(state: Mapping[str, Tensor]) -> State:
    """Weights of transformers' Dinov2Model or Dinov2WithRegistersModel for ``TimmEncoder``.

    timm's models with registers keep no position for the class token, so it is folded into the
    token; those without registers keep it. The mask token and the affine final norm are dropped.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    own = _renamed(_encoder_layout(_FOREIGN_REGISTERS in state), state)
    if "network.reg_token" in own:
        own["network.cls_token"], own["network.pos_embed"] = _folded(
            own["network.cls_token"], own["network.pos_embed"]
        )
    return own


def encoder_to_reference(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``encoder_from_reference``, without the keys it drops.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    foreign = _restored(_encoder_layout("network.reg_token" in state), state)
    if _FOREIGN_REGISTERS in foreign:
        foreign[_FOREIGN_POSITIONS] = _with_empty_row(foreign[_FOREIGN_POSITIONS])
    return foreign


def vit_encoder_from_transformers(state: Mapping[str, Tensor]) -> State:
    """Weights of transformers' ViTMAEModel or ViTModel for ``TimmEncoder``.

    Names may stand under ``vit.``, as ViTMAEForPreTraining has them; what stands beside (its
    decoder, a classifier), the mask token and the affine final norm are dropped.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    return _renamed(VIT_ENCODER, _part(state, "vit.") or state)


def vit_encoder_to_transformers(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``vit_encoder_from_transformers``, with the names of ViTMAEModel.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    return _restored(VIT_ENCODER, state)


def siglip_encoder_from_transformers(state: Mapping[str, Tensor]) -> State:
    """Weights of transformers' SiglipVisionModel or SiglipModel for ``TimmEncoder``.

    The text tower, the pooling head and the affine final norm are dropped.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    used = {name: value for name, value in state.items() if not name.startswith(_SIGLIP_UNUSED)}
    own = _renamed(SIGLIP_ENCODER, used)
    return own | {"network.pos_embed": own["network.pos_embed"].unsqueeze(0)}


def siglip_encoder_to_transformers(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``siglip_encoder_from_transformers``, without the keys it drops.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    foreign = _restored(SIGLIP_ENCODER, state)
    return foreign | {_SIGLIP_POSITIONS: foreign[_SIGLIP_POSITIONS].squeeze(0)}


def from_transformers(state: Mapping[str, Tensor]) -> State | None:
    """Weights for ``TimmEncoder`` where the names are those of a transformers model known here.

    Raises:
        CheckpointError: if the layout is known and a key is missing or unknown.
    """
    if _SIGLIP_POSITIONS in state and "vision_model.embeddings.class_embedding" not in state:
        return siglip_encoder_from_transformers(state)
    vit = _part(state, "vit.") or state
    if "encoder.layer.0.layernorm_before.weight" in vit:
        return vit_encoder_from_transformers(vit)
    if "encoder.layer.0.layer_scale1.lambda1" in state:
        return encoder_from_reference(state)
    return None


def decoder_from_reference(state: Mapping[str, Tensor], *, grid: tuple[int, int]) -> State:
    """Weights of the reference's decoder for ``VitDecoder(stored_grid=grid)``.

    Args:
        state: its keys, all with or all without the prefix ``decoder.`` (RAE ships them without).
        grid: rows and columns of the stored position embedding.

    Raises:
        CheckpointError: if a key is missing or unknown, or the positions do not fill the grid.
    """
    if state and all(name.startswith("decoder.") for name in state):
        state = _part(state, "decoder.")
    own = _renamed(DECODER, state)
    token, positions = _folded(own["cls_token"], own["positions"])
    rows, columns = grid
    if positions.shape[1] != rows * columns:
        raise CheckpointError(
            f"{DECODER.what}: decoder_pos_embed holds {positions.shape[1]} positions (and the class "
            f"token's), which do not fill a grid of {rows}×{columns}"
        )
    return own | {
        "cls_token": token,
        "positions": positions.reshape(1, rows, columns, positions.shape[-1]),
    }


def decoder_to_reference(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``decoder_from_reference``, without the prefix ``decoder.``.

    Raises:
        CheckpointError: if a key is missing (as ``positions`` is where nothing is stored) or unknown.
    """
    foreign = _restored(DECODER, state)
    positions = foreign["decoder_pos_embed"].flatten(1, 2)
    return foreign | {"decoder_pos_embed": _with_empty_row(positions)}


def bridge_from_reference(state: Mapping[str, Tensor]) -> State:
    """``vb_feature_encoder.*`` and ``vb_feature_decoder.*`` for ``VariationalBridge``.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    return _renamed(BRIDGE, state)


def bridge_to_reference(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``bridge_from_reference``.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    return _restored(BRIDGE, state)


def tokenizer_from_reference(state: Mapping[str, Tensor], *, grid: tuple[int, int]) -> State:
    """A whole state of the reference, of any stage, for ``RPiAE``; its replica is dropped.

    A training checkpoint wraps two of them, ``model`` and ``ema``: pass the one that is wanted.
    Without bridge keys the result fits a bridge that has no parameters.

    Args:
        state: the reference's state dict.
        grid: rows and columns of the decoder's stored position embedding.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    roles = ("encoder.encoder.", "decoder.", "vb_feature_", "teacher_encoder.")
    _no_unknown("a checkpoint of the reference", (k for k in state if not k.startswith(roles)))
    bridge = {name: value for name, value in state.items() if name.startswith("vb_feature_")}
    return {
        **_prefixed("encoder.", encoder_from_reference(_part(state, "encoder.encoder."))),
        **_prefixed("bridge.", bridge_from_reference(bridge) if bridge else {}),
        **_prefixed("decoder.", decoder_from_reference(_part(state, "decoder."), grid=grid)),
    }


def tokenizer_to_reference(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``tokenizer_from_reference``, without a replica.

    Raises:
        CheckpointError: if a key is missing or unknown; the reference keeps feature statistics in a
            file of their own, so they are unknown here.
    """
    roles = ("encoder.", "bridge.", "decoder.")
    _no_unknown("an RPiAE state", (k for k in state if not k.startswith(roles)))
    bridge = _part(state, "bridge.")
    return {
        **_prefixed("encoder.encoder.", encoder_to_reference(_part(state, "encoder."))),
        **_prefixed("decoder.", decoder_to_reference(_part(state, "decoder."))),
        **(bridge_to_reference(bridge) if bridge else {}),
    }


def _encoder_layout(registers: bool) -> Layout:
    if registers:
        return ENCODER
    names = {own: foreign for own, foreign in ENCODER.names.items() if own != "network.reg_token"}
    return Layout(what=ENCODER.what, blocks=ENCODER.blocks, names=names, ignored=ENCODER.ignored)


def _renamed(layout: Layout, state: Mapping[str, Tensor]) -> State:
    pairs = dict(_pairs(layout, _num_blocks(state, layout.blocks[0])))
    wanted = [name for names in pairs.values() for name in names]
    _no_missing(layout.what, wanted, state)
    _no_unknown(layout.what, set(state) - set(wanted) - set(layout.ignored))
    for name in wanted:
        check_finite(layout.what, name, state[name])
    return {
        own: torch.cat([state[name] for name in names]) if len(names) > 1 else state[names[0]]
        for own, names in pairs.items()
    }


def _restored(layout: Layout, state: Mapping[str, Tensor]) -> State:
    pairs = dict(_pairs(layout, _num_blocks(state, layout.blocks[1])))
    what = f"our counterpart of {layout.what}"
    _no_missing(what, pairs, state)
    _no_unknown(what, set(state) - set(pairs))
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


def _no_missing(what: str, wanted: Iterable[str], state: Collection[str]) -> None:
    missing = [name for name in wanted if name not in state]
    if missing:
        raise CheckpointError(f"{what}: {missing[0]} is missing{and_more(missing)}")


def _no_unknown(what: str, names: Iterable[str]) -> None:
    unknown = sorted(names)
    if unknown:
        raise CheckpointError(f"{what} has no {unknown[0]}{and_more(unknown)}")


def _part(state: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def _folded(token: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The class token with its position added, and the positions (1, n, w) of the other tokens."""
    return token + positions[:, :1], positions[:, 1:]


def _with_empty_row(positions: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
