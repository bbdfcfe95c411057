"""The official tokenizers, RPiAE and RAE: their files as models of ours.

A file of RPiAE holds encoder, decoder, with a bridge ``vb_feature_encoder`` and ``vb_feature_decoder``, and in
training a replica, which is left out. One of RAE holds the decoder alone. Statistics of features are a file
of their own. All sizes are read off the shapes; ``rpiae.interop.facts`` has what these do not say.

Source: method.md section 6; the reference implementations of arXiv 2603.19206 and 2510.11690.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import evolve, fields_dict
from torch import Tensor

from rpiae.bridges.configs import IdentityBridgeConfig
from rpiae.core.config.parts import BridgeConfig, DecoderConfig, EncoderConfig
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.layouts import State
from rpiae.core.model.resolve import part_config, resolve_tokenizer
from rpiae.core.model.state import load_state
from rpiae.core.model.tokenizer import NORM_EPS, RPiAE
from rpiae.core.runtime.names import printable, shown
from rpiae.core.runtime.weights import Shapes, Signature, read_weights, shapes
from rpiae.interop.facts import Facts, Table, Told, find_documents, located
from rpiae.interop.reference_parts import (
    DecoderSizes,
    bridge_config,
    bridge_shapes,
    bridge_state,
    contradictions,
    decoder_sizes,
    under,
)
from rpiae.interop.shapes import check_whole
from rpiae.interop.statistics import read_statistics
from rpiae.interop.transformers import ForeignEncoder, foreign_encoder, read_encoder

#: Any of these shows a decoder of the reference; a file with one key renamed has the others.
_DECODER_SIGNS = ("decoder_embed.weight", "decoder_pred.weight", "decoder_pos_embed")
WHOLE: tuple[Signature, ...] = tuple((f"decoder.{name}",) for name in _DECODER_SIGNS)
DECODER_ALONE: tuple[Signature, ...] = tuple((name,) for name in _DECODER_SIGNS)

WHAT = "a tokenizer of the reference"

_REPLICA = "teacher_encoder."


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
    decoder = evolve(decoder_sizes(there, facts.source), features=encoder.width)
    bridge = bridge_config(there, facts.source, encoder.width)
    _check_file(there, encoder, decoder, bridge, facts)
    _check_final_norm(state, encoder, facts)
    params, where = facts.params(lambda table: contradictions(table, encoder, decoder, bridge))
    config = encoder.config(facts, output_patch=decoder.patch, image_size=decoder.image_size)
    heads = decoder.heads(facts)
    statistics = _statistics_file(params, where, facts)
    facts.check_none_asked()
    model = _built(config, bridge, decoder.config(heads), decoder, facts)
    own = {
        **under("encoder.", encoder.own(state)),
        **under("decoder.", decoder.own(state)),
        **under("bridge.", bridge_state(state)),
    }
    load_state(model, own, source=facts.source)
    _normalise(model, statistics, params, decoder, facts)
    return model


def _decoder_alone(state: State, facts: Facts) -> RPiAE:
    """RAE: the encoder is named, frozen as it is."""
    there = shapes(state)
    decoder = decoder_sizes(there, facts.source)
    expected = under("decoder.", decoder.shapes())
    check_whole(facts.source, "a decoder of the reference", expected, there)
    heads = decoder.heads(facts)
    named = _named_encoder(decoder, facts)
    params, where = facts.params(decoder.contradictions)
    statistics = _statistics_file(params, where, facts)
    facts.check_none_asked()
    assert named is not None
    encoder, weights = named
    bridge = IdentityBridgeConfig(name="identity")
    model = _built(encoder, bridge, decoder.config(heads), decoder, facts, pretrained=not weights)
    own = model.state_dict()
    own |= under("encoder.", weights) | under("decoder.", decoder.own(state))
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


def _check_file(
    there: Shapes,
    encoder: ForeignEncoder,
    decoder: DecoderSizes,
    bridge: BridgeConfig,
    facts: Facts,
) -> None:
    """Refuse a file that does not hold a tokenizer whole."""
    expected = {**encoder.expected(), **under("decoder.", decoder.shapes())}
    expected |= bridge_shapes(bridge, encoder.width)
    check_whole(
        facts.source, "a tokenizer of the reference", expected, there,
        unused=(_REPLICA, *encoder.unused()),
    )  # fmt: skip
    if replica := [name for name in there if name.startswith(_REPLICA)]:
        facts.notes.append(
            f"left out the replica ({len(replica)} tensors under {_REPLICA}): it is for training"
        )


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
