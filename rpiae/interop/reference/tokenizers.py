"""The official tokenizers, RPiAE and RAE: their files as models of ours.

A file of RPiAE holds encoder, decoder, with a bridge ``vb_feature_encoder`` and ``vb_feature_decoder``, and in
training a replica, which is left out. One of RAE holds the decoder alone. Statistics of features are a file
of their own. All sizes are read off the shapes; ``rpiae.interop.reference.facts`` has what these do not say.

Source: method.md section 6; the reference implementations of arXiv 2603.19206 and 2510.11690.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from attrs import evolve, fields_dict
from torch import Tensor

from rpiae.bridges.configs import IdentityBridgeConfig, VariationalBridgeConfig
from rpiae.core.config.parts import BridgeConfig, DecoderConfig, EncoderConfig
from rpiae.core.errors import CheckpointError, FetchError, UsageError
from rpiae.core.model.adapters import bridge_to_reference, decoder_to_reference
from rpiae.core.model.blocks import sincos_positions
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.fetching import ADVICE
from rpiae.core.model.layouts import FOREIGN_REGISTERS, State
from rpiae.core.model.resolve import part_config, resolve_tokenizer
from rpiae.core.model.state import load_state
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import whole
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weights import Signature, holds, read_weights, shapes
from rpiae.decoders.configs import VitDecoderConfig
from rpiae.encoders.timm import TimmEncoder
from rpiae.interop.reference.facts import Facts, Told, find_documents
from rpiae.interop.reference.files import (
    DECODER,
    ENCODER,
    STATISTICS_FILE,
    WEIGHTS_FILE,
    YAML_FILE,
    write_decoder,
    write_encoder,
    write_yaml,
)
from rpiae.interop.reference.kinds import REGISTERS, Kind
from rpiae.interop.reference.names import with_long_names
from rpiae.interop.reference.parts import (
    DecoderSizes,
    bridge_config,
    bridge_shapes,
    bridge_state,
    contradictions,
    decoder_sizes,
    under,
)
from rpiae.interop.reference.shapes import below, check_values, check_whole
from rpiae.interop.reference.statistics import normalise, statistics_file, write_statistics
from rpiae.interop.reference.transformers import (
    ForeignEncoder,
    encoder_files,
    foreign_encoder,
    read_encoder,
    without_final_norm,
)

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
    """The tensors of a file under long names, a decoder's under ``decoder.``, halves as fp32."""
    if holds(path, WHOLE):
        state = read_weights(path, what=WHAT, signatures=WHOLE, key=key)
    else:
        alone = read_weights(path, what=WHAT, signatures=DECODER_ALONE, key=key)
        state = under("decoder.", alone)
    return with_long_names(
        {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    )


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
    _check_file(state, encoder, decoder, bridge, facts)
    _check_final_norm(state, encoder, facts)
    params, where = facts.params(lambda table: contradictions(table, encoder, decoder, bridge))
    config = encoder.config(facts, output_patch=decoder.patch, image_size=decoder.image_size)
    heads = decoder.heads(facts)
    statistics = statistics_file(params, where, facts)
    facts.check_none_asked()
    model = _built(config, bridge, decoder.config(heads), decoder, facts)
    own = {
        **under("encoder.", encoder.own(state)),
        **under("decoder.", decoder.own(state)),
        **under("bridge.", bridge_state(state)),
    }
    load_state(model, own, source=facts.source)
    normalise(model, statistics, params, grid=(decoder.side, decoder.side), facts=facts)
    return model


def _decoder_alone(state: State, facts: Facts) -> RPiAE:
    """RAE: the encoder is named, frozen as it is."""
    there = shapes(state)
    decoder = decoder_sizes(there, facts.source)
    expected = under("decoder.", decoder.shapes())
    check_whole(facts.source, "a decoder of the reference", expected, there)
    check_values(facts.source, expected, state)
    heads = decoder.heads(facts)
    named = _named_encoder(decoder, facts)
    params, where = facts.params(decoder.contradictions)
    statistics = statistics_file(params, where, facts)
    facts.check_none_asked()
    assert named is not None
    encoder, weights = named
    bridge = IdentityBridgeConfig(name="identity")
    try:
        model = _built(
            encoder, bridge, decoder.config(heads), decoder, facts, pretrained=not weights
        )
    except FetchError as error:
        raise FetchError(
            f"{str(error).partition(ADVICE)[0]}{ADVICE}: run `rpiae fetch {encoder.label}` on a machine "
            "with network and copy its cache (HF_HOME); or name a file with --encoder-weights (Python: "
            "encoder_weights)"
        ) from None
    own = model.state_dict()
    own |= under("encoder.", weights) | under("decoder.", decoder.own(state))
    load_state(model, own, source=facts.source)
    normalise(model, statistics, params, grid=(decoder.side, decoder.side), facts=facts)
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
    is_folder = Path(told.encoder).is_dir()
    _check_of_encoder(told, is_folder)
    if is_folder:
        config, weights, own = read_encoder(
            Path(told.encoder), told, output_patch=decoder.patch, image_size=decoder.image_size
        )
        facts.read.extend(own.read)
        facts.notes.extend(own.notes)
        facts.asked.extend(own.asked)
        return config, weights
    given = part_config("encoders", told.encoder)
    assert isinstance(given, EncoderConfig)
    changes: dict[str, Any] = {
        "output_patch": decoder.patch, "image_size": decoder.image_size, "pretrained": True,
        **({"weights": told.encoder_weights} if told.encoder_weights else {}),
    }  # fmt: skip
    known = fields_dict(type(given))
    return evolve(given, **{name: value for name, value in changes.items() if name in known}), {}


def _check_of_encoder(told: Told, is_folder: bool) -> None:
    """Refuse what is told of an encoder that knows it itself."""
    of_presets = {"--encoder-weights": told.encoder_weights}
    of_folders = {
        "--heads": told.num_heads, "--eps": told.eps, "--mean": told.mean, "--std": told.std,
    }  # fmt: skip
    if idle := [name for name, value in (of_presets if is_folder else of_folders).items() if value]:
        kind = "a folder of transformers" if is_folder else "a preset"
        raise UsageError(
            f"--encoder {told.encoder} is {kind}, to which {', '.join(idle)} does not belong: leave it out"
        )


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
    state: State,
    encoder: ForeignEncoder,
    decoder: DecoderSizes,
    bridge: BridgeConfig,
    facts: Facts,
) -> None:
    """Refuse a file that does not hold a tokenizer whole."""
    expected = {**encoder.expected(), **under("decoder.", decoder.shapes())}
    expected |= bridge_shapes(bridge, encoder.width)
    replica = under("encoder.", below(shapes(state), _REPLICA))
    # Without them the encoder is of another class, which is whole too; the replica is of the same one.
    expected |= {n: s for n, s in replica.items() if n.endswith(f".{FOREIGN_REGISTERS}")}
    check_whole(
        facts.source, "a tokenizer of the reference", expected, shapes(state),
        unused=(_REPLICA, *encoder.unused()),
    )  # fmt: skip
    check_values(facts.source, expected, state)
    if replica:
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


def write_reference(model: RPiAE, folder: Path) -> list[str]:
    """A tokenizer in the official layout: weights, the configs of what they do not say, and statistics.

    Reading it again gives the same features and images bit for bit, which is tried out. What timm's
    layout folds stays folded: a class token holds its position, which is zero there, as the mask token is.

    Args:
        model: a ViT of timm of a class that transformers has, the variational bridge or none, and the ViT
            decoder.
        folder: where to; made if it is not there.

    Returns:
        sentences on what was written and what was left out.

    Raises:
        UsageError: if the official layout has no place for the model, with the reason.
        RunError: if the folder cannot be written.
    """
    encoder, bridge, decoder, side = _writable(model)
    copy = _in_float32(model)
    own = {role: part.state_dict() for role, part in copy.roles.items()}
    if not decoder.stored_grid:
        positions = sincos_positions(side, side, decoder.width)
        own["decoder"]["positions"] = positions.reshape(1, side, side, decoder.width)
    kind, weights, config, processor = encoder_files(encoder)
    state = {
        **under("encoder.encoder.", without_final_norm(kind, weights)),
        **under("decoder.", decoder_to_reference(own["decoder"])),
        **(bridge_to_reference(own["bridge"]) if own["bridge"] else {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_encoder(folder / ENCODER, weights, config, processor)
    write_decoder(folder / DECODER, decoder, side)
    if copy.feature_mean is not None and copy.feature_var is not None:
        write_statistics(folder / STATISTICS_FILE, copy.feature_mean, copy.feature_var)
    assert decoder.patch is not None
    write_yaml(
        folder / YAML_FILE, kind, input_size=side * encoder.patch[1], output_patch=decoder.patch,
        channels=bridge.latent_channels if isinstance(bridge, VariationalBridgeConfig) else 0,
        normalised=copy.feature_mean is not None,
    )  # fmt: skip
    with whole(folder / WEIGHTS_FILE) as path:
        torch.save({name: value.clone().contiguous() for name, value in state.items()}, path)
    _check_same(copy, folder / WEIGHTS_FILE, side * decoder.patch)
    return _sentences(model, kind)


def _in_float32(model: RPiAE) -> RPiAE:
    """The same tokenizer in float32 on CPU."""
    assert model.config is not None
    copy = build_tokenizer(model.config, trained_size=model.trained_size)
    state = {name: value.cpu().float() for name, value in model.state_dict().items()}
    for name in ("feature_mean", "feature_var", "latent_mean", "latent_std"):
        if name in state:
            copy.register_buffer(name, state[name])
    load_state(copy, state, source="the tokenizer")
    return copy.eval()


def _writable(model: RPiAE) -> tuple[TimmEncoder, BridgeConfig, VitDecoderConfig, int]:
    """The parts of a model that the official layout has a place for, and the side of its grid."""
    if model.config is None:
        raise UsageError(
            "this tokenizer was put together by hand and has no config to write: make it with rpiae.build"
        )
    bridge, decoder = model.config.bridge, model.config.decoder
    encoder = model.roles["encoder"]
    reasons = {
        f"its encoder {model.config.encoder.label!r} is none of timm's": (
            not isinstance(encoder, TimmEncoder)
        ),
        f"its bridge {bridge.label!r} is not the variational one": not isinstance(
            bridge, VariationalBridgeConfig | IdentityBridgeConfig
        ),
        f"its decoder {decoder.label!r} is not the ViT one": not isinstance(
            decoder, VitDecoderConfig
        ),
        "its features are made of several layers": isinstance(encoder, TimmEncoder)
        and (len(encoder.layers) > 1 or encoder.add_final_mean),
    }
    if wrong := [reason for reason, holds in reasons.items() if holds]:
        raise UsageError(f"the official layout has no place for this tokenizer: {', '.join(wrong)}")
    assert isinstance(encoder, TimmEncoder)
    assert isinstance(decoder, VitDecoderConfig)
    size = model.trained_size or model.config.encoder_facts.image_size
    rows, columns = decoder.stored_grid or model.geometry(size, size).grid[1:]
    if rows != columns:
        raise UsageError(
            f"the official layout has square grids alone, and the decoder's is {rows}×{columns}"
        )
    return encoder, bridge, decoder, rows


def _check_same(model: RPiAE, path: Path, size: int) -> None:
    """Refuse a file that gives another model when it is read again."""
    again, _ = read_tokenizer(path, Told())
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        same = torch.equal(model.features(image).tokens, again.features(image).tokens)
        same = same and torch.equal(model.reconstruct(image), again.reconstruct(image))
    if not same:
        raise UsageError(
            "the official layout cannot hold this tokenizer: what was read from it again gives other "
            "features or images, as its encoder follows other rules than those of transformers"
        )


def _sentences(model: RPiAE, kind: Kind) -> list[str]:
    """What was written and what was left out."""
    said = [
        f"{WEIGHTS_FILE}: weights, as a state dict; {YAML_FILE}: what the reference is built from, with "
        f"paths seen from its folder; {ENCODER} ({kind.what}) and {DECODER}: their configs for transformers"
    ]
    if model.feature_mean is not None:
        said.append(f"{STATISTICS_FILE}: mean and var of the features")
    if model.latent_mean is not None:
        said.append("left out latent_norm, which the official layout has no place for")
    if model.dtype != torch.float32:
        said.append(f"weights were {model.dtype} and were written in float32")
    said.append(
        "the class token holds its position, as timm keeps it, and the mask token is zero"
        if kind is REGISTERS
        else "tensors that tokens do not need (mask token, final norm, head) are neutral or left out"
    )
    return said
