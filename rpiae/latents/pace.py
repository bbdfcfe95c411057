"""How far several processes are that write the files of one folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from attrs import frozen

#: Seconds between two looks at what other processes have written.
GLANCE = 0.5


@frozen(kw_only=True)
class Progressed:
    """Images that are done in all processes.

    Attributes:
        done, total: images.
        images_per_second: of this session, in all processes.
        remaining_seconds: at this rate.
    """

    done: int
    total: int
    images_per_second: float
    remaining_seconds: float


class Pieces(Protocol):
    """Many samples in numbered files, each made by one process."""

    @property
    def num_images(self) -> int:
        """All samples."""

    def file(self, number: int) -> str:
        """Name of a file."""

    def shard(self, number: int) -> range:
        """The samples in it."""


class Pace:
    """How far all processes are, as the first one sees it.

    Args:
        plan: what is made.
        folder: where its files come to lie.
        others: files of the other processes.
        kept: files of this one that are complete already.

    Attributes:
        done: samples of this process that are.
    """

    def __init__(self, plan: Pieces, folder: Path, *, others: list[int], kept: list[int]) -> None:
        self._plan = plan
        self._folder = folder
        self._waiting = others
        self._elsewhere = 0
        self._glanced = 0.0
        self.done = sum(len(plan.shard(number)) for number in kept)
        self.others_are_done()
        self._started = time.perf_counter()
        self._before: int | None = None

    def others_are_done(self) -> bool:
        """Whether all shards of the other processes are there."""
        there = [n for n in self._waiting if (self._folder / self._plan.file(n)).exists()]
        self._elsewhere += sum(len(self._plan.shard(number)) for number in there)
        self._waiting = [number for number in self._waiting if number not in there]
        self._glanced = time.perf_counter()
        return not self._waiting

    def start(self) -> None:
        """Count what is done from here on."""
        self._before = self.done + self._elsewhere
        self._started = time.perf_counter()

    def progressed(self) -> Progressed:
        """Where things are."""
        now = time.perf_counter()
        if self._waiting and now - self._glanced > GLANCE:
            self.others_are_done()
        done = self.done + self._elsewhere
        total = self._plan.num_images
        rate = (done - (self._before or 0)) / max(now - self._started, 1e-9)
        return Progressed(
            done=done, total=total, images_per_second=rate,
            remaining_seconds=(total - done) / rate if rate else float("inf"),
        )  # fmt: skip
