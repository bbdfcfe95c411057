"""Datasets of crops whose images can be read in any order."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Required, Self, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import Batch, HeldOut, StageSteps
from rpiae.core.runtime.draws import generator, uniform
from rpiae.core.training.feed import as_floats
from rpiae.data.buckets import Headers, bucket_shapes, nearest_bucket
from rpiae.data.crops import CropRequest, Crops, Fitting, ImageReader, Pool, collated
from rpiae.data.held_out import (
    centre_crops,
    check_held_out,
    held_out_indices,
    trained_on_itself,
)
from rpiae.data.images import Picture, Shape
from rpiae.data.listed import EveryImage
from rpiae.data.loading import Reports, chosen_workers, loaded_batches, loaded_one_by_one
from rpiae.data.orders import BucketOrder, EpochOrder, Requests
from rpiae.data.sources import ImageSource

#: Crops that are loaded at once for fitting.
FITTED = 64


class BucketOptions(TypedDict, total=False):
    """Keywords of datasets with aspect-ratio buckets; see ``ImageDatasetConfig``."""

    buckets: int | None
    bucket_sizes: Sequence[Sequence[int]]
    bucket_step: int | None


class ImageOptions(BucketOptions, total=False):
    """Keywords of datasets that hold out some of a source's images; see ``ImageDatasetConfig``."""

    image_size: Required[int]
    resize: int | None
    workers: int | None
    held_out: int


class CropDataset(abc.ABC):
    """Random crops out of pools of images.

    Sample k of a stage is crop number k of a stream that depends on (seed, stage) alone. Nothing is
    carried from one batch to the next but what was reported.

    Args:
        num_images: images to train on.
        image_size: side of the square crops, in pixels.
        workers: processes that load images; 0 loads in this process.
        notices: what is to be said with the first batch.

    Attributes:
        num_images: images to train on (an epoch).
        image_size: side of the square crops, in pixels.
        notices: what is said once, with the first batch after it is known.
    """

    def __init__(
        self, *, num_images: int, image_size: int, workers: int, notices: Sequence[str] = ()
    ) -> None:
        self.num_images = num_images
        self.image_size = image_size
        self._workers = workers
        self.notices = tuple(notices)
        self._reports = Reports()
        self._labelled = False

    def with_labels(self) -> Self:
        """The same data, whose batches have the labels of their images too."""
        found = copy.copy(self)
        found._labelled = True
        return found

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """Batches of the steps of a stage.

        An image that is damaged or smaller than the crop is replaced by the next usable one in the
        source's order, and reported the first time.

        Raises:
            DataError: if no training image can be used.
        """
        pools, place = self._pools(), self._place(steps)
        labels = steps.seed, steps.stage

        def request(sample: int) -> CropRequest:
            pool, image = place(sample)
            top, left = (uniform(*labels, sample, f"crop-{axis}") for axis in "yx")
            return CropRequest(sample=sample, image=image, top=top, left=left, pool=pool)

        for batch in self._load(pools, Requests(request, steps)):
            yield batch._replace(
                skipped=self._reports.fresh(batch.skipped),
                notices=self._reports.fresh(self.notices),
            )

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """Random square training crops (count, 3, s, s) in [0, 1], drawn with replacement.

        Raises:
            DataError: if no training image can be used.
        """
        draw = self._draws()

        def request(i: int) -> CropRequest:
            draws = generator(seed, "crops", i)
            pool, image = draw(draws)
            top, left = torch.rand(2, generator=draws).tolist()
            return CropRequest(sample=i, image=image, top=top, left=left, pool=pool)

        steps = [range(i, min(i + FITTED, count)) for i in range(0, count, FITTED)]
        requests = Requests(request, steps)
        parts = [as_floats(batch.inputs) for batch in self._load(self.square_pools(), requests)]
        return torch.cat(parts) if parts else torch.empty(0, 3, self.image_size, self.image_size)

    @abc.abstractmethod
    def held_out(self) -> HeldOut:
        """The images that are never trained on, as square crops.

        Raises:
            DataError: if none of them can be used.
        """

    @abc.abstractmethod
    def square_pools(self) -> list[Pool]:
        """The training images by source."""

    def _pools(self) -> list[Pool]:
        """What the requests of batches refer to."""
        return self.square_pools()

    @abc.abstractmethod
    def _place(self, steps: StageSteps) -> Callable[[int], tuple[int, int]]:
        """Sample → pool and position in it."""

    @abc.abstractmethod
    def _draws(self) -> Callable[[torch.Generator], tuple[int, int]]:
        """Random draws → pool (among the square ones) and position in it."""

    def _load(self, pools: Sequence[Pool], requests: Requests[CropRequest]) -> Iterator[Batch]:
        crops = Crops(pools, labelled=self._labelled)
        return loaded_batches(crops, requests, collate=collated, workers=self._workers)


class ImageDataset(CropDataset):
    """Random crops of a source's images, some of which are held out.

    Epoch e shows the n training images in an order of its own. Without buckets, crops are square;
    with buckets, every batch has the shape of one bucket, an image is in the bucket whose aspect
    ratio is nearest to its own, and the images' headers are read when the first batch is asked for.

    Args:
        reader: the images.
        training: indices of the training images in the source; not empty.
        workers: processes that load images; 0 loads in this process.
        options: see ``BucketOptions``.
        notices: what is to be said with the first batch, besides what the source leaves out.

    Raises:
        UsageError: if the options contradict each other.
    """

    def __init__(
        self,
        reader: ImageReader,
        training: NDArray[np.int64],
        *,
        workers: int,
        options: BucketOptions | None = None,
        notices: Sequence[str] = (),
    ) -> None:
        super().__init__(
            num_images=len(training), image_size=reader.fitting.image_size, workers=workers,
            notices=(*reader.source.problems, *notices),
        )  # fmt: skip
        self._reader = reader
        self._training = training
        self._shapes = _bucket_shapes(reader.fitting, options or {})
        self._filled: list[Pool] = []

    @property
    def has_buckets(self) -> bool:
        """Whether batches have the shapes of buckets."""
        return bool(self._shapes)

    def every_image(self) -> EveryImage:
        """All images of the source in its order, as square centre crops."""
        return EveryImage(self._reader, workers=self._workers)

    def square_pools(self) -> list[Pool]:
        return [Pool(reader=self._reader, images=self._training)]

    def _pools(self) -> list[Pool]:
        if not self._shapes:
            return self.square_pools()
        if not self._filled:
            self._filled = self._bucketed()
        return self._filled

    def _place(self, steps: StageSteps) -> Callable[[int], tuple[int, int]]:
        if self._shapes:
            counts = [len(pool.images) for pool in self._pools()]
            return BucketOrder(steps.seed, steps.stage, counts, steps.batch_size).place
        order = EpochOrder(steps.seed, steps.stage, self.num_images)
        return lambda sample: (0, order.image(sample))

    def _draws(self) -> Callable[[torch.Generator], tuple[int, int]]:
        def draw(draws: torch.Generator) -> tuple[int, int]:
            return 0, int(torch.randint(self.num_images, (), generator=draws))

        return draw

    def _bucketed(self) -> list[Pool]:
        """The buckets that have images; those without a readable header are reported."""
        headers = Headers(self._reader, self._training)
        chunks = loaded_one_by_one(headers, workers=self._workers)
        found = [shape for chunk in chunks for shape in chunk]
        members: list[list[int]] = [[] for _ in self._shapes]
        errors: list[DataError] = []
        for index, shape in zip(self._training, found, strict=True):
            if isinstance(shape, str):
                errors.append(DataError(shape))
            else:
                members[nearest_bucket(shape, self._shapes)].append(int(index))
        self.notices += tuple(map(str, errors))
        if not any(members):
            raise DataError(self._reader.none_usable(errors))
        readable = np.array(sorted(index for images in members for index in images))
        return [
            Pool(
                reader=self._reader, images=np.array(images), cover=shape,
                spare=np.setdiff1d(readable, images),
            )
            for images, shape in zip(members, self._shapes, strict=True)
            if images
        ]  # fmt: skip


def _bucket_shapes(fitting: Fitting, options: BucketOptions) -> tuple[Shape, ...]:
    step = options.get("bucket_step")
    shapes = bucket_shapes(
        fitting.image_size, number=options.get("buckets"), sizes=options.get("bucket_sizes", ()),
        step=1 if step is None else step,
    )  # fmt: skip
    if shapes and fitting.resize is not None:
        raise UsageError(
            "data.resize has no effect with buckets, whose images are resized to cover the "
            "bucket: leave out one of them"
        )
    return shapes


class SplitDataset(ImageDataset):
    """A source of which some images are held out and cropped at their centre.

    A single image is both trained on and held out, and a notice says so.

    Args:
        source: the encoded images; not empty.
        options: see ``ImageOptions``.
        held_out: indices of the images that are held out; drawn where not given.

    Raises:
        UsageError: if the options contradict each other.
    """

    def __init__(
        self, source: ImageSource, options: ImageOptions, *, held_out: Sequence[int] | None = None
    ) -> None:
        number = options.get("held_out", 32)
        check_held_out(number)
        everything = np.arange(len(source))
        self._held_out = held_out or held_out_indices(len(source), number)
        training = np.setdiff1d(everything, self._held_out)
        workers = options.get("workers")
        fitting = Fitting(image_size=options["image_size"], resize=options.get("resize"))
        super().__init__(
            ImageReader(source, fitting),
            training if len(training) else everything,
            workers=chosen_workers(workers),
            options=options,
            notices=[] if len(training) else [trained_on_itself(source.location)],
        )

    def held_out(self) -> HeldOut:
        """Centre crops of the held-out images; those that cannot be used are logged and left out.

        Raises:
            DataError: if none of them can be used.
        """
        source = self._reader.source
        return centre_crops(
            ((source.name(index), self._opened(index)) for index in self._held_out),
            image_size=self.image_size, where=source.location,
        )  # fmt: skip

    def _opened(self, index: int) -> Callable[[], Picture]:
        return lambda: self._reader.read(index)
