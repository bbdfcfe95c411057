"""Sets of images to measure on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.config.tree import Tree
from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import HeldOut
from rpiae.core.model.resolve import ResolvedTokenizer
from rpiae.data.listed import EveryImage, every_image
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.examination import Picture
from rpiae.latents.loading import load_batches


class Loaded(NamedTuple):
    """Some images of a set.

    Attributes:
        positions: of the usable ones.
        images: these, (b, 3, s, s) in [0, 1].
        labels: of these; −1 where there is none.
        failures: why others cannot be used, in words.
        pictures: the whole pictures that the images are; each one of its own where empty.
    """

    positions: list[int]
    images: Float[Tensor, "b 3 s s"]
    labels: Int[Tensor, " b"]
    failures: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()


class ImageSet(Protocol):
    """Images to measure on.

    Attributes:
        location: where they come from, in words.
        fields: the dataset's fields.
        crop: how images become crops, in words.
        image_size: side of the crops, in pixels.
        labelled: whether they have labels.
        label_names: name of every label, by its number; empty where unknown.
        tiles: images that one picture is put together of, at most.
    """

    location: str
    fields: Tree
    crop: str
    image_size: int
    labelled: bool
    label_names: tuple[str, ...]
    tiles: int

    def __len__(self) -> int:
        """How many pictures there are."""

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images of pictures by their positions, batch by batch."""


class ListedImages:
    """All images of a dataset; see ``ImageSet``."""

    tiles = 1

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
        for batch in load_batches(self._images, batches):
            usable = batch.usable
            failures = tuple(crop.failure for crop in batch.crops if crop.failure)
            pixels = batch.images(torch.device("cpu")) if usable else torch.empty(0, 3, 1, 1)
            labels = torch.tensor([crop.label for crop in usable], dtype=torch.int64)
            yield Loaded([crop.position for crop in usable], pixels, labels, failures)


class GivenImages:
    """Images in memory, without labels; see ``ImageSet``."""

    labelled = False
    label_names: tuple[str, ...] = ()
    tiles = 1

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
            yield Loaded(chosen, self._images[chosen], torch.full((len(chosen),), -1))


class HeldOutPictures:
    """What a dataset holds out, as whole photographs of one or more tiles; see ``ImageSet``."""

    fields: Tree = {}  # noqa: RUF012  # never changed
    labelled = False
    label_names: tuple[str, ...] = ()

    def __init__(self, held_out: HeldOut, *, location: str, crop: str) -> None:
        self._held_out = held_out
        self.location = location
        self.crop = crop
        self.image_size = int(held_out.images.shape[-1])
        self._tiles: dict[str, list[int]] = {}
        for position, group in enumerate(held_out.groups):
            self._tiles.setdefault(group, []).append(position)
        self._names = tuple(self._tiles)
        self.tiles = max(map(len, self._tiles.values()))

    def __len__(self) -> int:
        return len(self._names)

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Tiles of photographs by these's positions, batch by batch."""
        for batch in batches:
            chosen: list[int] = []
            pictures = []
            for name in (self._names[position] for position in batch):
                tiles = slice(len(chosen), len(chosen) + len(self._tiles[name]))
                pictures.append(Picture(name, tiles, self._held_out.columns[name]))
                chosen += self._tiles[name]
            unlabelled = torch.full((len(chosen),), -1)
            yield Loaded(chosen, self._held_out.images[chosen], unlabelled, (), tuple(pictures))


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
        self.tiles = images.tiles

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
