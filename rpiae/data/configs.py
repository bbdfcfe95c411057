"""Configs of the built-in datasets (torch-free)."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from rpiae.core.config import DatasetConfig, at_least, wired


@frozen(kw_only=True)
class ImageDatasetConfig(DatasetConfig):
    """Base of the configs of datasets that are cropped out of images.

    Attributes:
        image_size: side of the square crops, in pixels.
        resize: length the short side of every image is resized to before it is cropped, in pixels
            (the paper: 384 for crops of 256). Not given: a short side above 1.5 × ``image_size`` is
            shrunk to that, and no image is enlarged.
        workers: processes that load images; 0 loads in the training process. Not given: one per
            CPU, at most 4.
        buckets: number of aspect-ratio buckets, from 1:2 to 2:1: images go to the bucket with the
            nearest aspect ratio, are resized to cover it and cropped to it, and every batch is of
            one bucket. Held-out images stay square. Not given: all crops are square.
        bucket_sizes: the buckets themselves, as pairs of height and width in pixels, instead of a
            number.
        bucket_step: pixels that the sides of buckets are multiples of.
    """

    image_size: int | None = wired("encoder.image_size", what="pixels", strict=False)
    resize: int | None = at_least(1, default=None)
    workers: int | None = at_least(0, default=None)
    buckets: int | None = at_least(1, default=None)
    bucket_sizes: tuple[tuple[int, int], ...] = ()
    bucket_step: int | None = wired("encoder.output_patch", what="pixels", strict=False)


@frozen(kw_only=True)
class FolderDatasetConfig(ImageDatasetConfig):
    """Image files below a folder.

    Attributes:
        path: the folder; it is searched with its subfolders.
        held_out: images that are held out, at most half of them.
    """

    module: ClassVar[str] = "rpiae.data.datasets:FolderDataset"
    path: str
    held_out: int = at_least(1, default=32)


@frozen(kw_only=True)
class ParquetDatasetConfig(ImageDatasetConfig):
    """Parquet files in the image layout of Hugging Face ``datasets``.

    Attributes:
        path: a Parquet file, or a folder of ``*.parquet`` files.
        column: the column of images, a struct of ``bytes`` and ``path``.
        held_out: images that are held out, at most half of them.
    """

    module: ClassVar[str] = "rpiae.data.datasets:ParquetDataset"
    path: str
    column: str = "image"
    held_out: int = at_least(1, default=32)


@frozen(kw_only=True)
class SampleDatasetConfig(ImageDatasetConfig):
    """Colour photographs inside the scikit-image and scikit-learn distributions.

    They are cropped at their natural size unless ``resize`` is given. Without ``workers``, they are
    loaded in the training process, which keeps them in memory.
    """

    module: ClassVar[str] = "rpiae.data.datasets:SampleDataset"
