"""The official tokenizers, RPiAE and RAE: their files as models of ours.

A file of RPiAE holds encoder, decoder, with a bridge ``vb_feature_encoder`` and ``vb_feature_decoder``, and in
training a replica, which is left out. One of RAE holds the decoder alone. Statistics of features are a file
of their own. All sizes are read off the shapes; ``rpiae.interop.facts`` has what these do not say.

Source: method.md section 6; the reference implementations of arXiv 2603.19206 and 2510.11690.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from attrs import evolve, fields_dict, frozen
from torch import Tensor

from rpiae.bridges.configs import IdentityBridgeConfig, VariationalBridgeConfig
from rpiae.core.config.parts import BridgeConfig, DecoderConfig, EncoderConfig
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.adapters import (
    bridge_from_reference,
    bridge_to_reference,
    decoder_from_reference,
    decoder_to_reference,
)
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.layouts import BRIDGE, DECODER, State
from rpiae.core.model.resolve import part_config, resolve_tokenizer
from rpiae.core.model.state import load_state
from rpiae.core.model.tokenizer import NORM_EPS, RPiAE
from rpiae.core.runtime.names import printable, shown
from rpiae.core.runtime.weights import Shapes, Signature, read_weights, shapes
from rpiae.decoders.configs import VitDecoderConfig
from rpiae.interop.facts import Facts, Table, Told, find_documents, located
from rpiae.interop.shapes import PartShapes, Place, below, check_whole, ratio
from rpiae.interop.statistics import read_statistics
from rpiae.interop.transformers import KINDS, ForeignEncoder, foreign_encoder, read_encoder

T = TypeVar("T")

#: Any of these shows a decoder of the reference; a file with one key renamed has the others.
_DECODER_SIGNS = ("decoder_embed.weight", "decoder_pred.weight", "decoder_pos_embed")
WHOLE: tuple[Signature, ...] = tuple((f"decoder.{name}",) for name in _DECODER_SIGNS)
DECODER_ALONE: tuple[Signature, ...] = tuple((name,) for name in _DECODER_SIGNS)

WHAT = "a tokenizer of the reference"

_BRIDGE_ROLES = ("vb_feature_encoder.", "vb_feature_decoder.")
_REPLICA = "teacher_encoder."

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


def read_tokenizer(path: Path, told: Told) -> tuple[RPiAE, Facts]:
    """A tokenizer of the reference, with averaged weights where the file has them.

    Args:
        path: the file.
        told: what the user says of it.

    Returns:
        the model, in fp32 on CPU and in eval mode, and what was read and assumed.

    Raises:
        CheckpointError: if it is damaged or of something else, with what is missing, unexpected or of
            another shape.
        UsageError: if something is left open, or contradicts the file.
        FetchError: if weights of an encoder that is named cannot be had.
    """
    facts = Facts(printable(str(path)), told, find_documents(path.parent, told.configs))
    facts.note_read(path)
    state = _read(path, told.weights_key)
    has_encoder = any(name.startswith("encoder.") for name in state)
    model = _whole(state, facts) if has_encoder else _decoder_alone(state, facts)
    return model.eval(), facts


def _read(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file, a decoder's under ``decoder.``, halves as fp32."""
    try:
        state = read_weights(path, what=WHAT, signatures=WHOLE, key=key)
    except CheckpointError:
        alone = read_weights(path, what=WHAT, signatures=DECODER_ALONE, key=key)
        state = {f"decoder.{name}": tensor for name, tensor in alone.items()}
    return {name: t.float() if t.is_floating_point() else t for name, t in state.items()}


def _whole(state: State, facts: Facts) -> RPiAE:
    """RPiAE: the file has all parts."""
    if facts.told.encoder or facts.told.encoder_weights:
        raise UsageError(
            f"{facts.source} holds its encoder: --encoder and --encoder-weights are for files of a "
            "decoder alone"
        )
    there = shapes(state)
    encoder = foreign_encoder(there, source=facts.source, prefix="encoder.")
    decoder = evolve(_decoder_sizes(there, facts.source), features=encoder.width)
    bridge = _bridge_config(there, facts.source, encoder.width)
    _check_file(there, encoder, decoder, bridge, facts)
    _check_final_norm(state, encoder, facts)
    params, where = facts.params(lambda table: _contradictions(table, encoder, decoder, bridge))
    config = encoder.config(facts, output_patch=decoder.patch, image_size=decoder.image_size)
    heads = _decoder_heads(decoder, facts)
    statistics = _statistics_file(params, where, facts)
    facts.check_none_asked()
    model = _built(config, bridge, decoder.config(heads), decoder, facts)
    own = {
        **_under("encoder.", encoder.own(state)),
        **_under("decoder.", _decoder_state(state, decoder)),
        **_under("bridge.", _bridge_state(state)),
    }
    load_state(model, own, source=facts.source)
    _normalise(model, statistics, params, decoder, facts)
    return model


def _decoder_alone(state: State, facts: Facts) -> RPiAE:
    """RAE: the encoder is named, frozen as it is."""
    there = shapes(state)
    decoder = _decoder_sizes(there, facts.source)
    expected = _under("decoder.", _decoder_shapes(decoder))
    check_whole(facts.source, "a decoder of the reference", expected, there)
    heads = _decoder_heads(decoder, facts)
    named = _named_encoder(decoder, facts)
    params, where = facts.params(lambda table: _of_decoder(table, decoder))
    statistics = _statistics_file(params, where, facts)
    facts.check_none_asked()
    assert named is not None
    encoder, weights = named
    bridge = IdentityBridgeConfig(name="identity")
    model = _built(encoder, bridge, decoder.config(heads), decoder, facts, pretrained=not weights)
    own = model.state_dict()
    own |= _under("encoder.", weights) | _under("decoder.", _decoder_state(state, decoder))
    load_state(model, own, source=facts.source)
    _normalise(model, statistics, params, decoder, facts)
    return model


def _named_encoder(decoder: DecoderSizes, facts: Facts) -> tuple[EncoderConfig, State] | None:
    """The encoder that a decoder belongs to, and its weights where a folder has them."""
    told = facts.told
    if not told.encoder:
        facts.asked.append(
            f"the encoder, whose features are {decoder.features} wide (--encoder NAME of a preset, such "
            "as dinov2-b, or FOLDER of transformers; Python: encoder)"
        )
        return None
    if Path(told.encoder).is_dir():
        config, weights, own = read_encoder(
            Path(told.encoder), told, output_patch=decoder.patch, image_size=decoder.image_size
        )
        facts.read.extend(own.read)
        facts.notes.extend(own.notes)
        return config, weights
    given = part_config("encoders", told.encoder)
    assert isinstance(given, EncoderConfig)
    changes: dict[str, Any] = {
        "output_patch": decoder.patch, "image_size": decoder.image_size, "pretrained": True,
        **({"weights": told.encoder_weights} if told.encoder_weights else {}),
    }  # fmt: skip
    known = fields_dict(type(given))
    return evolve(given, **{name: value for name, value in changes.items() if name in known}), {}


def _built(
    encoder: EncoderConfig,
    bridge: BridgeConfig,
    decoder: DecoderConfig,
    sizes: DecoderSizes,
    facts: Facts,
    *,
    pretrained: bool = False,
) -> RPiAE:
    resolved = resolve_tokenizer(
        encoder, bridge, evolve(decoder, features=None), source=facts.source,
        image_size=sizes.image_size,
    )  # fmt: skip
    width = resolved.encoder_facts.width
    if width != sizes.features:
        raise UsageError(
            f"{facts.source} is a decoder of features {sizes.features} wide, and encoder "
            f"{encoder.label!r} gives {width}: name the one that it was trained with (--encoder)"
        )
    return build_tokenizer(resolved, pretrained=pretrained, trained_size=sizes.image_size)


def _decoder_sizes(there: Shapes, source: str) -> DecoderSizes:
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


def _bridge_config(there: Shapes, source: str, width: int) -> BridgeConfig:
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


def _check_file(
    there: Shapes,
    encoder: ForeignEncoder,
    decoder: DecoderSizes,
    bridge: BridgeConfig,
    facts: Facts,
) -> None:
    """Refuse a file that does not hold a tokenizer whole."""
    expected = {**encoder.expected(), **_under("decoder.", _decoder_shapes(decoder))}
    if isinstance(bridge, VariationalBridgeConfig):
        with torch.device("meta"):
            built = evolve(bridge, features=encoder.width).build()
        expected |= shapes(bridge_to_reference(built.state_dict()))
    check_whole(
        facts.source, "a tokenizer of the reference", expected, there,
        unused=(_REPLICA, *encoder.unused()),
    )  # fmt: skip
    if replica := [name for name in there if name.startswith(_REPLICA)]:
        facts.notes.append(
            f"left out the replica ({len(replica)} tensors under {_REPLICA}): it is for training"
        )


def _decoder_shapes(sizes: DecoderSizes) -> Shapes:
    with torch.device("meta"):
        decoder = sizes.config(heads=1).build()
    return shapes(decoder_to_reference(decoder.state_dict()))


def _check_final_norm(state: State, encoder: ForeignEncoder, facts: Facts) -> None:
    """The reference takes the final norm's weight and bias away; where they are there, they count."""
    prefix = encoder.part.prefix + encoder.kind.final_norm
    for name, neutral in (("weight", 1.0), ("bias", 0.0)):
        value = state.get(prefix + name)
        if value is not None and not (value == neutral).all():
            raise CheckpointError(
                f"{facts.source}: {prefix}{name} is not {neutral:g}, so the encoder's final norm has a "
                "weight and a bias (normalize: false in the reference); encoders here have none"
            )


def _contradictions(
    table: Table, encoder: ForeignEncoder, decoder: DecoderSizes, bridge: BridgeConfig
) -> Iterator[str]:
    """What the reference's parameters say against the tensors."""
    yield from _of_decoder(table, decoder)
    size, wanted = table.get("encoder_input_size"), decoder.side * encoder.patch
    if size is not None and size != wanted:
        yield (
            f"encoder_input_size is {shown(size)}, and {decoder.side} patches of {encoder.patch} "
            f"pixels are {wanted}"
        )
    classes = {name for kind in KINDS for name in kind.classes}
    named = table.get("encoder_cls")
    if named in classes and named not in encoder.kind.classes:
        yield f"encoder_cls is {shown(named)}, and the tensors are {encoder.kind.what}"
    channels = getattr(bridge, "latent_channels", None)
    said = table.get("vb_latent_dim", channels)
    if said != channels and channels is not None:
        yield f"vb_latent_dim is {shown(said)}, and the tensors have {channels}"
    parameters = table.get("encoder_params")
    if isinstance(parameters, dict) and parameters.get("normalize") is False:
        yield "its encoder does not normalise its features (normalize), as encoders here do"


def _of_decoder(table: Table, decoder: DecoderSizes) -> Iterator[str]:
    patch = table.get("decoder_patch_size", decoder.patch)
    if patch != decoder.patch:
        yield f"decoder_patch_size is {shown(patch)}, and the tensors have {decoder.patch}"


def _decoder_heads(decoder: DecoderSizes, facts: Facts) -> int:
    for key, ours in (("layer_norm_eps", _DECODER_EPS), ("hidden_act", _DECODER_ACTIVATION)):
        said = facts.said(decoder.fits, key)
        if said is not None and said[0] != ours:
            raise UsageError(
                f"{said[1]} says {key} = {shown(said[0])} of the decoder, which is {ours} here and in "
                "the reference"
            )
    heads = facts.settle(
        f"attention heads of the decoder (width {decoder.width}, {decoder.depth} layers)",
        told=facts.told.decoder_heads,
        said=facts.said(decoder.fits, "decoder_num_attention_heads"),
        known=_DECODER_HEADS.get((decoder.width, decoder.depth, decoder.hidden)),
        known_of="the published decoder of this size",
        option="--decoder-heads N, Python: decoder_heads",
    )
    return int(heads or 1)


def _statistics_file(params: Table, where: Path | None, facts: Facts) -> str:
    """The file of statistics that features are normalised with, or nothing."""
    named = params.get("normalization_stat_path")
    if facts.told.stats:
        return facts.told.stats
    if not named:
        facts.notes.append("features are not normalised, as no statistics are named (--stats)")
        return ""
    assert where is not None
    for name in (str(named), Path(str(named)).name):
        if found := located(where, name):
            return str(found)
    facts.asked.append(
        f"the statistics of features, which {where} has in {shown(named)} (--stats FILE, Python: stats)"
    )
    return ""


def _normalise(
    model: RPiAE, statistics: str, params: Table, decoder: DecoderSizes, facts: Facts
) -> None:
    if not statistics:
        return
    facts.note_read(Path(statistics))
    mean, var = read_statistics(
        statistics, width=decoder.features, grid=(decoder.side, decoder.side),
        eps=float(params.get("eps", NORM_EPS)),
    )  # fmt: skip
    model.register_buffer("feature_mean", mean)
    model.register_buffer("feature_var", var)


def _decoder_state(state: State, sizes: DecoderSizes) -> State:
    own = {name: tensor for name, tensor in state.items() if name.startswith("decoder.")}
    return decoder_from_reference(own, grid=(sizes.side, sizes.side))


def _bridge_state(state: State) -> State:
    own = {name: tensor for name, tensor in state.items() if name.startswith(_BRIDGE_ROLES)}
    return bridge_from_reference(own) if own else {}


def _under(prefix: str, names: Mapping[str, T]) -> dict[str, T]:
    return {prefix + name: value for name, value in names.items()}
