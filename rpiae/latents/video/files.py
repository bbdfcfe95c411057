"""The file of a video's latents: written step by step, read window by window.

A safetensors file whose tensors are (C, t, h, w). How long the video is shows at its end, so the steps
are first written one after the other into a file beside it, in blocks of ``STEPS_PER_DIGEST``. Each block
has a digest of its own: a window is checked without reading the rest.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rpiae.core.errors import CheckpointError, RunError
from rpiae.core.runtime.files import replace_durably
from rpiae.latents.layout import (
    DTYPES,
    METADATA,
    STORED_NAMES,
    UNFINISHED,
    StoredType,
    is_rate,
    read_header,
    tensor_digest,
    tree_digest,
)
from rpiae.latents.statistics import ChannelStatistics
from rpiae.latents.video.layout import STEPS_PER_DIGEST, VideoPlan

#: Where a safetensors file's header has free text.
METADATA_KEY = "__metadata__"


class LatentFile:
    """The latents of one video on their way to disk, in bounded memory.

    Args:
        path: of the file in the end.
        names: its tensors.
        dtype: what they are stored in.

    Attributes:
        steps: latent steps so far.
    """

    def __init__(self, path: Path, names: Sequence[str], dtype: StoredType) -> None:
        self._path = path
        self._names = tuple(names)
        self._dtype = dtype
        self._part = path.with_name(f".{path.name}{UNFINISHED}")
        self._spooled = path.with_name(f".{path.name}.steps{UNFINISHED}")
        self._spool: BinaryIO | None = None
        self._pending: list[dict[str, Tensor]] = []
        self._digests: dict[str, list[str]] = {name: [] for name in self._names}
        self._shape: tuple[int, int, int] | None = None
        self.steps = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add steps: (C, k, h, w) of every name, on CPU, in the stored type.

        Raises:
            RunError: if they cannot be written.
        """
        c, count, *sides = tensors[self._names[0]].shape
        self._shape = (c, *sides)  # type: ignore[assignment]  # three numbers
        for step in range(count):
            self._pending.append({name: tensors[name][:, step] for name in self._names})
            self.steps += 1
            if len(self._pending) == STEPS_PER_DIGEST:
                self._flush()

    def finish(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Write the file whole, under its own name, and give what its header says.

        Args:
            described: what it says of itself, besides digests.

        Raises:
            RunError: if it cannot be written.
        """
        self._flush()
        header = dict(described) | {"tensors": self._digests if self.steps else {}}
        header["sha256"] = tree_digest(header)
        try:
            with self._part.open("wb") as file:
                self._write(file, header)
            replace_durably(self._part, self._path)
        except OSError as error:
            raise self._failed(error) from None
        finally:
            self.discard()
        return header

    def discard(self) -> None:
        """Leave nothing unfinished behind."""
        if self._spool is not None:
            self._spool.close()
        for path in (self._spooled, self._part):
            with contextlib.suppress(OSError):
                path.unlink()

    def _flush(self) -> None:
        """Append the pending steps to those on disk, as a block (C, k, h, w) of every name."""
        if not self._pending:
            return
        try:
            if self._spool is None:
                self._spool = self._spooled.open("w+b")
            for name in self._names:
                block = torch.stack([step[name] for step in self._pending], dim=1)
                self._digests[name].append(tensor_digest(block))
                self._spool.write(_bytes(block))
        except OSError as error:
            self.discard()
            raise self._failed(error) from None
        self._pending.clear()

    def _write(self, file: BinaryIO, header: Mapping[str, Any]) -> None:
        """The safetensors format: length of the header, header, tensors one after the other."""
        length = self._bytes_per_step * self.steps
        table: dict[str, Any] = {METADATA_KEY: {METADATA: json.dumps(header)}}
        if self._shape is not None:
            c, h, w = self._shape
            for number, name in enumerate(self._names):
                table[name] = {
                    "dtype": STORED_NAMES[self._dtype],
                    "shape": [c, self.steps, h, w],
                    "data_offsets": [number * length, (number + 1) * length],
                }
        text = json.dumps(table).encode()
        text += b" " * (-len(text) % 8)
        file.write(len(text).to_bytes(8, "little") + text)
        if self._shape is not None:
            self._write_tensors(file, start=file.tell(), length=length)

    def _write_tensors(self, file: BinaryIO, *, start: int, length: int) -> None:
        """Put the blocks on disk to their places: channel c of a block lies behind channel c of those
        before it."""
        assert self._spool is not None
        assert self._shape is not None
        self._spool.seek(0)
        channels = self._shape[0]
        row = self._bytes_per_step // channels
        for first in range(0, self.steps, STEPS_PER_DIGEST):
            width = row * min(STEPS_PER_DIGEST, self.steps - first)
            for number in range(len(self._names)):
                for channel in range(channels):
                    file.seek(start + number * length + (channel * self.steps + first) * row)
                    file.write(self._spool.read(width))

    @property
    def _bytes_per_step(self) -> int:
        return math.prod(self._shape or (0,)) * DTYPES[self._dtype].itemsize

    def _failed(self, error: OSError) -> RunError:
        return RunError(
            f"cannot write {self._path}: {error.strerror or error}. Videos that are complete stay; "
            "free some space and call again to go on"
        )


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def check_header(plan: VideoPlan, folder: Path, number: int, *, sha256: str = "") -> dict[str, Any]:
    """What the complete file of a video says of itself; its tensors' types and shapes are checked.

    Args:
        plan: what the folder holds.
        folder: where it is.
        number: the video's position.
        sha256: what the index says of it, where there is one.

    Raises:
        CheckpointError: if it is missing, damaged, or not of this plan.
    """
    path = folder / plan.file(number)
    metadata, tensors = read_header(path)
    found = tree_digest(metadata)
    if metadata.get("sha256") != found or sha256 not in ("", found):
        raise CheckpointError(f"{path} is damaged: its header is not what was written")
    if metadata.get("plan") != plan.digest() or metadata.get("position") != number:
        raise CheckpointError(f"{path} is of other latents")
    skipped = "skipped" in metadata
    texts = ("name", "skipped") if skipped else ("name", "problem")
    try:
        fine = all(isinstance(metadata[text], str) for text in texts) and (
            skipped or _holds_all(plan, metadata, tensors)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    if not fine:
        raise CheckpointError(f"{path} is damaged: its tensors are not those that it should hold")
    return metadata


def _holds_all(
    plan: VideoPlan,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], str]],
) -> bool:
    """Whether the file of a video has just the tensors that it should, and a digest per block."""
    channels, steps, h, w = shape = tuple(metadata["latent_shape"])
    names = plan.settings.tensors
    blocks = -(-steps // STEPS_PER_DIGEST)
    values = steps * h * w * (2 if plan.settings.flip else 1)
    statistics = ChannelStatistics.from_tree(metadata["statistics"])
    return (
        tensors == dict.fromkeys(names, (shape, STORED_NAMES[plan.settings.dtype]))
        and set(metadata["tensors"]) == set(names)
        and all(len(digests) == blocks for digests in metadata["tensors"].values())
        and (channels, steps) == (plan.channels, plan.latent_steps(metadata["frames"]))
        and statistics.count == values
        and len(statistics.mean) == len(statistics.squares) == channels
        and all(metadata[side] >= 1 for side in ("frames", "height", "width"))
        and is_rate(metadata["rate"])
    )


class StoredLatents:
    """The latents of one video on disk, opened when they are first read.

    Args:
        path: the file.
        metadata: what it says of itself, checked.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._digests: Mapping[str, Sequence[str]] = metadata["tensors"]
        self._steps: int = metadata["latent_shape"][1] if self._digests else 0
        self._checked: set[tuple[str, int]] = set()

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Steps (C, stop − start, h, w) of a tensor; blocks that are read for the first time are
        compared with their digests.

        Raises:
            CheckpointError: if they cannot be read, or are not what was written.
        """
        blocks = range(start // STEPS_PER_DIGEST, -(-stop // STEPS_PER_DIGEST))
        unchecked = [block for block in blocks if (name, block) not in self._checked]
        first, last = (blocks[0], blocks[-1] + 1) if unchecked else (0, 0)
        lower = first * STEPS_PER_DIGEST if unchecked else start
        upper = min(last * STEPS_PER_DIGEST, self._steps) if unchecked else stop
        try:
            with safe_open(self._path, "pt") as file:
                values: Tensor = file.get_slice(name)[:, lower:upper]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._path} cannot be read: {error}") from None
        for block in unchecked:
            self._check(name, block, values[:, block * STEPS_PER_DIGEST - lower :])
        return values[:, start - lower : stop - lower]

    def verify(self) -> None:
        """Read and check all of it, block by block.

        Raises:
            CheckpointError: if it cannot be read, or is not what was written.
        """
        for name in self._digests:
            for start in range(0, self._steps, STEPS_PER_DIGEST):
                self.read(name, start, min(start + STEPS_PER_DIGEST, self._steps))

    def _check(self, name: str, block: int, values: Tensor) -> None:
        if tensor_digest(values[:, :STEPS_PER_DIGEST]) != self._digests[name][block]:
            raise CheckpointError(
                f"{self._path} is damaged: its {name} is not what was written, in steps from "
                f"{block * STEPS_PER_DIGEST}"
            )
        self._checked.add((name, block))
