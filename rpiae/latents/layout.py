"""Shards of latents of images and of clips. ``docs/latents.md`` is the reference."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from attrs import asdict, field, fields, frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rpiae.core.config.fields import at_least
from rpiae.core.config.identity import EPOCH, digest
from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.files import open_regular

#: What is written of images. Earlier formats are still read: 2, of which nobody knows what its images
#: were, and 1, without digests.
FORMAT = 3
EARLIER_FORMATS = (1, 2)
#: What is written of what has time, clips and whole videos.
TIME_FORMAT = 4
UNCHECKED_FORMAT = 1
INDEX_FILE = "index.json"
METADATA = "rpiae"
#: Frames per second as a fraction, as ``str`` writes one, of few digits.
RATE = re.compile(r"[1-9][0-9]{0,29}(/[1-9][0-9]{0,29})?")
#: How the name of a file ends that is not complete.
UNFINISHED = ".part"

PosteriorUse = Literal["mode", "sample", "moments"]
StoredType = Literal["fp32", "bf16", "fp16"]

DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
#: What safetensors calls them.
STORED_NAMES: Mapping[str, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


@frozen(kw_only=True)
class Settings:
    """What decides the values in a folder of latents; part of its index.

    Attributes:
        posterior: ``mode``; ``sample``, drawn once per image from ``seed``; or ``moments``, the mean
            and log-variance of a Gaussian posterior.
        flip: whether latents of the mirrored images (clips, videos) are stored too.
        dtype: what latents are stored in.
        precision: what they are computed in.
        seed: of the samples.
        shard_size: images or clips per shard; whole videos have a file each.
    """

    posterior: PosteriorUse = "mode"
    flip: bool = False
    dtype: StoredType = "fp32"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    shard_size: int = at_least(1, default=4096)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors of latents in a file."""
        names = ("mean", "logvar") if self.posterior == "moments" else ("latent",)
        return names + tuple(f"{name}_flipped" for name in names if self.flip)


@frozen(kw_only=True)
class Plan:
    """What a folder of latents of images, or of clips of one length, is to hold; known before the
    first one is encoded.

    Attributes:
        settings: what decides the values.
        tokenizer: ``path`` and ``sha256`` of what encodes; the path does not count as different.
        data: the dataset's fields, for people.
        location: where the images come from, in words.
        num_images: images or clips of the source, usable or not.
        image_size: side of the crops, in pixels.
        crop: how images become crops, in words.
        latent_shape: (C, h, w) of images, (C, t, h, w) of clips.
        frames: of a clip; 0 where these are latents of images.
        labelled: whether labels are stored.
        label_names: name of every label, by its number; empty where unknown.
        source: what tells the dataset from others, see ``rpiae.core.config.identity``.
        epoch: of the code that encodes.
        format: of the files; those of earlier ones have neither source nor epoch.
    """

    settings: Settings
    tokenizer: Mapping[str, str]
    data: Mapping[str, Any]
    location: str
    num_images: int
    image_size: int
    crop: str
    latent_shape: tuple[int, ...]
    labelled: bool
    label_names: tuple[str, ...] = ()
    frames: int = 0
    source: Mapping[str, Any] = field(factory=dict)
    epoch: int = EPOCH
    format: int = FORMAT

    @property
    def contents(self) -> str:
        """What these are latents of, in a word."""
        return "clips" if self.frames else "images"

    @property
    def num_files(self) -> int:
        """How many shards there are in the end."""
        return -(-self.num_images // self.settings.shard_size)

    def shard(self, number: int) -> range:
        """Positions in the source of a shard's images."""
        first = number * self.settings.shard_size
        return range(first, min(first + self.settings.shard_size, self.num_images))

    def file(self, number: int) -> str:
        """Name of a shard's file."""
        return f"latents-{number:05}-of-{self.num_files:05}.safetensors"

    def identity(self) -> dict[str, Any]:
        """All that two calls must agree in to write into one folder."""
        settings = asdict(self.settings)
        if self.settings.posterior != "sample":
            del settings["seed"]
        return {
            **settings,
            "tokenizer": self.tokenizer["sha256"],
            "data": dict(self.source),
            "num_images": self.num_images,
            "image_size": self.image_size,
            "crop": self.crop,
            "labelled": self.labelled,
            "label_names": list(self.label_names),
            "epoch": self.epoch,
            **self._of_clips(),
        }

    def digest(self) -> str:
        """A name for the identity, as every shard carries it."""
        return digest(self.identity())

    def as_tree(self) -> dict[str, Any]:
        """As it stands in the index."""
        return {
            "format": self.format,
            "tokenizer": dict(self.tokenizer),
            "data": dict(self.data),
            "location": self.location,
            "num_images": self.num_images,
            "image_size": self.image_size,
            "crop": self.crop,
            "latent_shape": list(self.latent_shape),
            "labelled": self.labelled,
            "label_names": list(self.label_names),
            "settings": asdict(self.settings),
            "source": dict(self.source),
            "epoch": self.epoch,
            **self._of_clips(),
        }

    def _of_clips(self) -> dict[str, Any]:
        """What clips have and images do not."""
        return {"frames": self.frames} if self.frames else {}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Plan:
        """Inverse of ``as_tree``; other keys are left alone."""
        values = {a.name: tree[a.name] for a in fields(cls) if a.name in tree}
        values["settings"] = Settings(**tree["settings"])
        values["latent_shape"] = tuple(tree["latent_shape"])
        values["label_names"] = tuple(tree["label_names"])
        return cls(**values)


def tree_digest(tree: Mapping[str, Any]) -> str:
    """sha256 of a JSON object without its own ``sha256``, however it is spaced and ordered."""
    rest = {name: value for name, value in tree.items() if name != "sha256"}
    return digest(rest)


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of a tensor's values as they are stored."""
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, tuple[tuple[int, ...], str]]]:
    """What a shard says of itself, and shape and type of its tensors.

    Raises:
        CheckpointError: if it is missing, cut short, or no shard of ours.
    """
    try:
        open_regular(path).close()
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "null"))
            tensors = {}
            for name in file.keys():  # noqa: SIM118  # not a dict
                part = file.get_slice(name)
                tensors[name] = (tuple(part.get_shape()), str(part.get_dtype()))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path} is no shard that rpiae encode wrote")
    return metadata, tensors


def check_shard(plan: Plan, folder: Path, number: int, *, sha256: str = "") -> dict[str, Any]:
    """What a complete shard of a plan says of itself; of its tensors, types and shapes are checked.

    Args:
        plan: what the folder holds.
        folder: where it is.
        number: the shard.
        sha256: what the index says of it, where there is one.

    Raises:
        CheckpointError: if it is missing, damaged, or not of this plan.
    """
    path = folder / plan.file(number)
    metadata, tensors = read_header(path)
    checked = plan.format != UNCHECKED_FORMAT
    if checked:
        found_digest = tree_digest(metadata)
        if metadata.get("sha256") != found_digest or sha256 not in ("", found_digest):
            raise CheckpointError(f"{path} is damaged: its header is not what was written")
    try:
        skipped = {row["position"] for row in metadata["skipped"]}
        names, found = metadata["names"], metadata["plan"]
        count = int(metadata["statistics"]["count"])
        digests = set(metadata["tensors"]) if checked else set(tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    foreign = plan.format >= FORMAT and found != plan.digest()
    if foreign or metadata.get("shard") != number:
        raise CheckpointError(f"{path} is a shard of other latents")
    n = len(names)
    per_image = math.prod(plan.latent_shape[1:]) * (2 if plan.settings.flip else 1)
    stored = STORED_NAMES[plan.settings.dtype]
    shape: tuple[int, ...] = (n, *plan.latent_shape)
    wanted = dict.fromkeys(plan.settings.tensors, (shape, stored))
    wanted["position"] = ((n,), "I64")
    if plan.labelled:
        wanted["label"] = ((n,), "I64")
    rates = metadata.get("rates", [])
    timed = len(rates) == (n if plan.frames else 0) and all(map(is_rate, rates))
    complete = timed and n + len(skipped) == len(plan.shard(number)) and count == n * per_image
    if tensors != wanted or digests != set(wanted) or not complete:
        raise CheckpointError(f"{path} is damaged: its tensors are not those that it should hold")
    return metadata


def is_rate(value: Any) -> bool:
    """Whether a value is frames per second as a fraction, such as ``30000/1001``."""
    return isinstance(value, str) and RATE.fullmatch(value) is not None


def check_tensor(path: Path, file: Any, name: str, metadata: Mapping[str, Any]) -> None:
    """Refuse a tensor of a shard that is not what was written.

    Args:
        path: the shard.
        file: it, opened by safetensors.
        name: the tensor.
        metadata: what the shard says of itself.

    Raises:
        CheckpointError: if not.
    """
    try:
        found = tensor_digest(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if found != metadata["tensors"][name]:
        raise CheckpointError(f"{path} is damaged: its {name} is not what was written")


def check_content(plan: Plan, folder: Path, number: int) -> dict[str, Any]:
    """What a shard says of itself, after all of it was read and checked.

    Raises:
        CheckpointError: if it is missing, damaged, or not of this plan.
    """
    metadata, path = check_shard(plan, folder, number), folder / plan.file(number)
    with safe_open(path, "pt") as file:
        for name in metadata["tensors"]:
            check_tensor(path, file, name, metadata)
    return metadata
