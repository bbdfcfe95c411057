"""Decoder and bridge of the reference: sizes and configs, read off the shapes of their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from attrs import evolve, frozen
from torch import Tensor

from rpiae.bridges.configs import IdentityBridgeConfig, VariationalBridgeConfig
from rpiae.core.config.parts import BridgeConfig
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.adapters import (
    bridge_from_reference,
    bridge_to_reference,
    decoder_from_reference,
    decoder_to_reference,
)
from rpiae.core.model.layouts import BRIDGE, DECODER, State
from rpiae.core.runtime.names import shown
from rpiae.core.runtime.weights import Shapes, shapes
from rpiae.decoders.configs import VitDecoderConfig
from rpiae.interop.reference.facts import Facts, Table
from rpiae.interop.reference.kinds import KINDS
from rpiae.interop.reference.shapes import PartShapes, Place, below, ratio
from rpiae.interop.reference.transformers import ForeignEncoder

T = TypeVar("T")

_BRIDGE_ROLES = ("vb_feature_encoder.", "vb_feature_decoder.")

#: (width, layers, MLP) → attention heads of the published decoders B, L and XL.
_DECODER_HEADS = {
    (768, 12, 3072): 12, (1024, 24, 4096): 16, (1152, 28, 4096): 16,
}  # fmt: skip

#: What decoders of the reference are, and ours too.
_DECODER_EPS, _DECODER_ACTIVATION = 1e-12, "gelu"


@frozen(kw_only=True)
class DecoderSizes:
    """Sizes of a decoder's tensors.

    Attributes:
        features: channels D of the features.
        width, depth, hidden: of the transformer.
        patch: pixels of an image per token and side.
        side: rows, and columns, of the stored positions.
    """

    features: int
    width: int
    depth: int
    hidden: int
    patch: int
    side: int

    @property
    def image_size(self) -> int:
        """Side of the images that it was trained on, in pixels."""
        return self.patch * self.side

    def config(self, heads: int) -> VitDecoderConfig:
        """The config of ``vit``."""
        return VitDecoderConfig(
            name="vit", width=self.width, depth=self.depth, num_heads=heads,
            mlp_hidden=self.hidden, features=self.features, patch=self.patch,
            stored_grid=(self.side, self.side),
        )  # fmt: skip

    def fits(self, table: Table) -> bool:
        """Whether a table is the config of this decoder."""
        return (
            table.get("decoder_hidden_size") == self.width
            and table.get("decoder_num_hidden_layers") == self.depth
            and table.get("decoder_intermediate_size") == self.hidden
        )

    def heads(self, facts: Facts) -> int:
        """Attention heads, which are asked for where nobody says them; 1 until then.

        Raises:
            UsageError: if a config file says what decoders of the reference, and ours, are not.
        """
        for key, ours in (("layer_norm_eps", _DECODER_EPS), ("hidden_act", _DECODER_ACTIVATION)):
            said = facts.said(self.fits, key)
            if said is not None and said[0] != ours:
                raise UsageError(
                    f"{said[1]} says {key} = {shown(said[0])} of the decoder, which is {ours} here and "
                    "in the reference"
                )
        return facts.heads(
            f"the decoder (width {self.width}, {self.depth} layers)",
            self.width,
            told=facts.told.decoder_heads,
            said=facts.said(self.fits, "decoder_num_attention_heads"),
            known=_DECODER_HEADS.get((self.width, self.depth, self.hidden)),
            known_of="the published decoder of this size",
            option="--decoder-heads N, Python: decoder_heads",
        )

    def shapes(self) -> Shapes:
        """Shapes of the tensors that such a decoder has, by the reference's names."""
        with torch.device("meta"):
            decoder = self.config(heads=1).build()
        return shapes(decoder_to_reference(decoder.state_dict()))

    def own(self, state: Mapping[str, Tensor]) -> State:
        """Weights for ``VitDecoder``, from a state that has them under ``decoder.``.

        Raises:
            CheckpointError: if one of them is missing or not finite.
        """
        own = {name: value for name, value in state.items() if name.startswith("decoder.")}
        return decoder_from_reference(own, grid=(self.side, self.side))

    def contradictions(self, table: Table) -> Iterator[str]:
        """What the reference's parameters say against the tensors."""
        patch = table.get("decoder_patch_size", self.patch)
        if patch != self.patch:
            yield f"decoder_patch_size is {shown(patch)}, and the tensors have {self.patch}"


def decoder_sizes(there: Shapes, source: str) -> DecoderSizes:
    """Sizes of the decoder under ``decoder.``.

    Args:
        there: shapes of a file's tensors.
        source: the file, for messages.

    Raises:
        CheckpointError: if a tensor that tells one is missing, or does not make sense.
    """
    part = PartShapes(
        source=source, layout=DECODER, prefix="decoder.", shapes=below(there, "decoder.")
    )
    values = part.size(Place("pred.weight", 0), Place("pred.bias", 0))
    patch = math.isqrt(values // 3)
    if 3 * patch * patch != values:
        raise CheckpointError(
            f"{source}: {part.named('pred.weight')} gives {values} values per token, which are no square "
            "patch of three colours"
        )
    return DecoderSizes(
        features=part.size(Place("embed.weight", 1)),
        width=part.size(
            Place("norm.weight", 0), Place("cls_token", 2), Place("positions", 2),
            Place("blocks.{n}.norm1.weight", 0), Place("blocks.{n}.norm2.weight", 0),
        ),
        depth=part.depth(),
        hidden=_hidden(part, "blocks.{n}.mlp"),
        patch=patch,
        side=part.side(Place("positions", 1), beside=1),
    )  # fmt: skip


def bridge_config(there: Shapes, source: str, width: int) -> BridgeConfig:
    """The config of the bridge of a file: ``variational``, or ``identity`` where it has none.

    Args:
        there: shapes of its tensors.
        source: the file, for messages.
        width: channels of the features.

    Raises:
        CheckpointError: if a tensor that tells a size is missing.
    """
    if not any(name.startswith(_BRIDGE_ROLES) for name in there):
        return IdentityBridgeConfig(name="identity")
    part = PartShapes(source=source, layout=BRIDGE, prefix="", shapes=there)
    channels = part.size(
        Place("decoder.in_proj.weight", 1), Place("encoder.moments.weight", 0, 2),
        Place("encoder.moments.bias", 0, 2),
    )  # fmt: skip
    config = VariationalBridgeConfig(
        name="variational", latent_channels=channels, decoder_layers=part.depth(),
        encoder_mlp_ratio=ratio(_hidden(part, "encoder.mlp"), width),
    )  # fmt: skip
    if not config.decoder_layers:
        return config
    return evolve(config, decoder_mlp_ratio=ratio(_hidden(part, "decoder.blocks.{n}.mlp"), width))


def _hidden(part: PartShapes, mlp: str) -> int:
    """Width of an MLP's hidden layer."""
    return part.size(
        Place(f"{mlp}.fc1.weight", 0), Place(f"{mlp}.fc1.bias", 0), Place(f"{mlp}.fc2.weight", 1)
    )


def contradictions(
    table: Table, encoder: ForeignEncoder, decoder: DecoderSizes, bridge: BridgeConfig
) -> Iterator[str]:
    """What the reference's parameters say against the tensors of a whole tokenizer."""
    yield from decoder.contradictions(table)
    size, wanted = table.get("encoder_input_size"), decoder.side * encoder.patch
    if size is not None and size != wanted:
        yield (
            f"encoder_input_size is {shown(size)}, and {decoder.side} patches of {encoder.patch} "
            f"pixels are {wanted}"
        )
    classes = {name for kind in KINDS for name in kind.classes}
    named = str(table.get("encoder_cls"))
    if named in classes and named not in encoder.kind.classes:
        yield f"encoder_cls is {shown(named)}, and the tensors are {encoder.kind.what}"
    channels = getattr(bridge, "latent_channels", None)
    said = table.get("vb_latent_dim", channels)
    if said != channels and channels is not None:
        yield f"vb_latent_dim is {shown(said)}, and the tensors have {channels}"
    parameters = table.get("encoder_params")
    if isinstance(parameters, dict) and parameters.get("normalize") is False:
        yield "its encoder does not normalise its features (normalize), as encoders here do"


def bridge_shapes(config: BridgeConfig, width: int) -> Shapes:
    """Shapes of the tensors that a bridge has, by the reference's names; none without a bridge."""
    if not isinstance(config, VariationalBridgeConfig):
        return {}
    with torch.device("meta"):
        bridge = evolve(config, features=width).build()
    return shapes(bridge_to_reference(bridge.state_dict()))


def bridge_state(state: Mapping[str, Tensor]) -> State:
    """Weights of the bridge, from a whole state of the reference.

    Raises:
        CheckpointError: if one of them is missing or not finite.
    """
    own = {name: value for name, value in state.items() if name.startswith(_BRIDGE_ROLES)}
    return bridge_from_reference(own) if own else {}


def under(prefix: str, names: Mapping[str, T]) -> dict[str, T]:
    """The same with a prefix before the names."""
    return {prefix + name: value for name, value in names.items()}
