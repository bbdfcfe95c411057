"""Folders, Parquet files, and the sample photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from rpiae.core.errors import DataError
from rpiae.core.model.contracts import HeldOut
from rpiae.data.crops import Fitting, ImageReader
from rpiae.data.image_dataset import BucketOptions, ImageDataset, ImageOptions, SplitDataset
from rpiae.data.images import TooSmallError, centre_crop, to_tensor
from rpiae.data.parquet import ParquetSource
from rpiae.data.paths import packaged
from rpiae.data.sources import FileSource, folder_source

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

#: What brings these packages.
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


class FolderDataset(SplitDataset):
    """Image files below a folder, in the order of their paths.

    Args:
        path: the folder.
        split, classes: see ``FolderDatasetConfig``.
        options: see ``FolderDatasetConfig``.

    Raises:
        DataError: if there is no such folder, or fewer than two images in it.
        UsageError: if it has several splits and none is chosen, or ``resize`` is smaller than the
            crop.
    """

    def __init__(
        self,
        *,
        path: str,
        split: str = "",
        classes: Sequence[str] = (),
        **options: Unpack[ImageOptions],
    ) -> None:
        super().__init__(folder_source(path, split, classes), options)


class ParquetDataset(SplitDataset):
    """Images in Parquet files, in the order of files and rows.

    Args:
        path: a Parquet file, or a folder of them.
        column: the column of images.
        label_column: the column of labels.
        split, classes: see ``ParquetDatasetConfig``.
        options: see ``ParquetDatasetConfig``.

    Raises:
        DataError: if there is no such file, it lacks the column, or has fewer than two rows.
        UsageError: if there are several splits and none is chosen, or ``resize`` is smaller than
            the crop.
    """

    def __init__(
        self,
        *,
        path: str,
        column: str = "image",
        label_column: str | None = None,
        split: str = "",
        classes: Sequence[str] = (),
        **options: Unpack[ImageOptions],
    ) -> None:
        source = ParquetSource(path, column, label_column, split=split, classes=classes)
        super().__init__(source, options)


class SampleDataset(ImageDataset):
    """The colour photographs inside the scikit-image and scikit-learn distributions.

    They are read from the installed packages by path, without importing these; nothing is
    downloaded. Decoded photographs stay in memory.

    Args:
        image_size: side of the crops, in pixels.
        resize: short side of every photograph, in pixels; natural size where not given.
        workers: processes that load images; 0 where not given.
        options: see ``BucketOptions``.

    Raises:
        DataError: if a photograph is missing from its package.
        UsageError: if ``resize`` is smaller than the crop.
    """

    def __init__(
        self,
        *,
        image_size: int,
        resize: int | None = None,
        workers: int | None = None,
        **options: Unpack[BucketOptions],
    ) -> None:
        files = sample_files()
        source = FileSource("sample", [name for name, _ in files], [str(path) for _, path in files])
        fitting = Fitting(image_size=image_size, resize=resize, shrink=False)
        super().__init__(
            ImageReader(source, fitting, cached=True),
            np.arange(len(SAMPLE_TRAINING)),
            workers=workers or 0,
            options=options,
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


def sample_files() -> list[tuple[str, Path]]:
    """Names and files of the sample photographs, those that are held out last.

    Raises:
        DataError: if one is missing from its package.
    """
    photographs = (*SAMPLE_TRAINING, *SAMPLE_HELD_OUT)
    return [
        (Path(file).name, packaged(package, file, distribution=DISTRIBUTIONS[package]))
        for package, file in photographs
    ]
