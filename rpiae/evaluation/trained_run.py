"""What an evaluation needs to know of the run that a tokenizer is from, and nothing more.

A run's config also names losses and critics, which can be a notebook's own and are not there any more.
"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from rpiae.core.config.parts import DatasetConfig, EncoderConfig
from rpiae.core.config.tree import Tree, read_toml
from rpiae.core.errors import CheckpointError
from rpiae.core.model.resolve import part_config


@frozen(kw_only=True)
class TrainedRun:
    """A run by its ``config.toml``, whose parts are parsed as they are asked for."""

    source: Path
    tree: Tree

    @property
    def encoder(self) -> EncoderConfig:
        """The encoder, which its pivot is of.

        Raises:
            UsageError: if it does not parse.
        """
        given = self.tree.get("encoder")
        if not isinstance(given, (str, dict)):
            raise CheckpointError(f"{self.source} names no encoder")
        config = part_config("encoders", given)
        assert isinstance(config, EncoderConfig)
        return config

    @property
    def data(self) -> DatasetConfig | None:
        """What it was trained on, where it says so.

        Raises:
            UsageError: if it does not parse.
        """
        given = self.tree.get("data")
        if not isinstance(given, (str, dict)):
            return None
        config = part_config("datasets", given)
        assert isinstance(config, DatasetConfig)
        return config

    @property
    def init(self) -> str:
        """The folder that it started from; empty where it was the pivot."""
        return str(self.tree.get("init", ""))

    @property
    def seed(self) -> int:
        """Of every random draw."""
        given = self.tree.get("seed", 0)
        if type(given) is not int:
            raise CheckpointError(f"{self.source}: seed is {given!r:.40}, not a whole number")
        return given


def read_run(folder: Path) -> TrainedRun:
    """The run in a folder.

    Raises:
        ConfigError: if its ``config.toml`` is no TOML.
    """
    source = folder / "config.toml"
    return TrainedRun(source=source, tree=read_toml(source))
