"""Resolved configs to modules, also on the meta device."""

from __future__ import annotations

from typing import Any

import torch

from rpiae.core.config.parts import BridgeConfig, DecoderConfig, EncoderConfig, PartConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import (
    ConfigError,
    UsageError,
)
from rpiae.core.model.contracts import Encoder
from rpiae.core.model.resolve import ResolvedTokenizer, part_config, resolve_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.draws import key


def build_tokenizer(
    resolved: ResolvedTokenizer,
    *,
    device: torch.device | str = "cpu",
    pretrained: bool = False,
    seed: int | None = None,
    trained_size: int = 0,
) -> RPiAE:
    """Construct a tokenizer.

    Args:
        resolved: its configs.
        device: where; ``"meta"`` gives shapes without memory.
        pretrained: whether the encoder takes its pivot's weights (if its config wants them).
        seed: makes the initialisation of each part a function of it and of the part alone, so that
            swapping one leaves the others as they are; the global generator is left alone.
        trained_size: side of the training crops in pixels.

    Raises:
        FetchError: if pretrained weights cannot be had.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device == "meta" else "cpu"):
        model = RPiAE(
            encoder=_part("encoder", resolved.encoder, seed),
            bridge=_part("bridge", resolved.bridge, seed),
            decoder=_part("decoder", resolved.decoder, seed),
            config=resolved,
            trained_size=trained_size,
        )
    _check_facts(model.encoder, resolved)
    if device == "meta":
        return model
    if pretrained and resolved.encoder.pretrained:
        resolved.encoder.load_pretrained(model.roles["encoder"])
    return model.to(device)


def _part(role: str, config: PartConfig, seed: int | None) -> Any:
    if seed is not None:
        torch.manual_seed(key(seed, "initialisation", role))
    try:
        return config.build()
    except UsageError:
        raise
    except ValueError as error:
        raise ConfigError(role, [f"{config.label}: {error}"]) from None


def _check_facts(encoder: Encoder, resolved: ResolvedTokenizer) -> None:
    """Refuse an encoder that is not what the other parts were told it is."""
    facts, label = resolved.encoder_facts, resolved.encoder.label
    frames, rows, columns = encoder.patch
    wrong = [
        f"encoder.{name}: {label} says {getattr(facts, name)}, the model it builds has {built}. Set "
        "it to that, or take another preset"
        for name, built in {
            "width": encoder.width,
            "frames": frames,
            "patch": rows if rows == columns else encoder.patch,
            "num_blocks": encoder.num_blocks,
        }.items()
        if getattr(facts, name) != built
    ]
    if wrong:
        raise ConfigError("the encoder", wrong)


def build(
    *,
    encoder: str | Tree | EncoderConfig,
    bridge: str | Tree | BridgeConfig,
    decoder: str | Tree | DecoderConfig,
    pretrained: bool = True,
    seed: int = 0,
) -> RPiAE:
    """An untrained RPiAE from names, tables or configs; wired fields are filled in.

    Args:
        encoder, bridge, decoder: the parts.
        pretrained: whether the encoder starts from its pivot's weights.
        seed: of the initialisation.

    Raises:
        UnknownNameError: if nobody registered a name.
        ConfigError: if values do not fit, or the parts do not fit each other.
        FetchError: if the pivot's weights cannot be had.
    """
    return build_tokenizer(
        resolved_parts(encoder, bridge, decoder), pretrained=pretrained, seed=seed
    )


def resolved_parts(encoder: Any, bridge: Any, decoder: Any) -> ResolvedTokenizer:
    first, second, third = (
        part_config(family, given)
        for family, given in (("encoders", encoder), ("bridges", bridge), ("decoders", decoder))
    )
    assert isinstance(first, EncoderConfig)
    assert isinstance(second, BridgeConfig)
    assert isinstance(third, DecoderConfig)
    return resolve_tokenizer(first, second, third)
