"""Tar shards in the WebDataset layout: local ones with an index, others as streams."""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

from torch.utils.data import Dataset as TorchDataset
from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from rpiae.core.errors import DataError, UsageError
from rpiae.data.image_dataset import ImageOptions, SplitDataset
from rpiae.data.loading import default_workers, loaded, loader
from rpiae.data.sources import EXTENSIONS
from rpiae.data.streams import Encoded, Stream, StreamDataset, check_not_streaming

#: What opening, reading and unpacking a shard may raise.
READING = (OSError, EOFError, tarfile.TarError, zlib.error)

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)

#: Endings of compressed shards, in which no member can be found without reading those before it.
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz")

#: Shards for which one more process that reads headers is worth its start.
SHARDS_PER_WORKER = 8

#: How a command ends that succeeded, or whose output nobody wants any more; None where there is none.
CLOSED = (None, 0, 23, 141, -13)


class _Member(tarfile.TarInfo):
    """A member whose damaged or missing header is an error; ``tarfile`` takes it for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]  # undocumented
            raise tarfile.ReadError(f"damaged header at byte {archive.offset} ({error})") from None
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError):  # type: ignore[attr-defined]  # undocumented
            if archive.offset == 0:
                raise tarfile.ReadError("it is empty") from None
            raise tarfile.ReadError(f"it ends at byte {archive.offset}, unfinished") from None


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members in order; unlike the archive itself, this keeps none in memory."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # undocumented
        yield member


class _Grouping:
    """Members as samples: those that follow each other and share a key, which ends at the first dot.

    Args:
        member: what follows the key in the wanted member's name, such as ``"jpg"``; any image where
            empty.
    """

    def __init__(self, member: str) -> None:
        self._wanted = member.lower().removeprefix(".")

    def holds_image(self, ending: str) -> bool:
        """Whether a member with this ending is the sample's image."""
        if self._wanted:
            return ending.lower() == self._wanted
        return os.path.splitext(f".{ending.lower()}")[1] in EXTENSIONS or (
            f".{ending.lower()}" in EXTENSIONS
        )

    def ending(self, member: tarfile.TarInfo) -> tuple[str, str]:
        """Key and ending; both empty for what belongs to no sample."""
        name = member.name
        hidden = name.startswith("__") and "__" in name[2:]
        if not member.isreg() or member.issparse() or hidden:
            return "", ""
        key, ending = base_plus_ext(name)
        return (key or "", ending or "")


class TarIndex(NamedTuple):
    """Where the images of a shard are.

    Attributes:
        names: their members.
        offsets, sizes: position and length of their content, in bytes.
        problem: what is wrong with the rest of the shard.
    """

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    problem: str


def index_tar(path: Path, grouping: _Grouping) -> TarIndex:
    """Index an uncompressed local shard by its headers alone; nothing is raised."""
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    problems: list[str] = []
    without: list[str] = []
    last_key, has_image = "", True
    try:
        length = path.stat().st_size
        with tarfile.open(path, "r:", tarinfo=_Member) as archive:
            for member in _members(archive):
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError(f"it ends inside {member.name}")
                key, ending = grouping.ending(member)
                if not key:
                    continue
                if key != last_key:
                    without += [last_key] if not has_image else []
                    last_key, has_image = key, False
                if grouping.holds_image(ending) and not has_image:
                    names.append(member.name)
                    offsets.append(member.offset_data)
                    sizes.append(member.size)
                    has_image = True
        without += [last_key] if not has_image else []
    except READING as error:
        used = f"the {len(names)} images before are used" if names else "the shard is left out"
        problems.append(f"{path}: {_reason(error)}; {used}")
    problems += [_without_image(str(path), without)] if without else []
    if not names and not problems:
        problems.append(f"{path}: there are no images in it; the shard is left out")
    return TarIndex(names, offsets, sizes, "; ".join(problems))


def _without_image(shard: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{shard}: {keys[0]}{more} left out, no member of which is an image"


def _ending(file: Any) -> str:
    """How the command behind a shard ended, where it ended badly."""
    with suppress(*READING):
        file.close()
    status = getattr(file, "status", None)
    return f"its command ended with status {status}" if status not in CLOSED else ""


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)


class _Indexing(TorchDataset[TarIndex]):
    """The indices of shards, one by one, for a loader."""

    def __init__(self, paths: Sequence[Path], grouping: _Grouping) -> None:
        self._paths = paths
        self._grouping = grouping

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> TarIndex:
        return index_tar(self._paths[number], self._grouping)


def _same(index: TarIndex) -> TarIndex:
    return index


class IndexedTars:
    """Images in uncompressed local tar shards, in the order of shards and members.

    The headers are read once, and their positions held in memory; every image can then be read by
    itself, or one shard after the other.

    Args:
        location: what messages call the shards.
        paths: the shards.
        member: see ``WebDatasetConfig``.
        workers: processes that read the headers; fewer for a few shards.

    Attributes:
        problems: what of the shards is left out, in words.

    Raises:
        DataError: if no shard has an image.
    """

    def __init__(
        self, location: str, paths: Sequence[Path], member: str, *, workers: int = 0
    ) -> None:
        self.location = location
        self._paths = paths
        indexing = _Indexing(paths, _Grouping(member))
        workers = min(workers, len(paths) // SHARDS_PER_WORKER)
        self._shards: list[TarIndex] = list(
            loaded(loader(indexing, workers=workers, batch_size=None, collate_fn=_same))
        )
        self.problems = tuple(shard.problem for shard in self._shards if shard.problem)
        self._starts = [0]
        for shard in self._shards:
            self._starts.append(self._starts[-1] + len(shard.names))
        if not self._starts[-1]:
            raise DataError(f"{location} has no usable image: " + "; ".join(self.problems[:3]))

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, index: int) -> str:
        shard, position = self._locate(index)
        return f"{self._paths[shard].name}/{self._shards[shard].names[position]}"

    def path(self, index: int) -> str:
        shard, position = self._locate(index)
        return f"{self._paths[shard]}/{self._shards[shard].names[position]}"

    def read(self, index: int) -> bytes:
        shard, position = self._locate(index)
        try:
            with self._paths[shard].open("rb") as file:
                return _content(file, self._shards[shard], position)
        except OSError as error:
            raise DataError(f"{self.path(index)}: {_reason(error)}") from None

    def _locate(self, index: int) -> tuple[int, int]:
        shard = bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def stream(self) -> IndexedStream:
        """The same images, shard after shard."""
        return IndexedStream(self.location, self._paths, self._shards)


class IndexedStream:
    """Indexed shards that are read from their beginning; see ``Stream``."""

    def __init__(self, location: str, paths: Sequence[Path], shards: Sequence[TarIndex]) -> None:
        self.location = location
        self.total: int | None = sum(len(shard.names) for shard in shards)
        self.problems = tuple(shard.problem for shard in shards if shard.problem)
        self._paths = paths
        self._shards = shards

    def __len__(self) -> int:
        return len(self._paths)

    def shard(self, index: int) -> str:
        return str(self._paths[index])

    def count(self, index: int) -> int:
        return len(self._shards[index].names)

    def images(self, index: int) -> Iterator[Encoded | str]:
        shard, path = self._shards[index], self._paths[index]
        try:
            with path.open("rb") as file:
                for position, name in enumerate(shard.names):
                    yield Encoded(f"{path}/{name}", _content(file, shard, position))
        except OSError as error:
            raise DataError(f"{path}: {_reason(error)}") from None


def _content(file: Any, shard: TarIndex, position: int) -> bytes:
    file.seek(shard.offsets[position])
    content = file.read(shard.sizes[position])
    assert isinstance(content, bytes)
    return content


class PipedTars:
    """Tar shards that can only be read from their beginning; see ``Stream``.

    Args:
        location: what messages call the shards.
        urls: the shards, as the ``webdataset`` library opens them.
        member: see ``WebDatasetConfig``.
    """

    def __init__(self, location: str, urls: Sequence[str], member: str) -> None:
        self.location = location
        self.total: int | None = None
        self.problems: tuple[str, ...] = ()
        self._urls = urls
        self._grouping = _Grouping(member)

    def __len__(self) -> int:
        return len(self._urls)

    def shard(self, index: int) -> str:
        return self._urls[index]

    def count(self, index: int) -> None:
        return None

    def images(self, index: int) -> Iterator[Encoded | str]:
        url = self._urls[index]
        without: list[str] = []
        try:
            file = gopen(url)
        except Exception as error:  # every scheme has its own library behind it
            raise DataError(f"{url}: {_reason(error)}") from None
        try:
            with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as archive:
                yield from self._samples(url, archive, without)
            # What follows the archive is read too, or the command behind it would not end well.
            while file.read(1 << 16):
                pass
            file.close()
        except READING as error:
            raise DataError(f"{url}: {_ending(file) or _reason(error)}") from None
        finally:
            with suppress(*READING):
                file.close()
        if without:
            yield _without_image(url, without)

    def _samples(self, url: str, archive: tarfile.TarFile, without: list[str]) -> Iterator[Encoded]:
        last_key, has_image = "", True
        for member in _members(archive):
            key, ending = self._grouping.ending(member)
            if not key:
                continue
            if key != last_key:
                without += [last_key] if not has_image else []
                last_key, has_image = key, False
            if self._grouping.holds_image(ending) and not has_image:
                content = archive.extractfile(member)
                assert content is not None
                has_image = True
                yield Encoded(f"{url}/{member.name}", content.read())
        without += [last_key] if not has_image else []


def webdataset(
    *,
    path: str,
    member: str = "",
    streaming: bool = False,
    num_images: int | None = None,
    buffer: int = 1024,
    readers: int = 8,
    **options: Unpack[ImageOptions],
) -> SplitDataset | StreamDataset:
    """Images in tar shards in the WebDataset layout, in any order or as a stream.

    Args:
        path: the shards: a folder of ``*.tar``, or names with braces.
        member: see ``WebDatasetConfig``.
        streaming, num_images, buffer, readers: see ``StreamableDatasetConfig``.
        options: see ``ImageDatasetConfig``.

    Raises:
        DataError: if no shard has a usable image.
        UsageError: if the shards can only be streamed and ``streaming`` is not set, or an option
            does not go with the others.
    """
    urls = shard_names(path)
    local = [Path(url).expanduser() for url in urls if _is_local(url)]
    stream: Stream
    if len(local) == len(urls):
        given = options.get("workers")
        workers = default_workers() if given is None else given
        source = IndexedTars(path, local, member, workers=workers)
        if not streaming:
            check_not_streaming(num_images)
            return SplitDataset(source, options)
        stream = source.stream()
    elif not streaming:
        other = next(url for url in urls if not _is_local(url))
        raise UsageError(
            f"{other} can only be read from its beginning: set data.streaming = true and "
            "data.num_images to the number of images in all shards, or unpack it into plain tar "
            "files on a local disk"
        )
    else:
        stream = PipedTars(path, urls, member)
    return StreamDataset(
        stream, {**options, "num_images": num_images, "buffer": buffer, "readers": readers}
    )


def shard_names(path: str) -> list[str]:
    """The shards that a path stands for: those of a folder in sorted order, or names with braces.

    Raises:
        DataError: if a folder has no shards.
        UsageError: if the braces do not match.
    """
    if not path:
        raise UsageError("data: name tar shards: webdataset:/data/train-{0000..0099}.tar")
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = sorted(str(file) for file in folder.glob("*.tar"))
        if not found:
            raise DataError(f"{path} has no shards: no file directly in it ends in .tar")
        return found
    try:
        return list(expand_urls(path))
    except (ValueError, AssertionError) as error:
        raise UsageError(
            f"data.path = {path!r} is no list of shards ({error}): write braces as in "
            "/data/train-{0000..0099}.tar"
        ) from None


def shard_files(path: str) -> list[tuple[str, Path | None]]:
    """The shards that a path stands for, as names and local files; of those that are not on a local
    disk (None), the address is the name.

    Raises:
        DataError: if a folder has no shards.
        UsageError: if the braces do not match.
    """
    found: list[tuple[str, Path | None]] = []
    for url in shard_names(path):
        file = Path(os.path.expanduser(url.removeprefix("file:")))
        local = file.is_file() or _is_local(url)
        found.append((file.name, file) if local else (url, None))
    return found


def _is_local(url: str) -> bool:
    return not _SCHEME.match(url) and not url.lower().endswith(COMPRESSED)
