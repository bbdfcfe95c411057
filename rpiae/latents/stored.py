"""Latents on disk as a sequence of items, whatever their files are."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.latents.layout import UNCHECKED_FORMAT, Plan, check_shard, check_tensor

WRITE_AGAIN = (
    "Call rpiae encode again with the same arguments: it writes what is missing or damaged"
)


class Stored(Protocol):
    """Items of latents.

    Attributes:
        latent_shape: of an item, without its batch; 0 where items differ.
        labels: (n,), int64; −1 where an item has none.
    """

    latent_shape: tuple[int, ...]
    labels: Tensor

    @property
    def positions(self) -> Tensor:
        """Index in the source of what each item is of, (n,), int64."""

    def __len__(self) -> int: ...

    def read(self, index: int, name: str) -> Tensor:
        """An item of one of the stored tensors.

        Raises:
            CheckpointError: if it cannot be read, or is not what was written.
        """

    def name(self, index: int) -> str:
        """What the source calls what an item is of."""

    def rate(self, index: int) -> Fraction | None:
        """Frames per second of what an item is of; None of an image."""

    def verify(self) -> None:
        """Read everything and compare it with its digests, so that no later reader has to."""

    def in_order(self, name: str, size: int, limit: int) -> Iterator[tuple[Tensor, list[str]]]:
        """Items of a tensor, at most ``size`` at a time, with their names."""


class Shards:
    """Latents of images or clips, in shards that are memory-mapped.

    Args:
        folder: of the latents.
        plan: what it holds.
        index: its index, complete.

    Raises:
        CheckpointError: if a shard is missing or damaged.
    """

    def __init__(self, folder: Path, plan: Plan, index: Mapping[str, Any]) -> None:
        self._folder = folder
        self._plan = plan
        self._index = index
        self.latent_shape = plan.latent_shape
        counts = [len(self._metadata(number)["names"]) for number in range(plan.num_files)]
        self._starts = np.cumsum([0, *counts])
        self._files: dict[int, Any] = {}
        self._names: dict[int, list[str]] = {}
        self._rates: dict[int, list[str]] = {}
        self._checked: set[tuple[int, str]] = set()
        self.labels = torch.full((len(self),), -1)
        if plan.labelled:
            self.labels = self._all("label")

    @functools.cached_property
    def positions(self) -> Tensor:
        """Index of each image or clip in the source."""
        return self._all("position")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def read(self, index: int, name: str) -> Tensor:
        """An item of a tensor, (C, h, w) or (C, t, h, w)."""
        number, row = self._locate(index)
        item: Tensor = self._stored(number, name)[row]
        return item

    def name(self, index: int) -> str:
        """What the source calls an image or clip."""
        number, row = self._locate(index)
        return self._names_of(number)[row]

    def rate(self, index: int) -> Fraction | None:
        """Frames per second of a clip; None of images."""
        if not self._plan.frames:
            return None
        number, row = self._locate(index)
        if number not in self._rates:
            self._rates[number] = self._metadata(number)["rates"]
        return Fraction(self._rates[number][row])

    def verify(self) -> None:
        """Read everything and compare it with its digests."""
        for number in range(self._plan.num_files):
            for name in self._metadata(number).get("tensors", ()):
                self._stored(number, name)

    def in_order(self, name: str, size: int, limit: int) -> Iterator[tuple[Tensor, list[str]]]:
        """Items of a tensor, at most ``size`` at a time, with their names."""
        left = limit
        for number in range(self._plan.num_files):
            if not left:
                return
            names = self._names_of(number)
            stored = self._stored(number, name)
            count = min(len(names), left)
            for start in range(0, count, size):
                stop = min(start + size, count)
                yield stored[start:stop], names[start:stop]
            left -= count

    def _all(self, name: str) -> Tensor:
        """A tensor of numbers of all shards."""
        return torch.cat([self._stored(number, name)[:] for number in range(self._plan.num_files)])

    def _locate(self, index: int) -> tuple[int, int]:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])

    def _names_of(self, number: int) -> list[str]:
        if number not in self._names:
            self._names[number] = self._metadata(number)["names"]
        return self._names[number]

    def _metadata(self, number: int) -> dict[str, Any]:
        """What a shard says of itself."""
        sha256 = self._index["shards"][number].get("sha256", "")
        try:
            return check_shard(self._plan, self._folder, number, sha256=sha256)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {WRITE_AGAIN}") from None

    def _stored(self, number: int, name: str) -> Any:
        """A tensor of a shard, of which nothing is in memory yet; checked the first time."""
        file = self._file(number)
        checked = self._plan.format != UNCHECKED_FORMAT
        if checked and (number, name) not in self._checked:
            path = self._folder / self._plan.file(number)
            try:
                check_tensor(path, file, name, self._metadata(number))
            except CheckpointError as error:
                raise CheckpointError(f"{error}. {WRITE_AGAIN}") from None
            self._checked.add((number, name))
        return file.get_slice(name)

    def _file(self, number: int) -> Any:
        if number not in self._files:
            path = self._folder / self._plan.file(number)
            try:
                self._files[number] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from None
        return self._files[number]
