"""``rpiae fetch``: what a part loads, made available locally."""

from __future__ import annotations

import argparse

from rpiae.cli.screen import stdout
from rpiae.core.config import CriticConfig, EncoderConfig, LossConfig, MetricConfig
from rpiae.core.registry import normalised, registry
from rpiae.core.resolve import part_config


def execute(arguments: argparse.Namespace) -> int:
    """Have what an encoder, loss, critic or metric loads in the local cache, and say where."""
    config = _named(arguments.name)
    path = config.fetch()
    if path is None:
        stdout.print(f"{config.label} has nothing to fetch")
    else:
        stdout.print(f"{config.label}: {path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)
    return 0


def _named(name: str) -> EncoderConfig | LossConfig | CriticConfig | MetricConfig:
    """The part of that name, of the first family that has it."""
    for family in ("losses", "critics", "metrics"):
        known = registry(family)
        if normalised(name) in {*known.names(), *(p.name for p in known.presets())}:
            config = part_config(family, name)
            break
    else:
        config = part_config("encoders", name)
    assert isinstance(config, (EncoderConfig, LossConfig, CriticConfig, MetricConfig))
    return config
