"""Foreign weights as ours: pure key maps, a state dict in, a state dict out.

Nothing here reads a file or builds a module. A map and its inverse read the same table of
``layouts``. Only positions and class tokens are more than a name: where a source adds a position to
its class token and ours does not, the map folds the position into the token, and the inverse leaves
zeros in its place.

Source: method.md section 6; the reference implementation of arXiv 2603.19206, transformers'
Dinov2Model, Dinov2WithRegistersModel, ViTMAEModel (and ViTModel), SiglipVisionModel.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.model.layouts import (
    BRIDGE,
    DECODER,
    FOREIGN_POSITIONS,
    FOREIGN_REGISTERS,
    SIGLIP_ENCODER,
    SIGLIP_POSITIONS,
    VIT_ENCODER,
    State,
    check_none_unknown,
    encoder_layout,
    renamed,
    restored,
)

_SIGLIP_UNUSED = ("vision_model.head.", "text_model.", "logit_")


def encoder_from_reference(state: Mapping[str, Tensor]) -> State:
    """Weights of transformers' Dinov2Model or Dinov2WithRegistersModel for ``TimmEncoder``.

    timm's models with registers keep no position for the class token, so it is folded into the
    token; those without registers keep it. The mask token and the affine final norm are dropped.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    gated = any(".mlp.weights_in." in name for name in state)
    own = renamed(encoder_layout(registers=FOREIGN_REGISTERS in state, gated=gated), state)
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
    layout = encoder_layout(registers="network.reg_token" in state, gated=_is_gated(state))
    foreign = restored(layout, state)
    if FOREIGN_REGISTERS in foreign:
        foreign[FOREIGN_POSITIONS] = _with_empty_row(foreign[FOREIGN_POSITIONS])
    return foreign


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether an encoder's MLPs multiply one half of their first layer's outputs by the other."""
    rows, columns = (state.get(f"network.blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return rows is not None and columns is not None and rows.shape[0] == 2 * columns.shape[1]


def vit_encoder_from_transformers(state: Mapping[str, Tensor]) -> State:
    """Weights of transformers' ViTMAEModel or ViTModel for ``TimmEncoder``.

    Names may stand under ``vit.``, as ViTMAEForPreTraining has them; what stands beside (its
    decoder, a classifier), the mask token and the affine final norm are dropped.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    return renamed(VIT_ENCODER, _below(state, "vit.") or state)


def vit_encoder_to_transformers(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``vit_encoder_from_transformers``, with the names of ViTMAEModel.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    return restored(VIT_ENCODER, state)


def siglip_encoder_from_transformers(state: Mapping[str, Tensor]) -> State:
    """Weights of transformers' SiglipVisionModel or SiglipModel for ``TimmEncoder``.

    The text tower, the pooling head and the affine final norm are dropped.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    used = {name: value for name, value in state.items() if not name.startswith(_SIGLIP_UNUSED)}
    own = renamed(SIGLIP_ENCODER, used)
    return own | {"network.pos_embed": own["network.pos_embed"].unsqueeze(0)}


def siglip_encoder_to_transformers(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``siglip_encoder_from_transformers``, without the keys it drops.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    foreign = restored(SIGLIP_ENCODER, state)
    return foreign | {SIGLIP_POSITIONS: foreign[SIGLIP_POSITIONS].squeeze(0)}


def from_transformers(state: Mapping[str, Tensor]) -> State | None:
    """Weights for ``TimmEncoder`` where the names are those of a transformers model known here.

    Raises:
        CheckpointError: if the layout is known and a key is missing or unknown.
    """
    if SIGLIP_POSITIONS in state and "vision_model.embeddings.class_embedding" not in state:
        return siglip_encoder_from_transformers(state)
    vit = _below(state, "vit.") or state
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
        state = _below(state, "decoder.")
    own = renamed(DECODER, state)
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
    foreign = restored(DECODER, state)
    positions = foreign["decoder_pos_embed"].flatten(1, 2)
    return foreign | {"decoder_pos_embed": _with_empty_row(positions)}


def bridge_from_reference(state: Mapping[str, Tensor]) -> State:
    """``vb_feature_encoder.*`` and ``vb_feature_decoder.*`` for ``VariationalBridge``.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    return renamed(BRIDGE, state)


def bridge_to_reference(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``bridge_from_reference``.

    Raises:
        CheckpointError: if a key is missing or unknown.
    """
    return restored(BRIDGE, state)


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
    check_none_unknown(
        "a checkpoint of the reference", (k for k in state if not k.startswith(roles))
    )
    bridge = {name: value for name, value in state.items() if name.startswith("vb_feature_")}
    return {
        **_prefixed("encoder.", encoder_from_reference(_below(state, "encoder.encoder."))),
        **_prefixed("bridge.", bridge_from_reference(bridge) if bridge else {}),
        **_prefixed("decoder.", decoder_from_reference(_below(state, "decoder."), grid=grid)),
    }


def tokenizer_to_reference(state: Mapping[str, Tensor]) -> State:
    """Inverse of ``tokenizer_from_reference``, without a replica.

    Raises:
        CheckpointError: if a key is missing or unknown; the reference keeps feature statistics in a
            file of their own, so they are unknown here.
    """
    roles = ("encoder.", "bridge.", "decoder.")
    check_none_unknown("an RPiAE state", (k for k in state if not k.startswith(roles)))
    bridge = _below(state, "bridge.")
    return {
        **_prefixed("encoder.encoder.", encoder_to_reference(_below(state, "encoder."))),
        **_prefixed("decoder.", decoder_to_reference(_below(state, "decoder."))),
        **(bridge_to_reference(bridge) if bridge else {}),
    }


def _below(state: Mapping[str, Tensor], prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _prefixed(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def _folded(token: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The class token with its position added, and the positions (1, n, w) of the other tokens."""
    return token + positions[:, :1], positions[:, 1:]


def _with_empty_row(positions: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
