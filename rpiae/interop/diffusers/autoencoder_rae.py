"""Folders of diffusers' AutoencoderRAE as tokenizers, read without diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rpiae.bridges.configs import IdentityBridgeConfig
from rpiae.core.config.convert import make_converter, parse
from rpiae.core.errors import CheckpointError, ConfigError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.layouts import State, renamed, restored
from rpiae.core.model.resolve import ResolvedTokenizer, resolve_tokenizer
from rpiae.core.model.saved_parts import fitting
from rpiae.core.model.tokenizer import NORM_EPS, RPiAE
from rpiae.core.runtime.files import read_json
from rpiae.core.runtime.names import printable, shown
from rpiae.core.runtime.weight_files import opened
from rpiae.core.runtime.weights import (
    Shapes,
    check_architecture,
    check_finite,
    check_plain,
    load_whole,
    shapes,
)
from rpiae.decoders.configs import VitDecoderConfig
from rpiae.encoders.configs import TimmEncoderConfig, Triple
from rpiae.interop.diffusers.layout import (
    CLASS,
    CONFIG_FILE,
    ENCODERS,
    IMAGE_MEAN,
    IMAGE_STD,
    LATENTS_MEAN,
    LATENTS_STD,
    PLAIN_SIDE,
    RAE_DECODER,
    WEIGHTS_FILE,
    RaeEncoder,
    RaeOptions,
    decoder_positions,
    denominator,
)

#: Options that may be null, which says the same as leaving them out.
_NULLABLE = (
    "image_size", "encoder_norm_mean", "encoder_norm_std", "latents_mean", "latents_std",
)  # fmt: skip

#: Options that its tensors hold too.
_TENSORS = ("latents_mean", "latents_std")

#: Neighbouring numbers of fp32 that rounding may lead away from the wanted one.
_STEPS = 4

_WEIGHTS_FILES = (
    WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
)  # fmt: skip


def is_autoencoder_rae(folder: Path) -> bool:
    """Whether a folder is one that diffusers' ``AutoencoderRAE.save_pretrained`` wrote."""
    try:
        config = read_json(folder / CONFIG_FILE)
    except CheckpointError:
        return False
    return isinstance(config, dict) and config.get("_class_name") == CLASS


def read_autoencoder_rae(folder: Path) -> RPiAE:
    """The tokenizer of such a folder: the same latents, and the same images from them.

    Its statistics of latents and its ``scaling_factor`` become the ``feature_norm``. The noise of its
    training is no part of a tokenizer and is left out.

    Raises:
        CheckpointError: if the folder is of something else, a file is missing or damaged, or the
            config or a tensor does not fit.
    """
    source = printable(str(folder))
    options = _options(folder)
    encoder = ENCODERS[options.encoder_type]
    state = _state(folder, options, encoder)
    with fitting(source):
        resolved = _resolved(options, encoder, state, source)
        meta = build_tokenizer(resolved, device="meta")
    short = encoder.is_short(name for name in state if name.startswith("encoder."))
    long = shapes(encoder.there(meta.roles["encoder"].state_dict()))
    names = encoder.names(long, short=short)
    own_decoder = meta.roles["decoder"].state_dict()
    positions = own_decoder.pop("positions", None)
    decoder = shapes(restored(RAE_DECODER, own_decoder))
    wanted = {
        **{f"encoder.{names[name]}": shape for name, shape in long.items()},
        **{f"decoder.{name}": shape for name, shape in decoder.items()},
        **_buffer_shapes(state),
    }
    check_architecture(source, wanted, shapes(state))
    feature_norm = _feature_norm(state, options, source)
    with fitting(source):
        model = build_tokenizer(resolved, trained_size=options.side * options.patch_size)
    own = encoder.here({name: state[f"encoder.{names[name]}"] for name in long})
    _fill(model.roles["encoder"], own, source)
    own = renamed(RAE_DECODER, {name: state[f"decoder.{name}"] for name in decoder})
    if positions is not None:
        along = decoder_positions(options.side, options.decoder_hidden_size)
        own["positions"] = along.to(own["embed.weight"].dtype).reshape(positions.shape)
    _fill(model.roles["decoder"], own, source)
    if feature_norm is not None:
        model.register_buffer("feature_mean", feature_norm[0])
        model.register_buffer("feature_var", feature_norm[1])
    return model.eval()


def _options(folder: Path) -> RaeOptions:
    path = folder / CONFIG_FILE
    config = read_json(path)
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name != CLASS:
        raise CheckpointError(
            f"{printable(str(path))} is of {shown(name) if name else 'nothing that diffusers saved'}, "
            f"and an {CLASS} is wanted"
        )
    tree = {
        option: value
        for option, value in config.items()
        if not option.startswith("_")
        and option not in _TENSORS
        and not (value is None and option in _NULLABLE)
    }
    source = printable(str(path))
    try:
        options = parse(tree, RaeOptions, source=source, converter=make_converter())
        if problems := options.problems():
            raise ConfigError(source, problems)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    return options


def _state(folder: Path, options: RaeOptions, encoder: RaeEncoder) -> State:
    """The tensors that a tokenizer is made of, by their names there."""
    path = next((folder / name for name in _WEIGHTS_FILES if (folder / name).is_file()), None)
    if path is None:
        others = sorted(folder.glob("diffusion_pytorch_model.*"))
        found = f"it has {printable(others[0].name)}: rename it" if others else "it has none"
        raise CheckpointError(
            f"{printable(str(folder))} should hold {WEIGHTS_FILE}, or its index of shards; {found}"
        )
    unused = (*(f"encoder.{name}" for name in encoder.unused), "decoder.decoder_pos_embed")
    with opened(path) as tables:
        state = {n: get() for n, get in tables[""].items() if not n.startswith(unused)}
    for name, value in state.items():
        check_plain(printable(str(path)), name, value)
        check_finite(printable(str(path)), name, value)
    return state


def _buffer_shapes(state: Mapping[str, Tensor]) -> Shapes:
    """Those of its buffers; statistics of latents may have any that they can be expanded from."""
    of_images = (1, 3, 1, 1)
    latents = {
        name: tuple(state[name].shape) if name in state else (1,)
        for name in (LATENTS_MEAN, LATENTS_STD)
    }
    return {IMAGE_MEAN: of_images, IMAGE_STD: of_images, **latents}


def _resolved(
    options: RaeOptions, encoder: RaeEncoder, state: Mapping[str, Tensor], source: str
) -> ResolvedTokenizer:
    width = options.encoder_hidden_size
    sizes: dict[str, Any] = {
        "embed_dim": width,
        "depth": options.encoder_num_hidden_layers,
        "num_heads": options.encoder_num_heads,
        "mlp_ratio": encoder.mlp_ratio(width),
        "patch_size": options.encoder_patch_size,
        "img_size": encoder.pixels,
    }
    return resolve_tokenizer(
        TimmEncoderConfig(
            name="timm", model=encoder.model, model_args=sizes, eps=encoder.eps, pretrained=False,
            mean=_of_images(state, IMAGE_MEAN, options.encoder_norm_mean),
            std=_of_images(state, IMAGE_STD, options.encoder_norm_std),
            output_patch=options.patch_size, image_size=options.side * options.patch_size,
        ),
        IdentityBridgeConfig(name="identity"),
        VitDecoderConfig(
            name="vit", width=options.decoder_hidden_size, depth=options.decoder_num_hidden_layers,
            num_heads=options.decoder_num_attention_heads,
            mlp_hidden=options.decoder_intermediate_size, positions="fixed",
            stored_grid=() if options.side == PLAIN_SIDE else (options.side, options.side),
        ),
        source=source,
    )  # fmt: skip


def _of_images(state: Mapping[str, Tensor], name: str, told: tuple[float, ...]) -> Triple:
    """Input statistics, as short as fp32 allows; those of the config where the tensor is wrong, which
    is told elsewhere."""
    values = state[name].flatten().float().tolist() if name in state else list(told)
    first, second, third = (
        float(str(np.float32(v))) for v in (values if len(values) == 3 else told)
    )
    return first, second, third


def _feature_norm(
    state: Mapping[str, Tensor], options: RaeOptions, source: str
) -> tuple[Tensor, Tensor] | None:
    """Mean and variance with which ours gives its latents; None where its statistics change nothing."""
    mean = _as_map(state[LATENTS_MEAN], LATENTS_MEAN, options, source)
    std = _as_map(denominator(state[LATENTS_STD].float()), LATENTS_STD, options, source)
    shape = torch.broadcast_shapes(mean.shape, std.shape)  # type: ignore[no-untyped-call]  # torch has no types for it
    mean, std = mean.expand(shape), std.expand(shape) / options.scaling_factor
    if not mean.any() and (std == 1).all():
        return None
    variance = _variance_of(std)
    if std.min() <= 0 or variance.min() < 0:
        raise CheckpointError(
            f"{source}: {LATENTS_STD} goes down to {state[LATENTS_STD].min().item():g} (scaling_factor "
            f"{options.scaling_factor:g}), and no variance gives that: a feature_norm divides by at "
            f"least √{NORM_EPS:g}"
        )
    return mean.contiguous(), variance.contiguous()


def _variance_of(std: Tensor) -> Tensor:
    """Variances v with √(v + ε) = std, to the bit where fp32 has such."""
    variance = (std.double().square() - NORM_EPS).float()
    for _ in range(_STEPS):
        found = (variance + NORM_EPS).sqrt()
        further = torch.nextafter(variance, (std - found).sign() * torch.inf)
        variance = torch.where(found == std, variance, further)
    return variance


def _as_map(values: Tensor, name: str, options: RaeOptions, source: str) -> Tensor:
    """Statistics as (D, 1, 1), where they are the same everywhere, or (D, h, w)."""
    width, side = options.encoder_hidden_size, options.side
    wanted = (1, width, side, side) if options.reshape_to_2d else (1, side * side, width)
    try:
        whole = torch.broadcast_to(values.float(), wanted)[0]
    except RuntimeError:
        raise CheckpointError(
            f"{source}: {name} is {tuple(values.shape)}, which does not fit latents {wanted[1:]}"
        ) from None
    if not options.reshape_to_2d:
        whole = whole.T.reshape(width, side, side)
    places = values.shape[-2:] if options.reshape_to_2d else values.shape[-2:-1]
    return whole[:, :1, :1] if all(place == 1 for place in places) else whole


def _fill(part: nn.Module, state: State, source: str) -> None:
    """Load a part, in the precision of its tensors where they have one."""
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(dtypes) == 1:
        part.to(dtypes.pop())
    load_whole(part, state, source=source)
