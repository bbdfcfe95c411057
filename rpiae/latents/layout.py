"""The files of a folder of latents: shards and their index. ``docs/latents.md`` is the reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from attrs import asdict, field, fields, frozen
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.config.fields import at_least, within
from rpiae.core.config.identity import EPOCH, digest
from rpiae.core.errors import CheckpointError, ConfigError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import shown

#: What is written. Earlier formats are still read: 2, of which nobody knows what its images were, and
#: 1, without digests.
FORMAT = 3
EARLIER_FORMATS = (1, 2)
UNCHECKED_FORMAT = 1
INDEX_FILE = "index.json"
METADATA = "rpiae"

PosteriorUse = Literal["mode", "sample", "moments"]
StoredType = Literal["fp32", "bf16", "fp16"]

DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@frozen(kw_only=True)
class Settings:
    """What decides the values in a folder of latents; part of its index.

    Attributes:
        posterior: ``mode``; ``sample``, drawn once per image from ``seed``; or ``moments``, the mean
            and log-variance of a Gaussian posterior.
        flip: whether latents of the mirrored images are stored too.
        dtype: what latents are stored in.
        precision: what they are computed in.
        seed: of the samples.
        shard_size: images per shard.
    """

    posterior: PosteriorUse = "mode"
    flip: bool = False
    dtype: StoredType = "fp32"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    shard_size: int = at_least(1, default=4096)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors (n, C, h, w) of a shard."""
        names = ("mean", "logvar") if self.posterior == "moments" else ("latent",)
        return names + tuple(f"{name}_flipped" for name in names if self.flip)


@frozen(kw_only=True)
class Plan:
    """What a folder of latents is to hold; known before the first image is encoded.

    Attributes:
        settings: what decides the values.
        tokenizer: ``path`` and ``sha256`` of what encodes; the path does not count as different.
        data: the dataset's fields, for people.
        location: where the images come from, in words.
        num_images: images of the source, usable or not.
        image_size: side of the crops, in pixels.
        crop: how images become crops, in words.
        latent_shape: (C, h, w).
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
    latent_shape: tuple[int, int, int]
    labelled: bool
    label_names: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(factory=dict)
    epoch: int = EPOCH
    format: int = FORMAT

    @property
    def num_shards(self) -> int:
        """How many shards there are in the end."""
        return -(-self.num_images // self.settings.shard_size)

    def shard(self, number: int) -> range:
        """Positions in the source of a shard's images."""
        first = number * self.settings.shard_size
        return range(first, min(first + self.settings.shard_size, self.num_images))

    def shard_file(self, number: int) -> str:
        """File name of a shard."""
        return f"latents-{number:05}-of-{self.num_shards:05}.safetensors"

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
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Plan:
        """Inverse of ``as_tree``; other keys are left alone."""
        values = {a.name: tree[a.name] for a in fields(cls) if a.name in tree}
        values["settings"] = Settings(**tree["settings"])
        values["latent_shape"] = tuple(tree["latent_shape"])
        values["label_names"] = tuple(tree["label_names"])
        return cls(**values)


@frozen(kw_only=True)
class _Tokenizer:
    path: str
    sha256: str


@frozen(kw_only=True)
class _Shard:
    file: str
    count: int = at_least(0)
    sha256: str = ""


@frozen(kw_only=True)
class _Statistics:
    count: int = at_least(1)
    mean: tuple[float, ...]
    std: tuple[float, ...]


@frozen(kw_only=True)
class _Skipped:
    position: int = at_least(0)
    name: str
    reason: str


@frozen(kw_only=True)
class _Index:
    """What ``index.json`` may hold; see ``docs/latents.md``."""

    format: int
    rpiae: str
    tokenizer: _Tokenizer
    data: dict[str, Any]
    location: str
    num_images: int = at_least(1)
    image_size: int = within(1, 65_536)
    crop: str
    latent_shape: tuple[int, int, int] = at_least(1)
    labelled: bool
    label_names: tuple[str, ...]
    settings: Settings
    source: dict[str, Any] = field(factory=dict)
    epoch: int = 0
    complete: bool
    count: int = at_least(0, default=0)
    statistics: _Statistics | None = None
    shards: tuple[_Shard, ...] = ()
    skipped: tuple[_Skipped, ...] = ()
    sha256: str = ""


def read_index(folder: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan of a folder of latents, and its whole index.

    Raises:
        CheckpointError: if there is none, or it is damaged, of another format, or names other files
            than those of its shards.
    """
    path = folder / INDEX_FILE
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist; rpiae encode makes a folder of latents")
    try:
        with open_regular(path) as file:
            tree = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no latents: there is no {INDEX_FILE} in it; rpiae encode writes one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    version = tree.get("format") if isinstance(tree, dict) else None
    if version not in (*EARLIER_FORMATS, FORMAT) or isinstance(version, bool):
        earlier = ", ".join(map(str, EARLIER_FORMATS))
        raise CheckpointError(
            f"{path} has latent format {shown(version)}, this rpiae reads formats {earlier} and {FORMAT}"
        )
    if tree.get("sha256") != (None if version == UNCHECKED_FORMAT else tree_digest(tree)):
        raise CheckpointError(f"{path} is damaged: its content is not what its sha256 was made of")
    try:
        index = parse(tree, _Index, source=str(path), converter=_CONVERTER)
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged: {' · '.join(error.problems)}") from None
    plan = Plan.from_tree(tree)
    if index.complete:
        _check_complete(plan, index, path)
    return plan, tree


def _check_complete(plan: Plan, index: _Index, path: Path) -> None:
    """Refuse a complete index that contradicts itself."""
    statistics, channels = index.statistics, plan.latent_shape[0]
    fine = (
        statistics is not None
        and len(statistics.mean) == len(statistics.std) == channels
        and len(index.shards) == plan.num_shards
        and sum(shard.count for shard in index.shards) == index.count
        and index.count + len(index.skipped) == plan.num_images
    )
    if not fine:
        raise CheckpointError(f"{path} is damaged: its counts contradict each other")
    for number, shard in enumerate(index.shards):
        if shard.file != plan.shard_file(number):
            raise CheckpointError(
                f"{path} is damaged: shard {number} is {plan.shard_file(number)}, not "
                f"{shown(shard.file)}"
            )


_CONVERTER = make_converter()


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
    path = folder / plan.shard_file(number)
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
    foreign = plan.format == FORMAT and found != plan.digest()
    if foreign or metadata.get("shard") != number:
        raise CheckpointError(f"{path} is a shard of other latents")
    n = len(names)
    per_image = plan.latent_shape[1] * plan.latent_shape[2] * (2 if plan.settings.flip else 1)
    stored = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}[plan.settings.dtype]
    shape: tuple[int, ...] = (n, *plan.latent_shape)
    wanted = dict.fromkeys(plan.settings.tensors, (shape, stored))
    wanted["position"] = ((n,), "I64")
    if plan.labelled:
        wanted["label"] = ((n,), "I64")
    complete = n + len(skipped) == len(plan.shard(number)) and count == n * per_image
    if tensors != wanted or digests != set(wanted) or not complete:
        raise CheckpointError(f"{path} is damaged: its tensors are not those that it should hold")
    return metadata


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
    metadata, path = check_shard(plan, folder, number), folder / plan.shard_file(number)
    with safe_open(path, "pt") as file:
        for name in metadata["tensors"]:
            check_tensor(path, file, name, metadata)
    return metadata
