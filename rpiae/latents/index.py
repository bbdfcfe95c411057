"""The index of a folder of latents: read, checked, and written whole."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from attrs import field, frozen

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.config.fields import at_least, within
from rpiae.core.errors import CheckpointError, ConfigError, RunError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import shown
from rpiae.latents.layout import (
    EARLIER_FORMATS,
    FORMAT,
    INDEX_FILE,
    TIME_FORMAT,
    UNCHECKED_FORMAT,
    UNFINISHED,
    Plan,
    Settings,
    is_rate,
    tree_digest,
)
from rpiae.latents.video.layout import VIDEOS, StoredVideo, VideoPlan

AnyPlan: TypeAlias = Plan | VideoPlan

T = TypeVar("T")

_CONVERTER = make_converter()


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
    """What ``index.json`` may hold of images and clips; see ``docs/latents.md``."""

    format: int
    rpiae: str
    tokenizer: _Tokenizer
    data: dict[str, Any]
    location: str
    num_images: int = at_least(1)
    image_size: int = within(1, 65_536)
    crop: str
    latent_shape: tuple[int, ...] = at_least(1)
    frames: int = at_least(0, default=0)
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


@frozen(kw_only=True)
class _VideoIndex:
    """What ``index.json`` may hold of whole videos; see ``docs/latents.md``."""

    format: int
    contents: str
    rpiae: str
    tokenizer: _Tokenizer
    data: dict[str, Any]
    location: str
    num_videos: int = at_least(1)
    scale: str
    tile: int = at_least(0)
    channels: int = at_least(1)
    temporal_downsampling: int = at_least(1)
    settings: Settings
    source: dict[str, Any]
    epoch: int
    complete: bool
    count: int = at_least(0, default=0)
    statistics: _Statistics | None = None
    videos: tuple[StoredVideo, ...] = ()
    skipped: tuple[_Skipped, ...] = ()
    sha256: str


def read_index(folder: Path) -> tuple[AnyPlan, dict[str, Any]]:
    """The plan of a folder of latents, and its whole index.

    Raises:
        CheckpointError: if there is none, or it is damaged, of another format, or names other files
            than its own.
    """
    path = folder / INDEX_FILE
    tree = _read(folder, path)
    if tree.get("contents") == VIDEOS:
        videos = _parsed(tree, _VideoIndex, path)
        _check_format(path, videos.format, TIME_FORMAT)
        video_plan = VideoPlan.from_tree(tree)
        if videos.complete:
            _check_complete_videos(video_plan, videos, path)
        return video_plan, tree
    index = _parsed(tree, _Index, path)
    if len(index.latent_shape) != (4 if index.frames else 3):
        raise CheckpointError(
            f"{path} is damaged: its latent_shape has {len(index.latent_shape)} sides"
        )
    _check_format(
        path, index.format, *((TIME_FORMAT,) if index.frames else (*EARLIER_FORMATS, FORMAT))
    )
    plan = Plan.from_tree(tree)
    if index.complete:
        _check_complete(plan, index, path)
    return plan, tree


def stored_videos(tree: Any, path: Path) -> tuple[StoredVideo, ...]:
    """The videos that a complete index lists."""
    return _parsed(tree, _VideoIndex, path).videos


def _check_format(path: Path, given: int, *possible: int) -> None:
    """Refuse a format that has other contents."""
    if given not in possible:
        raise CheckpointError(f"{path} is damaged: latents of its kind are not of format {given}")


def _read(folder: Path, path: Path) -> dict[str, Any]:
    """An index that is the one that was written, of a format that is read."""
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
    if version not in (*EARLIER_FORMATS, FORMAT, TIME_FORMAT) or isinstance(version, bool):
        earlier = ", ".join(map(str, (*EARLIER_FORMATS, FORMAT)))
        raise CheckpointError(
            f"{path} has latent format {shown(version)}, this rpiae reads formats {earlier} and "
            f"{TIME_FORMAT}"
        )
    if tree.get("sha256") != (None if version == UNCHECKED_FORMAT else tree_digest(tree)):
        raise CheckpointError(f"{path} is damaged: its content is not what its sha256 was made of")
    return tree  # type: ignore[no-any-return]  # an object, as it has a format


def _parsed(tree: Any, cls: type[T], path: Path) -> T:
    try:
        return parse(tree, cls, source=str(path), converter=_CONVERTER)
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged: {' · '.join(error.problems)}") from None


def _check_complete(plan: Plan, index: _Index, path: Path) -> None:
    """Refuse a complete index that contradicts itself."""
    statistics, channels = index.statistics, plan.latent_shape[0]
    fine = (
        statistics is not None
        and len(statistics.mean) == len(statistics.std) == channels
        and len(index.shards) == plan.num_files
        and sum(shard.count for shard in index.shards) == index.count
        and index.count + len(index.skipped) == plan.num_images
    )
    if not fine:
        raise CheckpointError(f"{path} is damaged: its counts contradict each other")
    for number, shard in enumerate(index.shards):
        if shard.file != plan.file(number):
            raise CheckpointError(
                f"{path} is damaged: shard {number} is {plan.file(number)}, not {shown(shard.file)}"
            )


def _check_complete_videos(plan: VideoPlan, index: _VideoIndex, path: Path) -> None:
    """Refuse a complete index of videos that contradicts itself."""
    statistics, rows = index.statistics, index.videos
    positions = [row.position for row in rows] + [row.position for row in index.skipped]
    fine = (
        statistics is not None
        and len(statistics.mean) == len(statistics.std) == plan.channels
        and len(rows) == index.count
        and len(positions) == plan.num_videos
        and sorted(positions) == list(range(len(positions)))
    )
    if not fine:
        raise CheckpointError(f"{path} is damaged: its counts contradict each other")
    for row in rows:
        channels, steps, *_ = row.latent_shape
        if row.file != plan.file(row.position):
            raise CheckpointError(
                f"{path} is damaged: video {row.position} is {plan.file(row.position)}, not "
                f"{shown(row.file)}"
            )
        if (channels, steps) != (plan.channels, plan.latent_steps(row.frames)) or not is_rate(
            row.rate
        ):
            raise CheckpointError(f"{path} is damaged: what it says of {row.file} cannot be")


def write_index(folder: Path, plan: AnyPlan, **more: Any) -> dict[str, Any]:
    """Write the index of a plan whole, and give what it says.

    Args:
        folder: where to.
        plan: what the folder holds.
        more: further keys.

    Raises:
        RunError: if it cannot be written.
    """
    path = folder / INDEX_FILE
    part = path.with_name(f".{path.name}{UNFINISHED}")
    index = {
        "rpiae": importlib.metadata.version("rpiae"),
        **plan.as_tree(),
        **more,
    }
    index["sha256"] = tree_digest(index)
    try:
        part.write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.rename(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    return index
