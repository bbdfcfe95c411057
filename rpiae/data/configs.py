"""Configs of the built-in datasets (torch-free)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from attrs import evolve, field, frozen
from attrs import fields as fields_of

from rpiae.core.config.fields import (
    at_least,
    names_file,
    names_revision,
    wired,
    within,
    without_effect,
)
from rpiae.core.config.identity import files_below
from rpiae.core.config.parts import DatasetConfig
from rpiae.core.errors import ConfigError, DataError, FetchError, UsageError
from rpiae.core.runtime.names import printable

#: Why the number of loading processes is in no address.
LOADING = "every sample's draws are its own, whoever loads it"

#: Far above what anybody sets; what is more is a slip of the pen, and would ask for terabytes.
MOST_PIXELS = 65_536
MOST_PROCESSES = 1024
MOST_BUCKETS = 1024
MOST_HELD_OUT = 1_000_000
MOST_BUFFERED = 10_000_000
MOST_IMAGES = 10**12
MOST_FRAMES = 65_536
LEAST_RATE, MOST_RATE = 0.001, 1000.0


@frozen(kw_only=True)
class ImageDatasetConfig(DatasetConfig):
    """Base of the configs of datasets that are cropped out of images.

    Attributes:
        image_size: side of the square crops, in pixels.
        resize: length the short side of every image is resized to before it is cropped, in pixels
            (the paper: 384 for crops of 256). Not given: a short side above 1.5 × ``image_size`` is
            shrunk to that, and no image is enlarged; the paper's recipes resize all to 1.5 ×
            ``image_size``.
        workers: processes that load images; 0 loads in the training process. Not given: one per
            CPU, at most 4.
        buckets: number of aspect-ratio buckets, from 1:2 to 2:1: images go to the bucket with the
            nearest aspect ratio, are resized to cover it and cropped to it, and every batch is of
            one bucket. Held-out images stay square. Not given: all crops are square.
        bucket_sizes: the buckets themselves, as pairs of height and width in pixels, instead of a
            number.
        bucket_step: pixels that the sides of buckets are multiples of.
    """

    image_size: int | None = wired(
        "encoder.image_size", what="pixels", strict=False, maximum=MOST_PIXELS
    )
    resize: int | None = within(1, MOST_PIXELS, default=None)
    workers: int | None = without_effect(within(0, MOST_PROCESSES, default=None), LOADING)
    buckets: int | None = within(1, MOST_BUCKETS, default=None)
    bucket_sizes: tuple[tuple[int, int], ...] = ()
    bucket_step: int | None = wired(
        "encoder.output_patch", what="pixels", strict=False, maximum=MOST_PIXELS
    )

    def resized(self, side: int) -> ImageDatasetConfig:
        """With ``resize``, where it is not given and images are not resized to buckets."""
        if self.resize is not None or self.buckets is not None or self.bucket_sizes:
            return self
        return evolve(self, resize=side)


@frozen(kw_only=True)
class StoredDatasetConfig(ImageDatasetConfig):
    """Base of the configs of datasets that are read from a path.

    Attributes:
        path: where they are.
        split: a split, such as ``train``, by the names of files and folders that Hugging Face
            ``datasets`` knows; or a pattern of names below ``path``, such as ``train-*``, where
            ``*`` takes all. Not given: all there is, if it is not of several splits.
        classes: names of all classes, in the order of their numbers. Not given: the classes there
            are, in sorted order.
        held_out: images that are held out, at most half of them.
    """

    path: str = names_file(field())
    split: str = ""
    classes: tuple[str, ...] = ()
    held_out: int = within(1, MOST_HELD_OUT, default=32)


@frozen(kw_only=True)
class FolderDatasetConfig(StoredDatasetConfig):
    """Image files below a folder; subfolders with images are classes.

    Attributes:
        path: the folder; it is searched with its subfolders.
    """

    module: ClassVar[str] = "rpiae.data.datasets:FolderDataset"

    def files(self) -> Iterable[tuple[str, Path | None]]:
        """The images below the folder, and its classes without images, which shift the others."""
        from rpiae.data.paths import as_path
        from rpiae.data.sources import folder_source

        source = folder_source(self.path, self.split, self.classes)
        root, images = as_path(self.path), range(len(source))
        used = {source.label(i) for i in images}
        empty = [(n, name) for n, name in enumerate(source.label_names) if n not in used]
        return [
            *((source.read(i).relative_to(root).as_posix(), source.read(i)) for i in images),
            *((f"{number} {name}/", None) for number, name in empty),
        ]


@frozen(kw_only=True)
class ParquetDatasetConfig(StoredDatasetConfig):
    """Parquet files with a column of encoded images.

    Attributes:
        path: a Parquet file, or a folder of ``*.parquet`` files; it is searched with its subfolders.
        column: the column of images: binary, or a struct of ``bytes`` and ``path`` as Hugging Face
            ``datasets`` writes it.
        label_column: the column of labels, which ``rpiae encode`` stores: whole numbers, texts or
            booleans. Not given: ``label``, where there is one.
    """

    module: ClassVar[str] = "rpiae.data.datasets:ParquetDataset"
    column: str = "image"
    label_column: str | None = None

    def files(self) -> Iterable[tuple[str, Path | None]]:
        """The Parquet files."""
        from rpiae.data.parquet import parquet_files

        files, names, _ = parquet_files(self.path, self.split)
        return list(zip(names, files, strict=True))


@frozen(kw_only=True)
class StreamableDatasetConfig(StoredDatasetConfig):
    """Base of the configs of datasets that can also be read in order.

    Attributes:
        streaming: read shard after shard instead of image by image: for data that are not on a
            local disk, or on a slow one.
        num_images: of a stream that does not say how many images it has: their number, held-out
            ones included.
        buffer: images that a stream is shuffled in, over all processes; up to twice as many are in
            memory, encoded.
        readers: shards of a stream that are read side by side, over all processes. A multiple of
            the number of processes avoids that two of them read the same shard.
    """

    streaming: bool = False
    num_images: int | None = within(1, MOST_IMAGES, default=None)
    buffer: int = within(1, MOST_BUFFERED, default=1024)
    readers: int = within(1, MOST_PROCESSES, default=8)


@frozen(kw_only=True)
class HuggingFaceDatasetConfig(StreamableDatasetConfig):
    """A dataset of the Hugging Face ``datasets`` library.

    Attributes:
        path: its id on the hub, or a local folder: one that ``save_to_disk`` wrote, or one of image
            or Parquet files.
        split: the split to take, such as ``"train"``, as the library writes it.
        column: the column of images.
        label_column: the column of labels, which ``rpiae encode`` stores: whole numbers, texts or
            booleans. Not given: ``label``, where there is one.
        subset: the configuration, where the dataset has several.
        revision: branch, tag or commit on the hub.
    """

    module: ClassVar[str] = "rpiae.data.huggingface:huggingface"
    split: str = "train"
    column: str = "image"
    label_column: str | None = None
    subset: str = ""
    revision: str = names_revision("")

    def repository(self) -> str:
        """``path``, where it is no local folder."""
        return "" if os.path.isdir(os.path.expanduser(self.path)) else self.path

    def files(self) -> Iterable[tuple[str, Path | None]] | None:
        """All files of a local folder; None for a dataset of the hub, which its name stands for."""
        folder = os.path.expanduser(self.path)
        return files_below(Path(folder)) if os.path.isdir(folder) else None


@frozen(kw_only=True)
class WebDatasetConfig(StreamableDatasetConfig):
    """Tar shards in the WebDataset layout.

    Attributes:
        path: a folder of ``*.tar`` files, or names with braces such as
            ``/data/train-{0000..0099}.tar``; for a stream also URLs, compressed files and, where the
            environment allows it, ``pipe:`` commands.
        member: ending of the image in every sample, such as ``"jpg"``; ``"*"`` for all images of a
            sample. Where empty, the first image: ``jpg`` before ``depth.png``, masks last.
        label_column: member that holds the label, such as ``"cls"``, or a field of a JSON member,
            such as ``"json.label"``. Not given: ``cls``, where there is one.
    """

    module: ClassVar[str] = "rpiae.data.tars:webdataset"
    member: str = ""
    label_column: str | None = None

    def files(self) -> Iterable[tuple[str, Path | None]]:
        """The shards; those that are not on a local disk by their address."""
        from rpiae.data.opening import shard_files

        return shard_files(self.path, self.split)


@frozen(kw_only=True)
class VideosConfig(DatasetConfig):
    """Clips of videos.

    A video is a file, or a folder of frames. A clip's frames are those that are shown nearest to times
    that lie ``stride`` / ``frame_rate`` seconds apart.

    Attributes:
        path: a video file; a folder, which is searched with its subfolders for video files and for
            folders of frames, or else for tar shards or Parquet files; one of these; or names of tar
            shards with braces, such as ``/data/train-{0000..0099}.tar``.
        split: a split, or a pattern of names; see ``StoredDatasetConfig``.
        column: of Parquet files: the column of videos, binary or a struct of ``bytes`` and ``path``
            as Hugging Face ``datasets`` writes it.
        member: of tar shards: ending of the video in every sample, such as ``"mp4"``; ``"*"`` for all
            videos of a sample. Where empty, the first one.
        frames: of a clip.
        stride: a clip has every so many-th frame.
        frame_rate: frames per second that videos are taken to have, before ``stride``. Not given: the
            number that each has.
        image_size: side of the square crops, in pixels; all frames of a clip are cropped at one place.
        resize: length the short side of every frame is resized to before it is cropped, in pixels.
            Not given: a short side above 1.5 × ``image_size`` is shrunk to that.
        workers: processes that load clips; 0 loads in the training process. Not given: one per CPU, at
            most 4.
        held_out: share of every video, its last one in time, that is never trained on, however long
            clips are. Where it holds a clip in no video, the last clip of each is held out.
        portion: what is gone through clip by clip where a dataset is measured or encoded; training
            does not depend on it.
    """

    module: ClassVar[str] = "rpiae.data.video.dataset:VideoDataset"
    clips: ClassVar[bool] = True
    path: str = names_file(field())
    split: str = ""
    column: str = "video"
    member: str = ""
    frames: int = within(1, MOST_FRAMES, default=17)
    stride: int = within(1, MOST_FRAMES, default=1)
    frame_rate: float | None = within(LEAST_RATE, MOST_RATE, default=None)
    image_size: int | None = wired(
        "encoder.image_size", what="pixels", strict=False, maximum=MOST_PIXELS
    )
    resize: int | None = within(1, MOST_PIXELS, default=None)
    workers: int | None = without_effect(within(0, MOST_PROCESSES, default=None), LOADING)
    held_out: float = within(0.001, 0.5, default=0.1)
    portion: Literal["all", "train", "held-out"] = "all"

    def files(self) -> Iterable[tuple[str, Path | None]]:
        """The video files, and the frames in folders; shards and Parquet files as they are."""
        from rpiae.data.video.sources import find_videos

        return find_videos(self.path, self.split).files()

    def learned_by(self, trained: DatasetConfig) -> str:
        """A word where more of the videos that were trained on is gone through than was held out."""
        if not isinstance(trained, VideosConfig):
            return ""
        cut = ("frames", "stride", "frame_rate", "held_out")
        alike = all(getattr(self, name) == getattr(trained, name) for name in cut)
        try:
            both = self._places() & trained._places()
        except DataError:  # what a run was trained on may have been moved since
            return ""
        if not both or (alike and self.portion == "held-out"):
            return ""
        return (
            f"{printable(self.path)}: the run was trained on parts of {len(both)} of these videos; what it "
            f"held out is data.portion = held-out, with data.{', data.'.join(cut)} as in the run"
        )

    def _places(self) -> set[Path]:
        """Where the files lie, links followed."""
        return {path.resolve() for _, path in self.files() if path is not None}

    def resized(self, side: int) -> VideosConfig:
        """With ``resize``, where it is not given."""
        return self if self.resize is not None else evolve(self, resize=side)


@frozen(kw_only=True)
class MixtureSourceConfig:
    """A dataset in a mixture.

    Attributes:
        data: the dataset; its crops have the mixture's size, and the mixture loads its images.
        weight: how often it is drawn, relative to the other sources.
    """

    data: DatasetConfig
    weight: float = at_least(0, default=1.0)


@frozen(kw_only=True)
class MixtureDatasetConfig(DatasetConfig):
    """A weighted mixture of datasets.

    Attributes:
        sources: the datasets with their weights.
        epoch_images: images of an epoch; all training images of all sources where not given.
        image_size: side of the square crops, in pixels.
        workers: processes that load images; 0 loads in the training process. Not given: one per
            CPU, at most 4.
    """

    module: ClassVar[str] = "rpiae.data.mixture:MixtureDataset"
    sources: tuple[MixtureSourceConfig, ...]
    epoch_images: int | None = within(1, MOST_IMAGES, default=None)
    image_size: int | None = wired(
        "encoder.image_size", what="pixels", strict=False, maximum=MOST_PIXELS
    )
    workers: int | None = without_effect(within(0, MOST_PROCESSES, default=None), LOADING)

    def resized(self, side: int) -> MixtureDatasetConfig:
        """With every source's images resized, where it does not say otherwise."""
        sources = tuple(evolve(source, data=source.data.resized(side)) for source in self.sources)
        return evolve(self, sources=sources)

    def arguments(self) -> dict[str, Any]:
        """Keywords of the module: the sources as datasets, their names and weights."""
        built = [self._built(i, source.data) for i, source in enumerate(self.sources)]
        names: list[str] = []
        for source in self.sources:
            name, number = source.data.label, 2
            while name in names:
                name, number = f"{source.data.label}-{number}", number + 1
            names.append(name)
        return super().arguments() | {
            "sources": built,
            "names": names,
            "weights": [source.weight for source in self.sources],
        }

    def _built(self, index: int, data: DatasetConfig) -> Any:
        """A source; what is wrong with it names its fields as they are set here."""
        config = self._source(index, data)
        try:
            return config.build()
        except ConfigError:
            raise
        except (UsageError, DataError, FetchError) as error:
            fields = "|".join(a.name for a in fields_of(type(data)))
            inside = rf"data.sources[{index}].data.\1"
            text = re.sub(rf"\bdata\.({fields})\b", inside, str(error))
            raise type(error)(text) from None

    def _source(self, index: int, data: DatasetConfig) -> DatasetConfig:
        if isinstance(data, MixtureDatasetConfig):
            raise UsageError(
                f"data.sources[{index}] is a mixture, which cannot be mixed: list its sources here"
            )
        if not isinstance(data, ImageDatasetConfig):
            return data
        if data.workers is not None:
            raise UsageError(
                f"data.sources[{index}].data.workers has no effect in a mixture: set data.workers"
            )
        return data if data.image_size else evolve(data, image_size=self.image_size)
