"""Sets of images to measure on, and walks over them that several processes share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from attrs import frozen
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.config import Tree
from rpiae.core.errors import DataError, UsageError
from rpiae.core.runtime import Runtime
from rpiae.data.listed import EveryImage
from rpiae.data.orders import spread
from rpiae.evaluation.examination import Accumulator
from rpiae.latents.loading import load_batches


class Loaded(NamedTuple):
    """Some images of a set.

    Attributes:
        positions: of the usable ones.
        images: these, (b, 3, s, s) in [0, 1].
        labels: of these; −1 where there is none.
        failures: why others cannot be used, in words.
    """

    positions: list[int]
    images: Float[Tensor, "b 3 s s"]
    labels: Int[Tensor, " b"]
    failures: tuple[str, ...]


class ImageSet(Protocol):
    """Images to measure on.

    Attributes:
        location: where they come from, in words.
        fields: the dataset's fields.
        crop: how images become crops, in words.
        image_size: side of the crops, in pixels.
        labelled: whether they have labels.
    """

    location: str
    fields: Tree
    crop: str
    image_size: int
    labelled: bool

    def __len__(self) -> int: ...

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images by their positions, batch by batch."""


class ListedImages:
    """All images of a dataset; see ``ImageSet``."""

    def __init__(self, images: EveryImage, fields: Tree) -> None:
        self._images = images
        self.location = images.location
        self.fields = {k: v for k, v in fields.items() if k not in ("workers", "held_out")}
        self.crop = images.rule
        self.image_size = images.image_size
        self.labelled = images.labelled

    def __len__(self) -> int:
        return len(self._images)

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images by their positions, batch by batch."""
        for batch in load_batches(self._images, batches):
            usable = batch.usable
            failures = tuple(crop.failure for crop in batch.crops if crop.failure)
            pixels = batch.images(torch.device("cpu")) if usable else torch.empty(0, 3, 1, 1)
            labels = torch.tensor([crop.label for crop in usable], dtype=torch.int64)
            yield Loaded([crop.position for crop in usable], pixels, labels, failures)


class GivenImages:
    """Images in memory, without labels; see ``ImageSet``."""

    labelled = False

    def __init__(self, images: Float[Tensor, "n 3 s s"], *, location: str, crop: str) -> None:
        self._images = images
        self.location = location
        self.fields: Tree = {}
        self.crop = crop
        self.image_size = int(images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images by their positions, batch by batch."""
        for batch in batches:
            chosen = list(batch)
            yield Loaded(chosen, self._images[chosen], torch.full((len(chosen),), -1), ())


@frozen(kw_only=True)
class Progress:
    """How far a walk is.

    Attributes:
        what: what the images are for.
        done, total: images.
        seconds: since this part began.
    """

    what: str
    done: int
    total: int
    seconds: float


class Walk:
    """A walk over the images of a set, shared between processes.

    Args:
        images: the set.
        count: how many are looked at, spread evenly; all where not given.
        batch_size: images at a time.
        runtime: device and processes.

    Attributes:
        skipped: images that could not be used, in words; those of this process.

    Raises:
        UsageError: if there are fewer images than processes.
    """

    def __init__(
        self, images: ImageSet, count: int | None, *, batch_size: int, runtime: Runtime
    ) -> None:
        self._images = images
        self._runtime = runtime
        self._size = batch_size
        chosen = spread(len(images), min(len(images), count or len(images)))
        if len(chosen) < runtime.num_processes:
            raise UsageError(
                f"{images.location} has {len(chosen)} images to measure on, fewer than the "
                f"{runtime.num_processes} processes: start fewer"
            )
        self._own = chosen[runtime.rank :: runtime.num_processes]
        self._hashes = _Hashes()
        self.skipped: list[str] = []

    def batches(self, what: str, progress: Callable[[Progress], None]) -> Iterator[Loaded]:
        """This process's images on its device, batch by batch.

        Raises:
            DataError: if none of them can be used.
        """
        started = time.perf_counter()
        batches = [self._own[i : i + self._size] for i in range(0, len(self._own), self._size)]
        done = 0
        for loaded, batch in zip(self._images.load(batches), batches, strict=True):
            done += len(batch)
            self.skipped += loaded.failures
            if loaded.positions:
                self._hashes.add(loaded.positions, loaded.images)
                yield loaded._replace(images=loaded.images.to(self._runtime.device))
            seconds = time.perf_counter() - started
            progress(Progress(what=what, done=done, total=len(self._own), seconds=seconds))
        if not self._hashes.found:
            raise DataError(
                f"none of the {len(self._own)} images of {self._images.location} can be used: "
                f"{self.skipped[0] if self.skipped else 'there are none'}"
            )

    def protocol(self) -> dict[str, Any]:
        """What was walked over, by all processes."""
        merge([self._hashes], self._runtime)
        return {
            "data": self._images.fields or self._images.location,
            "location": self._images.location,
            "crop": self._images.crop,
            "count": len(self._hashes.found),
            "images_sha256": self._hashes.digest(),
        }


class _Hashes:
    """sha256 of 8-bit images by their positions."""

    def __init__(self) -> None:
        self.found: dict[int, bytes] = {}

    def add(self, positions: Sequence[int], images: Tensor) -> None:
        """Add images (b, 3, s, s) in [0, 1]."""
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


def merge(accumulators: Sequence[Accumulator], runtime: Runtime) -> None:
    """Have every process hold what all have gathered, merged in the order of processes."""
    if runtime.num_processes == 1:
        return
    everyone = runtime.gather(list(accumulators))
    for position, accumulator in enumerate(accumulators):
        merged = everyone[0][position]
        for theirs in everyone[1:]:
            merged.merge(theirs[position])
        vars(accumulator).update(vars(merged))
