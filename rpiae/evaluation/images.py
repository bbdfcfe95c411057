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

from rpiae.core.config.tree import Tree
from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.resolve import ResolvedTokenizer
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.feed import as_floats
from rpiae.data.listed import EveryImage, every_image
from rpiae.data.orders import sampled
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.examination import Accumulator

#: Share of the images measured on that may be among the training images: real datasets have doubles.
MOST_SHARED = 0.02


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
        label_names: name of every label, by its number; empty where unknown.
    """

    location: str
    fields: Tree
    crop: str
    image_size: int
    labelled: bool
    label_names: tuple[str, ...]

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
        self.label_names = images.label_names
        self.notices = images.notices

    def __len__(self) -> int:
        return len(self._images)

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images by their positions, batch by batch."""
        for batch in self._images.batches(batches):
            assert batch.labels is not None
            yield Loaded(list(batch.samples), as_floats(batch.inputs), batch.labels, batch.skipped)


class GivenImages:
    """Images in memory, without labels; see ``ImageSet``."""

    labelled = False
    label_names: tuple[str, ...] = ()

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


def listed_images(
    data: str | Tree,
    tokenizer: ResolvedTokenizer,
    *,
    size: int,
    config: EvaluationConfig,
    address: str,
) -> ListedImages:
    """All images of a dataset, cropped as an evaluation says.

    Args:
        data: the dataset.
        tokenizer: what wired fields are filled from.
        size: side of the crops, where neither the dataset nor the config gives one.
        config: of the evaluation.
        address: what the paths of its fields begin with on the command line.

    Raises:
        UsageError: if it is malformed, or cannot be gone through image by image.
        DataError: if there are no such data.
    """
    given = {"image_size": config.image_size, "resize": config.resize}
    options = [f"data.{name}={value}" for name, value in given.items() if value is not None]
    try:
        return ListedImages(
            *every_image(data, tokenizer, image_size=size, overrides=options, crop=config.crop)
        )
    except DataError as error:
        if address == "data" or "data." not in str(error):
            raise
        # A source knows its fields by the name that they have in a run.
        raise DataError(f"{error} (of these images by --set {address}.FIELD=VALUE)") from None


class Renumbered:
    """A set whose labels have the numbers of another one's names; see ``ImageSet``.

    Folders number their classes each for itself, so equal numbers need not be equal classes.

    Raises:
        UsageError: if it has classes that the other one has not.
    """

    def __init__(self, images: ImageSet, names: tuple[str, ...], other: str) -> None:
        unknown = sorted(set(images.label_names) - set(names))
        if unknown:
            raise UsageError(
                f"{images.location} has classes that {other} has not, such as {unknown[0]!r}: "
                "nothing can be learned about them there"
            )
        self._images = images
        self._numbers = torch.tensor([names.index(name) for name in images.label_names])
        self.location = images.location
        self.fields = images.fields
        self.crop = images.crop
        self.image_size = images.image_size
        self.labelled = images.labelled
        self.label_names = names

    def __len__(self) -> int:
        return len(self._images)

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images by their positions, batch by batch."""
        for loaded in self._images.load(batches):
            known = loaded.labels >= 0
            labels = torch.where(known, self._numbers[loaded.labels.clamp(min=0)], -1)
            yield loaded._replace(labels=labels)


def with_labels_of(images: ImageSet, training: ImageSet) -> ImageSet:
    """A set whose labels mean what those of the training images mean.

    Raises:
        UsageError: if it has classes that the training images have not.
    """
    if not images.label_names or not training.label_names:
        return images
    if images.label_names == training.label_names:
        return images
    return Renumbered(images, training.label_names, training.location)


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
        count: how many are looked at, drawn at random but always the same; all where not given.
        batch_size: images at a time.
        runtime: device and processes.

    Attributes:
        skipped: images that could not be used, in words; after ``protocol`` of all processes.

    Raises:
        UsageError: if there are fewer images than processes.
    """

    def __init__(
        self, images: ImageSet, count: int | None, *, batch_size: int, runtime: Runtime
    ) -> None:
        self._images = images
        self._runtime = runtime
        self._size = batch_size
        chosen = sampled(len(images), count or len(images))
        if len(chosen) < runtime.num_processes:
            raise UsageError(
                f"{images.location} has {len(chosen)} images to measure on, fewer than the "
                f"{runtime.num_processes} processes: start fewer"
            )
        self._own = chosen[runtime.rank :: runtime.num_processes]
        self._hashes = _Hashes()
        self._protocol: dict[str, Any] = {}
        self.skipped: list[str] = []

    def batches(self, what: str, progress: Callable[[Progress], None]) -> Iterator[Loaded]:
        """This process's images on its device, batch by batch."""
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

    def protocol(self) -> dict[str, Any]:
        """What was walked over, by all processes.

        Raises:
            DataError: if no image could be used.
        """
        if self._protocol:
            return self._protocol
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
            "skipped": len(self.skipped),
            "images_sha256": self._hashes.digest(),
        }
        return self._protocol

    def shared_with(self, other: Walk) -> int:
        """How many images of another walk were among these, to the pixel; after both ``protocol``."""
        known = set(self._hashes.found.values())
        return sum(digest in known for digest in other._hashes.found.values())


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
