"""Sets of images, or of clips, to measure on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.config.tree import Tree
from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import HeldOut
from rpiae.core.model.resolve import ResolvedTokenizer
from rpiae.core.training.feed import as_floats
from rpiae.data.listed import EveryImage, every_image
from rpiae.data.video.listed import EveryClip
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.examination import Picture


class Loaded(NamedTuple):
    """Some images or clips of a set.

    Attributes:
        positions: of the usable ones.
        images: these, (b, 3, s, s) in [0, 1]; clips (b, 3, t, s, s).
        labels: of these; −1 where there is none.
        failures: why others cannot be used, in words.
        pictures: the whole pictures that the images are; each one of its own where empty.
    """

    positions: list[int]
    images: Float[Tensor, "b 3 ..."]
    labels: Int[Tensor, " b"]
    failures: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()


class ImageSet:
    """Base of the sets of images, or of clips, to measure on.

    Args:
        location: where they come from, in words.
        crop: how images become crops, in words.
        image_size: side of the crops, in pixels.

    Attributes:
        location, crop, image_size: as given.
        fields: the dataset's fields.
        labelled: whether they have labels.
        label_names: name of every label, by its number; empty where unknown.
        notices: what is to be said of them.
        tiles: images that one picture is put together of, at most.
        frame_rate: of the clips, in frames per second; None where it is not known, or clips differ.
        clip_facts: what the clips are, for the protocol: ``frames`` and how these were chosen.
    """

    fields: Tree = {}  # noqa: RUF012  # replaced, never changed
    labelled = False
    label_names: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    tiles = 1
    frame_rate: float | None = None
    clip_facts: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, *, location: str, crop: str, image_size: int) -> None:
        self.location = location
        self.crop = crop
        self.image_size = image_size

    @property
    def frames(self) -> int:
        """Of every clip; 0 where these are images."""
        return int(self.clip_facts.get("frames", 0))

    def __len__(self) -> int:
        """How many pictures there are."""
        raise NotImplementedError

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images of pictures by their positions, batch by batch."""
        raise NotImplementedError


class ListedImages(ImageSet):
    """All images, or clips, of a dataset."""

    def __init__(self, images: EveryImage, fields: Tree) -> None:
        super().__init__(location=images.location, crop=images.rule, image_size=images.image_size)
        self._images = images
        self._numbers: Tensor | None = None
        self.fields = {k: v for k, v in fields.items() if k not in ("workers", "held_out")}
        if isinstance(images, EveryClip):
            self.frame_rate = images.frame_rate
            self.clip_facts = _clip_facts(images)
        self.labelled = images.labelled
        self.label_names = images.label_names
        self.notices = images.notices

    def __len__(self) -> int:
        return len(self._images)

    def with_labels_of(self, training: ImageSet) -> ListedImages:
        """These images, with labels that mean what those of the training images mean.

        Folders number their classes each for itself, so equal numbers need not be equal classes.

        Raises:
            UsageError: if they have classes that the training images have not.
        """
        names = training.label_names
        if not self.label_names or not names or self.label_names == names:
            return self
        unknown = sorted(set(self.label_names) - set(names))
        if unknown:
            raise UsageError(
                f"{self.location} has classes that {training.location} has not, such as "
                f"{unknown[0]!r}: nothing can be learned about them there"
            )
        return self.with_labels_named(names)

    def with_labels_named(self, names: tuple[str, ...]) -> ListedImages:
        """These images, with labels that are numbers of names, among which all of theirs are."""
        if not self.label_names or self.label_names == names:
            return self
        renumbered = copy.copy(self)
        renumbered._numbers = torch.tensor([names.index(name) for name in self.label_names])
        renumbered.label_names = names
        return renumbered

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images by their positions, batch by batch."""
        for batch in self._images.batches(batches):
            labels = batch.labels
            assert labels is not None
            if self._numbers is not None:
                labels = torch.where(labels >= 0, self._numbers[labels.clamp(min=0)], -1)
            yield Loaded(list(batch.samples), as_floats(batch.inputs), labels, batch.skipped)


class GivenImages(ImageSet):
    """Images or clips in memory, without labels.

    Args:
        images: these.
        location, crop: see ``ImageSet``.
        held_out: the photographs that they are tiles of; each a picture of its own where not given.
        listed: all clips of the dataset that they are some of; None for images, or where it cannot be
            gone through clip by clip.
    """

    def __init__(
        self,
        images: Float[Tensor, "n 3 ..."],
        *,
        location: str,
        crop: str,
        held_out: HeldOut | None = None,
        listed: EveryClip | None = None,
    ) -> None:
        super().__init__(location=location, crop=crop, image_size=int(images.shape[-1]))
        self._images = images
        if images.ndim == 5:
            self.clip_facts = {"frames": images.shape[2]}
        if listed is not None:
            self.frame_rate = listed.frame_rate
            self.clip_facts = _clip_facts(listed)
        self._columns = held_out.columns if held_out else {}
        self._pictures: dict[str, list[int]] = {}
        for position in range(len(images)):
            name = held_out.groups[position] if held_out else str(position)
            self._pictures.setdefault(name, []).append(position)
        self._names = tuple(self._pictures)
        self.tiles = max(map(len, self._pictures.values()), default=1)

    def __len__(self) -> int:
        return len(self._names)

    def load(self, batches: Sequence[Sequence[int]]) -> Iterator[Loaded]:
        """Images of pictures by their positions, batch by batch."""
        for batch in batches:
            chosen: list[int] = []
            pictures = []
            for name in (self._names[position] for position in batch):
                tiles = slice(len(chosen), len(chosen) + len(self._pictures[name]))
                pictures.append(Picture(name, tiles, self._columns.get(name, 1)))
                chosen += self._pictures[name]
            unlabelled = torch.full((len(chosen),), -1)
            yield Loaded(chosen, self._images[chosen], unlabelled, (), tuple(pictures))


def _clip_facts(clips: EveryClip) -> dict[str, Any]:
    """What clips are, for the protocol."""
    timing = clips.timing
    rate = timing.frame_rate or "each video's own"
    return {"frames": timing.frames, "stride": timing.stride, "frame_rate": rate}


def held_out_pictures(held_out: HeldOut) -> GivenImages:
    """What a dataset holds out, as whole photographs."""
    return GivenImages(
        held_out.images,
        location="held-out clips" if held_out.images.ndim == 5 else "held-out images", crop="as held out by the run",
        held_out=held_out,
    )  # fmt: skip


def listed_images(
    data: str | Tree,
    tokenizer: ResolvedTokenizer | None,
    *,
    size: int,
    config: EvaluationConfig,
    address: str,
) -> ListedImages:
    """All images of a dataset, cropped as an evaluation says.

    Args:
        data: the dataset.
        tokenizer: what wired fields are filled from; see ``every_image``.
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
