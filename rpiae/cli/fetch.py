"""``rpiae fetch``."""

from __future__ import annotations

import argparse

from rpiae.cli.screen import stdout
from rpiae.core.config import EncoderConfig
from rpiae.core.resolve import part_config


def execute(arguments: argparse.Namespace) -> int:
    """Have an encoder's weights in the local cache, and say where."""
    config = part_config("encoders", arguments.encoder)
    assert isinstance(config, EncoderConfig)
    path = config.fetch()
    stdout.print(f"{config.label}: {path} ({path.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)
    return 0
