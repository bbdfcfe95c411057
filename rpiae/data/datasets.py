"""Datasets of square crops: folders, Parquet files, and the sample photographs."""

from __future__ import annotations

import abc
import importlib.util
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from rpiae.core.contracts import Batch, HeldOut, local_samples
from rpiae.core.errors import DataError, UsageError
from rpiae.core.randomness import generator, key, uniform
from rpiae.data.images import (
    Pixels,
    TooSmallError,
    centre_crop,
    crop,
    decode,
    resize_short_side,
    to_tensor,
)
from rpiae.data.listed import EveryImage
from rpiae.data.sources import FileSource, ImageSource, ParquetSource, folder_source

logger = logging.getLogger(__name__)

#: Short side that larger images are shrunk to by default, over the side of the crop (384 / 256).
SHRUNK = 1.5

#: Side of the centred region of a held-out sample photograph that is tiled, in pixels.
TILED_REGION = 256

#: Sample photographs, as folders inside importable packages. ``motorcycle_right`` is left out as it
#: shows what ``motorcycle_left`` shows; ``retina`` and ``color`` as they are almost flat.
SAMPLE_TRAINING = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)

#: The two with the highest texture: standard deviation within 4×4 patches, averaged over the
#: patches and channels of the tiled region, on the scale [0, 1]. Here 0.073 and 0.068; those above
#: reach 0.051 (flower) and less.
SAMPLE_HELD_OUT = (
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/motorcycle_left.png"),
)


class CropRequest(NamedTuple):
    """A crop with all its random draws.

    Attributes:
        sample: global sample index within the stage.
        image: position among the training images.
        top, left: position of the crop in [0, 1].
    """

    sample: int
    image: int
    top: float
    left: float


class _Crop(NamedTuple):
    sample: int
    pixels: Tensor | None
    skipped: tuple[str, ...]
    failure: str


class _CropBatch(NamedTuple):
    pixels: Tensor
    samples: tuple[int, ...]
    skipped: tuple[str, ...]
    failure: str


class ImageReader:
    """Decoded images of a source, resized by the rule of ``ImageDatasetConfig.resize``.

    Args:
        source: the encoded images.
        image_size: side of the crops, in pixels; smaller images are refused.
        resize: short side of every image, in pixels.
        shrink: whether large images are shrunk where ``resize`` is not given.
        cached: whether images are kept in memory.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        image_size: int,
        resize: int | None,
        shrink: bool = True,
        cached: bool = False,
    ) -> None:
        self.source = source
        self.image_size = image_size
        self._resize = resize
        self._largest = round(SHRUNK * image_size) if shrink else None
        self._cache: dict[int, Pixels] | None = {} if cached else None

    @property
    def rule(self) -> str:
        """How images are resized, in words."""
        if self._resize is not None:
            return f"short side resized to {self._resize}"
        if self._largest is not None:
            return f"short side above {self._largest} shrunk to it"
        return "natural size"

    def read(self, index: int) -> Pixels:
        """An image (h, w, 3) of at least the crop's size.

        Raises:
            TooSmallError: if it is smaller than the crop.
            DataError: if it cannot be read or decoded.
        """
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        pixels = decode(
            self.source.read(index),
            name=self.source.path(index),
            min_side=self.image_size if self._resize is None else 1,
        )
        if self._resize is not None:
            pixels = resize_short_side(pixels, self._resize)
        elif self._largest is not None and min(pixels.shape[:2]) > self._largest:
            pixels = resize_short_side(pixels, self._largest)
        if self._cache is not None:
            self._cache[index] = pixels
        return pixels

    def none_usable(self, errors: Iterable[DataError]) -> str:
        """Message for a source of which every image that was asked for raised an error."""
        small: TooSmallError | None = None
        unreadable, example, count = 0, "", 0
        for error in errors:
            count += 1
            if isinstance(error, TooSmallError):
                if small is None or min(error.size) > min(small.size):
                    small = error
            else:
                unreadable += 1
                example = example or str(error)
        where, s = self.source.location, self.image_size
        damage = f"{unreadable} cannot be read, such as {example}"
        if small is None:
            return f"none of {count} images in {where} can be used: {damage}"
        width, height = small.size
        rest = f" ({damage})" if unreadable else ""
        return (
            f"none of {count} images in {where} is as large as the crop of {s}×{s} pixels; the "
            f"largest has {width}×{height}{rest}. Set data.image_size to {min(width, height)} or "
            f"less, or data.resize to {s} or more, which enlarges them"
        )


class _Crops(TorchDataset[_Crop]):
    """Crops by request; an image that cannot be used is replaced by the next one that can."""

    def __init__(self, reader: ImageReader, training: NDArray[np.int64]) -> None:
        self._reader = reader
        self._training = training

    def __getitem__(self, request: CropRequest) -> _Crop:
        errors: list[DataError] = []
        number = len(self._training)
        for offset in range(number):
            try:
                pixels = self._reader.read(int(self._training[(request.image + offset) % number]))
            except DataError as error:
                errors.append(error)
                continue
            cut = crop(pixels, self._reader.image_size, request.top, request.left)
            return _Crop(
                request.sample,
                torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1))),
                tuple(map(str, errors)),
                "",
            )
        # An exception would leave a worker with the worker's traceback as its message.
        return _Crop(request.sample, None, (), self._reader.none_usable(errors))


class _Requests:
    """The batches of requests of a stage's steps, for a loader's ``batch_sampler``."""

    def __init__(
        self, request: Callable[[int], CropRequest], samples: Callable[[int], range], steps: range
    ) -> None:
        self._request = request
        self._samples = samples
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[CropRequest]]:
        for step in self._steps:
            yield [self._request(sample) for sample in self._samples(step)]


class ImageDataset(abc.ABC):
    """Random square crops of a source's images, and some images that are held out.

    Sample k of a stage is crop number k of a stream that depends on (seed, stage) alone: epoch
    e = k // n shows the n training images in an order of its own. Nothing is carried from one batch
    to the next but which unusable images were reported.

    Args:
        reader: the images.
        training: indices of the training images in the source; not empty.
        workers: processes that load images; 0 loads in this process.

    Attributes:
        num_images: images to train on (an epoch).
        image_size: side of the crops, in pixels.
    """

    def __init__(self, reader: ImageReader, training: NDArray[np.int64], *, workers: int) -> None:
        self.num_images = len(training)
        self.image_size = reader.image_size
        self._reader = reader
        self._training = training
        self._workers = workers
        self._reported: set[str] = set()

    def batches(
        self,
        *,
        seed: int,
        stage: str,
        batch_size: int,
        start: int,
        steps: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> Iterator[Batch]:
        """Batches of the steps ``start`` to ``steps`` − 1 of a stage; step s has the samples s·b ….

        An image that is damaged or smaller than the crop is replaced by the next usable one in the
        source's order, and reported the first time.

        Raises:
            DataError: if no training image can be used.
        """
        orders = _Orders(seed, stage, self.num_images)

        def request(sample: int) -> CropRequest:
            return CropRequest(
                sample=sample,
                image=orders.image(sample),
                top=uniform(seed, stage, sample, "crop-y"),
                left=uniform(seed, stage, sample, "crop-x"),
            )

        def samples(step: int) -> range:
            return local_samples(step, batch_size, rank=rank, num_processes=num_processes)

        for batch in self._load(_Requests(request, samples, range(start, steps))):
            fresh = tuple(text for text in batch.skipped if text not in self._reported)
            self._reported.update(fresh)
            yield Batch(_unit(batch.pixels), batch.samples, fresh)

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """Random training crops (count, 3, s, s) in [0, 1]; images are drawn with replacement.

        Raises:
            DataError: if no training image can be used.
        """

        def request(i: int) -> CropRequest:
            draws = generator(seed, "crops", i)
            image = int(torch.randint(self.num_images, (), generator=draws))
            top, left = torch.rand(2, generator=draws).tolist()
            return CropRequest(sample=i, image=image, top=top, left=left)

        def samples(step: int) -> range:
            return range(step * 64, min((step + 1) * 64, count))

        batches = self._load(_Requests(request, samples, range(-(-count // 64))))
        parts = [_unit(batch.pixels) for batch in batches]
        return torch.cat(parts) if parts else torch.empty(0, 3, self.image_size, self.image_size)

    def every_image(self) -> EveryImage:
        """All images of the source in its order, as centre crops."""
        return EveryImage(self._reader, workers=self._workers)

    @abc.abstractmethod
    def held_out(self) -> HeldOut:
        """The images that are never trained on.

        Raises:
            DataError: if none of them can be used.
        """

    def _load(self, requests: _Requests) -> Iterator[_CropBatch]:
        loader = DataLoader(
            _Crops(self._reader, self._training),
            batch_sampler=requests,
            num_workers=min(self._workers, len(requests)),
            collate_fn=_collated,
            worker_init_fn=live_with_parent,
            # Without one, the loader draws from, and so advances, the global generator.
            generator=torch.Generator(),
        )
        for batch in delivered(loader):
            if batch.failure:
                raise DataError(batch.failure)
            yield batch


def delivered(loader: DataLoader[Any]) -> Iterator[Any]:
    """The batches of a loader.

    Raises:
        DataError: if a process that loads images ended.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            # A worker that dies takes its cause with it; what torch says is all there is.
            raise DataError(
                f"a process that loads images ended ({str(error).partition(chr(10))[0]}): "
                "often the machine ran out of memory. Lower data.workers (0 loads in the "
                "training process)"
            ) from None
        yield batch


class _Orders:
    """Which image each sample of a stage shows."""

    def __init__(self, seed: int, stage: str, num_images: int) -> None:
        self._seed = seed
        self._stage = stage
        self._num_images = num_images
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def image(self, sample: int) -> int:
        epoch, position = divmod(sample, self._num_images)
        if epoch != self._epoch:
            draws = np.random.default_rng(key(self._seed, self._stage, "order", epoch))
            self._order, self._epoch = draws.permutation(self._num_images), epoch
        return int(self._order[position])


def _collated(crops: list[_Crop]) -> _CropBatch:
    failure = next((c.failure for c in crops if c.failure), "")
    usable = [c.pixels for c in crops if c.pixels is not None]
    return _CropBatch(
        pixels=torch.empty(0) if failure else torch.stack(usable),
        samples=tuple(c.sample for c in crops),
        skipped=tuple(dict.fromkeys(text for c in crops for text in c.skipped)),
        failure=failure,
    )


def live_with_parent(_: int) -> None:
    """Have a loading process end with the training process, and not before."""
    # Ctrl-C reaches the workers too, and the training process still finishes its step with them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One that outlived a killed run would hold what it inherited: the lock on the run's folder.
    # Torch's own watch looks every five seconds, and misses a parent that ended before it began.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _unit(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32).div_(255)


def _checked_reader(
    source: ImageSource, image_size: int, resize: int | None, *, natural: bool = False
) -> ImageReader:
    if image_size < 1:
        raise UsageError(f"data.image_size must be at least 1, got {image_size}")
    if resize is not None and resize < image_size:
        raise UsageError(
            f"data.resize = {resize} is smaller than the crop, data.image_size = {image_size}: "
            f"set data.resize to {image_size} or more"
        )
    return ImageReader(
        source, image_size=image_size, resize=resize, shrink=not natural, cached=natural
    )


def _default_workers() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return min(4, len(affinity(0)) if affinity else os.cpu_count() or 1)


def held_out_indices(num_images: int, held_out: int) -> list[int]:
    """Indices of the held-out images, spread evenly over the sorted list; at most half of it."""
    count = min(held_out, num_images // 2)
    return [(2 * i + 1) * num_images // (2 * count) for i in range(count)]


class _SplitDataset(ImageDataset):
    """A source of which some images, evenly spread, are held out and cropped at their centre."""

    def __init__(
        self,
        source: ImageSource,
        *,
        image_size: int,
        resize: int | None,
        workers: int | None,
        held_out: int,
    ) -> None:
        if held_out < 1:
            raise UsageError(f"data.held_out must be at least 1, got {held_out}")
        if len(source) < 2:
            raise DataError(
                f"{source.location} has a single image; at least 2 are needed, one to train on and "
                "one to hold out"
            )
        self._held_out = held_out_indices(len(source), held_out)
        super().__init__(
            _checked_reader(source, image_size, resize),
            np.setdiff1d(np.arange(len(source)), self._held_out),
            workers=_default_workers() if workers is None else workers,
        )

    def held_out(self) -> HeldOut:
        """Centre crops of the held-out images; those that cannot be used are logged and left out.

        Raises:
            DataError: if none of them can be used.
        """
        images, groups, errors = [], [], []
        for index in self._held_out:
            try:
                pixels = self._reader.read(index)
            except DataError as error:
                logger.warning("held-out image left out: %s", error)
                errors.append(error)
                continue
            images.append(to_tensor(centre_crop(pixels, self.image_size, self.image_size)))
            groups.append(self._reader.source.name(index))
        if not images:
            raise DataError("held out: " + self._reader.none_usable(errors))
        return HeldOut(torch.stack(images), tuple(groups), dict.fromkeys(groups, 1))


class FolderDataset(_SplitDataset):
    """Image files below a folder, in the order of their paths.

    Args:
        path: the folder.
        image_size: side of the crops, in pixels.
        resize, workers, held_out: see ``FolderDatasetConfig``.

    Raises:
        DataError: if there is no such folder, or fewer than two images in it.
        UsageError: if ``resize`` is smaller than the crop.
    """

    def __init__(
        self,
        *,
        path: str,
        image_size: int,
        resize: int | None = None,
        workers: int | None = None,
        held_out: int = 32,
    ) -> None:
        super().__init__(
            folder_source(path), image_size=image_size, resize=resize, workers=workers,
            held_out=held_out,
        )  # fmt: skip


class ParquetDataset(_SplitDataset):
    """Images in Parquet files, in the order of files and rows.

    Args:
        path: a Parquet file, or a folder of them.
        image_size: side of the crops, in pixels.
        column: the column of images.
        label_column: the column of labels.
        resize, workers, held_out: see ``ParquetDatasetConfig``.

    Raises:
        DataError: if there is no such file, it lacks the column, or has fewer than two rows.
        UsageError: if ``resize`` is smaller than the crop.
    """

    def __init__(
        self,
        *,
        path: str,
        image_size: int,
        column: str = "image",
        label_column: str | None = None,
        resize: int | None = None,
        workers: int | None = None,
        held_out: int = 32,
    ) -> None:
        super().__init__(
            ParquetSource(path, column, label_column), image_size=image_size, resize=resize, workers=workers,
            held_out=held_out,
        )  # fmt: skip


class SampleDataset(ImageDataset):
    """The colour photographs inside the scikit-image and scikit-learn distributions.

    They are read from the installed packages by path, without importing these; nothing is
    downloaded. Decoded photographs stay in memory.

    Args:
        image_size: side of the crops, in pixels.
        resize: short side of every photograph, in pixels; natural size where not given.
        workers: processes that load images; 0 where not given.

    Raises:
        DataError: if a photograph is missing from its package.
        UsageError: if ``resize`` is smaller than the crop.
    """

    def __init__(
        self, *, image_size: int, resize: int | None = None, workers: int | None = None
    ) -> None:
        photographs = (*SAMPLE_TRAINING, *SAMPLE_HELD_OUT)
        source = FileSource(
            "sample",
            [Path(file).name for _, file in photographs],
            [_packaged(package, file) for package, file in photographs],
        )
        super().__init__(
            _checked_reader(source, image_size, resize, natural=True),
            np.arange(len(SAMPLE_TRAINING)),
            workers=workers or 0,
        )

    def held_out(self) -> HeldOut:
        """Tiles of the two held-out photographs, row-major, out of a centred region.

        The region has at most 256×256 pixels, and at least one tile.

        Raises:
            DataError: if one is smaller than a tile.
        """
        s = self.image_size
        images, groups, columns = [], [], {}
        for index in range(self.num_images, len(self._reader.source)):
            name = self._reader.source.name(index)
            try:
                pixels = self._reader.read(index)
            except TooSmallError as error:
                raise DataError("held out: " + self._reader.none_usable([error])) from None
            rows, columns[name] = (max(1, min(n, TILED_REGION) // s) for n in pixels.shape[:2])
            region = centre_crop(pixels, rows * s, columns[name] * s)
            tiles = region.reshape(rows, s, columns[name], s, 3).swapaxes(1, 2)
            images += [to_tensor(tile) for tile in tiles.reshape(-1, s, s, 3)]
            groups += [name] * (rows * columns[name])
        return HeldOut(torch.stack(images), tuple(groups), columns)


def _packaged(package: str, file: str) -> str:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, file)).is_file():
            return str(path)
    distribution = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
    raise DataError(
        f"the sample photograph {package}/{file} is missing: reinstall {distribution} with "
        f"pip install --force-reinstall {distribution}"
    )
