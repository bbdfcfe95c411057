"""Every image of a dataset, one after the other: what encoding a whole dataset needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from rpiae.core.config.parts import DatasetConfig
from rpiae.core.config.tree import Tree, apply_override, parse_override, unparse
from rpiae.core.errors import ConfigError, DataError, UsageError
from rpiae.core.model.contracts import Batch
from rpiae.core.model.resolve import ResolvedTokenizer, part_config, wire
from rpiae.data.building import built_dataset
from rpiae.data.crops import AdmFitting, ImageReader
from rpiae.data.images import centre_crop
from rpiae.data.loading import handed_over, loaded_batches
from rpiae.data.sources import WithLabels

#: How images become square crops: by the rule of ADM, or as a run crops what it holds out.
CropRule = Literal["adm", "centre"]

#: Images that are looked at again to say why none can be used.
EXAMINED = 64


class CentreCrop(NamedTuple):
    """The centre crop of one image.

    Attributes:
        position: index in the source.
        name: what the source calls it.
        label: its label; −1 where it has none.
        pixels: (3, s, s), or a clip (3, t, s, s), uint8; None where it cannot be used.
        failure: why it cannot, else empty.
    """

    position: int
    name: str
    label: int
    pixels: Tensor | None
    failure: str


class EveryImage(TorchDataset[CentreCrop]):
    """All images of a source in its order, each as the centre crop that held-out images get.

    Args:
        reader: the images.
        workers: processes that load them; 0 loads in this process.

    Attributes:
        location: what messages call the source.
        image_size: side s of the crops, in pixels.
        rule: how an image becomes a crop, in words.
        labelled: whether the source has labels.
        label_names: name of every label, by its number; empty where unknown.
        notices: what the source leaves out, and what is to be said of its labels.
    """

    def __init__(self, reader: ImageReader, *, workers: int = 0) -> None:
        source = reader.source
        self._reader = reader
        self._labels = source if isinstance(source, WithLabels) and source.labelled else None
        self.location = source.location
        self.image_size = reader.fitting.image_size
        self.rule = f"{reader.fitting.rule}, centre crop {self.image_size}×{self.image_size}"
        self.labelled = self._labels is not None
        self.label_names = tuple(self._labels.label_names) if self._labels else ()
        labels = source.label_notices if isinstance(source, WithLabels) else ()
        self.notices = (*source.problems, *labels)
        self._workers = workers

    def cropped(self, rule: CropRule) -> EveryImage:
        """The same images, cropped by a rule.

        Args:
            rule: ``adm``: the short side is resized to the dataset's ``resize``, or to the crop where
                it has none, as ADM does, and smaller images are enlarged; ``centre``: as they are.
        """
        if rule == "centre":
            return self
        given = self._reader.fitting
        fitting = AdmFitting(image_size=given.image_size, resize=given.resize)
        return EveryImage(ImageReader(self._reader.source, fitting), workers=self._workers)

    def __len__(self) -> int:
        return len(self._reader.source)

    def name(self, index: int) -> str:
        """What the source calls an image."""
        return self._reader.source.name(index)

    def label(self, index: int) -> int:
        """The label of an image; −1 where it has none."""
        label = self._labels.label(index) if self._labels else None
        return -1 if label is None else label

    def num_classes(self) -> int:
        """Classes of its labels: as many as are named, else up to the highest one; 0 without labels."""
        if self._labels is None:
            return 0
        return len(self.label_names) or 1 + max(self.label(index) for index in range(len(self)))

    def __getitem__(self, index: int) -> CentreCrop:
        name, side = self.name(index), self.image_size
        try:
            label = self.label(index)
            pixels = centre_crop(self._reader.read(index), side, side)
        except DataError as error:
            return CentreCrop(index, name, -1, None, str(error))
        made = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return CentreCrop(index, name, label, made, "")

    def batches(self, positions: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Batches of the images at these positions, which are their samples, as bytes, on CPU.

        A batch lacks the images that cannot be used, and ``skipped`` says why: one text for each.

        Raises:
            DataError: if a process that loads images ended.
        """
        collate = partial(collated_crops, shape=(3, self.image_size, self.image_size))
        return loaded_batches(self, positions, collate=collate, workers=self._workers)

    def none_usable(self) -> str:
        """Message for a source none of whose images can be used."""
        errors = []
        for index in range(min(len(self), EXAMINED)):
            try:
                self._reader.read(index)
            except DataError as error:
                errors.append(error)
        return self._reader.none_usable(errors)


def collated_crops(crops: Sequence[CentreCrop], *, shape: tuple[int, ...]) -> Batch:
    """The usable ones as a batch of bytes of this shape; why others are not is in ``skipped``."""
    pixels = [crop.pixels for crop in crops if crop.pixels is not None]
    usable = [crop for crop in crops if not crop.failure]
    made = torch.stack(pixels) if pixels else torch.empty(0, *shape, dtype=torch.uint8)
    return Batch(
        handed_over(made),
        tuple(crop.position for crop in usable),
        tuple(crop.failure for crop in crops if crop.failure),
        labels=handed_over(torch.tensor([crop.label for crop in usable], dtype=torch.int64)),
    )


@runtime_checkable
class Listed(Protocol):
    """A dataset that can also be gone through image by image."""

    def every_image(self) -> EveryImage:
        """All its images, those to train on and those held out, in the order of its source."""


def with_overrides(data: str | Tree, overrides: Sequence[str], *, address: str = "data") -> Tree:
    """A dataset's table with some of its fields set.

    Args:
        data: a dataset as in ``rpiae build --data``, or a table.
        overrides: ``data.field=value`` texts, as in ``--set``.
        address: what the paths begin with.

    Raises:
        UsageError: if one does not begin so, or the dataset is malformed.
    """
    tree = {address: unparse(part_config("datasets", data))}
    for text in overrides:
        steps, _ = parse_override(text)
        if steps[0] != address or len(steps) < 2:
            raise UsageError(
                f"--set {text}: set fields of the dataset, such as {address}.resize=288"
            )
        apply_override(tree, text)
    changed: Tree = tree[address]
    return changed


def every_image(
    data: str | Tree,
    tokenizer: ResolvedTokenizer | None,
    *,
    image_size: int,
    overrides: Sequence[str] = (),
    crop: CropRule = "centre",
) -> tuple[EveryImage, Tree]:
    """The images of a dataset by its name, and the table of its fields.

    Args:
        data: a dataset as in ``rpiae build --data``, or a table.
        tokenizer: what wired fields are filled from; without one, ``image_size`` is all there is.
        image_size: side of the crops, where ``data`` does not give one.
        overrides: ``data.field=value`` texts, as in ``--set``.
        crop: how images become crops; see ``EveryImage.cropped``.

    Raises:
        UsageError: if it is malformed, or the dataset cannot be gone through image by image.
        DataError: if there are no such data.
    """
    config = part_config("datasets", with_overrides(data, overrides))
    facts: dict[str, tuple[object, str]] = {}
    if tokenizer is not None:
        facts = {
            f"encoder.{name}": (getattr(tokenizer.encoder_facts, name), "the tokenizer")
            for name in ("width", "patch", "output_patch")
        }
    config, problems = wire(config, facts | {"encoder.image_size": (image_size, "")}, "data")
    if problems:
        raise ConfigError("the dataset", problems)
    assert isinstance(config, DatasetConfig)
    dataset = built_dataset(config)
    if not isinstance(dataset, Listed):
        raise UsageError(
            f"dataset {config.label!r} has random crops only and cannot be gone through image by "
            "image; folder:PATH and parquet:PATH can"
        )
    return dataset.every_image().cropped(crop), unparse(config)
