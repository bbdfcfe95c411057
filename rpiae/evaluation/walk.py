"""Walks over sets of images or clips, shared between processes, and what was walked over."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from rpiae.core.errors import DataError, UsageError
from rpiae.core.runtime.processes import Runtime
from rpiae.data.orders import sampled
from rpiae.evaluation.accumulators import merge
from rpiae.evaluation.images import ImageSet, Loaded

#: Share of the images measured on that may be among the training images: real datasets have doubles.
MOST_SHARED = 0.02


@frozen(kw_only=True)
class Progress:
    """How far a walk is.

    Attributes:
        what: what the images are for.
        done, total: images, or clips.
        seconds: since this part began.
        unit: which of the two.
    """

    what: str
    done: int
    total: int
    seconds: float
    unit: str = "images"


class Walk:
    """A walk over the pictures of a set, shared between processes.

    Args:
        images: the set.
        count: how many are looked at, drawn at random but always the same; all where not given.
        batch_size: images at a time; more where the tiles of one picture are more.
        runtime: device and processes.
        recognised: whether images are told by their pixels, which ``protocol`` and ``shared_with`` need.

    Attributes:
        skipped: why images could not be used, each reason once; after ``protocol`` of all processes.
    """

    def __init__(
        self,
        images: ImageSet,
        count: int | None = None,
        *,
        batch_size: int,
        runtime: Runtime,
        recognised: bool = True,
    ) -> None:
        self._images = images
        self._runtime = runtime
        self._size = max(1, batch_size // images.tiles)
        self._own = sampled(len(images), count or len(images))[
            runtime.rank :: runtime.num_processes
        ]
        self._hashes = _Hashes() if recognised else None
        self._protocol: dict[str, Any] = {}
        self.skipped: list[str] = []

    def batches(self, what: str, progress: Callable[[Progress], None]) -> Iterator[Loaded]:
        """This process's images on its device, batch by batch."""
        started = time.perf_counter()
        batches = [self._own[i : i + self._size] for i in range(0, len(self._own), self._size)]
        unit = "clips" if self._images.frames else "images"
        done = 0
        for loaded, batch in zip(self._images.load(batches), batches, strict=True):
            done += len(batch)
            self.skipped += loaded.failures
            if loaded.positions:
                if self._hashes is not None:
                    self._hashes.add(loaded.positions, loaded.images)
                yield loaded._replace(images=loaded.images.to(self._runtime.device))
            seconds = time.perf_counter() - started
            total = len(self._own)
            progress(Progress(what=what, done=done, total=total, seconds=seconds, unit=unit))

    def protocol(self) -> dict[str, Any]:
        """What was walked over, by all processes.

        Raises:
            DataError: if no image could be used.
        """
        if self._protocol:
            return self._protocol
        assert self._hashes is not None
        merge([self._hashes], self._runtime)
        everyone = self._runtime.gather(self.skipped)
        self.skipped = list(dict.fromkeys(text for texts in everyone for text in texts))
        if not self._hashes.found:
            raise DataError(
                f"no image of {self._images.location} can be used: "
                f"{self.skipped[0] if self.skipped else 'there are none'}"
            )
        self._protocol = {
            "data": self._images.fields or self._images.location,
            "location": self._images.location,
            "crop": self._images.crop,
            "count": len(self._hashes.found),
            "skipped": sum(map(len, everyone)),
            "images_sha256": self._hashes.digest(),
            **self._images.clip_facts,
        }
        return self._protocol

    def shared_with(self, other: Walk) -> int:
        """How many images of another walk were among these, to the pixel; after both ``protocol``."""
        assert self._hashes is not None
        assert other._hashes is not None
        known = set(self._hashes.found.values())
        return sum(digest in known for digest in other._hashes.found.values())


def check_apart(training: Walk, testing: Walk) -> str:
    """What is to be said of images that were both learned from and measured on; empty for none.

    Raises:
        UsageError: if they are more than ``MOST_SHARED`` of those measured on.
    """
    shared, total = training.shared_with(testing), testing.protocol()["count"]
    if shared > MOST_SHARED * total:
        raise UsageError(
            f"{shared} of the {total} images that are measured on are among those that are learned "
            "from: name other images for training"
        )
    return f"{shared} of {total} images measured on are also learned from" if shared else ""


class _Hashes:
    """sha256 of 8-bit images by their positions."""

    def __init__(self) -> None:
        self.found: dict[int, bytes] = {}

    def add(self, positions: Sequence[int], images: Tensor) -> None:
        """Add images (b, 3, s, s), or clips, in [0, 1]."""
        pixels = (images * 255).round().to(torch.uint8).cpu()
        for position, image in zip(positions, pixels, strict=True):
            self.found[position] = hashlib.sha256(image.contiguous().numpy().data).digest()

    def merge(self, other: _Hashes) -> None:
        """Add those of another process."""
        self.found |= other.found

    def digest(self) -> str:
        """sha256 over all of them, in the order of positions."""
        whole = hashlib.sha256()
        for position in sorted(self.found):
            whole.update(self.found[position])
        return whole.hexdigest()
