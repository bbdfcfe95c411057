"""What a folder of latents of whole videos holds. ``docs/latents.md`` is the reference."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from attrs import asdict, field, fields, frozen

from rpiae.core.config.fields import at_least
from rpiae.core.config.identity import EPOCH, digest
from rpiae.latents.layout import TIME_FORMAT, Settings

#: What an index says it is of, where it is of whole videos.
VIDEOS = "videos"

#: Latent steps that one digest is of: reading a window of a long video looks at no more around it.
STEPS_PER_DIGEST = 16


@frozen(kw_only=True)
class VideoPlan:
    """What a folder of latents of whole videos is to hold; known before the first is encoded.

    Attributes:
        settings: what decides the values; ``shard_size`` has no effect.
        tokenizer: ``path`` and ``sha256`` of what encodes; the path does not count as different.
        data: the dataset's fields, for people.
        location: where the videos come from, in words.
        num_videos: videos of the source, usable or not.
        scale: the size that they are encoded in, in words.
        tile: side of the spatial tiles that are encoded one by one, in pixels; 0 for whole frames.
        channels: C of the latents.
        temporal_downsampling: frames T that a latent step stands for; the first stands for one.
        source: what tells the dataset from others, see ``rpiae.core.config.identity``.
        epoch: of the code that encodes.
        format: of the files.
        contents: what tells these from latents of images and clips.
    """

    settings: Settings
    tokenizer: Mapping[str, str]
    data: Mapping[str, Any]
    location: str
    num_videos: int
    scale: str
    tile: int = 0
    channels: int
    temporal_downsampling: int
    source: Mapping[str, Any] = field(factory=dict)
    epoch: int = EPOCH
    format: int = TIME_FORMAT
    contents: str = VIDEOS

    @property
    def num_files(self) -> int:
        """How many files there are in the end: one per video."""
        return self.num_videos

    def file(self, number: int) -> str:
        """Name of a video's file."""
        return f"video-{number:05}-of-{self.num_videos:05}.safetensors"

    def latent_steps(self, frames: int) -> int:
        """Latent steps of so many frames."""
        return 1 + -(-(frames - 1) // self.temporal_downsampling)

    def identity(self) -> dict[str, Any]:
        """All that two calls must agree in to write into one folder."""
        settings = asdict(self.settings)
        del settings["shard_size"]
        if self.settings.posterior != "sample":
            del settings["seed"]
        return {
            **settings,
            "contents": self.contents,
            "tokenizer": self.tokenizer["sha256"],
            "data": dict(self.source),
            "num_videos": self.num_videos,
            "scale": self.scale,
            "tile": self.tile,
            "epoch": self.epoch,
        }

    def digest(self) -> str:
        """A name for the identity, as every file carries it."""
        return digest(self.identity())

    def as_tree(self) -> dict[str, Any]:
        """As it stands in the index."""
        tree = {a.name: getattr(self, a.name) for a in fields(type(self))}
        return tree | {
            "settings": asdict(self.settings),
            "tokenizer": dict(self.tokenizer),
            "data": dict(self.data),
            "source": dict(self.source),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> VideoPlan:
        """Inverse of ``as_tree``; other keys are left alone."""
        values = {a.name: tree[a.name] for a in fields(cls) if a.name in tree}
        values["settings"] = Settings(**tree["settings"])
        return cls(**values)


@frozen(kw_only=True)
class StoredVideo:
    """A video whose latents are stored; a row of the index.

    Attributes:
        position: index in the source.
        file: its file in the folder.
        name: what the source calls it.
        frames, height, width: of what was encoded, and of what decoding gives.
        rate: frames per second, as a fraction such as ``30000/1001``.
        latent_shape: (C, t, h, w).
        problem: what is wrong with it, such as a damaged end or a frame rate that varies; empty where
            nothing is.
        sha256: of the file's header, which has the digests of the latents.
    """

    position: int = at_least(0)
    file: str
    name: str
    frames: int = at_least(1)
    height: int = at_least(1)
    width: int = at_least(1)
    rate: str
    latent_shape: tuple[int, int, int, int] = at_least(1)
    problem: str = ""
    sha256: str

    @property
    def frame_rate(self) -> Fraction:
        """Frames per second."""
        return Fraction(self.rate)

    def as_tree(self) -> dict[str, Any]:
        """As it stands in the index."""
        return asdict(self) | {"latent_shape": list(self.latent_shape)}
