"""Where videos come from: files and folders of frames, tar shards, columns of Parquet files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

from rpiae.core.errors import DataError, MissingExtraError, UsageError
from rpiae.core.runtime.names import printable
from rpiae.data.labels import unique_names
from rpiae.data.members import MOST_OF_MEMBER, Kind
from rpiae.data.parquet import ParquetSource
from rpiae.data.paths import as_path, check_regular, existing
from rpiae.data.sources import EXTENSIONS, Walked, walked
from rpiae.data.splits import chosen, layout_of_files, layout_of_images
from rpiae.data.tar_index import IndexedTars
from rpiae.data.video.contracts import Video
from rpiae.data.video.files import VIDEO_EXTENSIONS, open_video
from rpiae.data.video.frame_folder import open_frame_folder

VIDEOS = Kind(
    one="video", article="a", many="videos", extensions=VIDEO_EXTENSIONS, most=MOST_OF_MEMBER
)

#: Endings of images that are frames, and of no video.
FRAMES = tuple(ending for ending in EXTENSIONS if ending not in VIDEO_EXTENSIONS)

#: Row groups of videos that a process keeps in memory; ``datasets`` writes ten videos into each.
CACHED = 1

#: How tar shards end, those that can be read in any order, and others.
_SHARDS, _COMPRESSED = ".tar", (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_TABLES = ".parquet"


class VideoSource(Protocol):
    """Videos by index.

    Attributes:
        location: what messages call the source.
        problems: what it leaves out, in words.
    """

    location: str
    problems: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a video is called; unique within the source, and printable."""

    def path(self, index: int) -> str:
        """What messages call a video."""

    def open(self, index: int) -> Video:
        """A video, which its user closes.

        Raises:
            DataError: if it cannot be read, or is none.
        """


class FileVideos:
    """Video files, and folders of frames.

    Args:
        location: what messages call the source.
        names: what each video is called.
        paths: its file or folder, as many as ``names``.
        problems: what is left out, in words.
    """

    def __init__(
        self, location: str, names: Sequence[str], paths: Sequence[Path], problems: Sequence[str]
    ) -> None:
        self.location = printable(location)
        self.problems = tuple(problems)
        self._names = unique_names(names)
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._names[index]

    def path(self, index: int) -> str:
        return printable(str(self._paths[index]))

    def open(self, index: int) -> Video:
        path = self._paths[index]
        return open_frame_folder(path) if path.is_dir() else open_video(path)


class TarVideos:
    """Videos in plain local tar shards; what is read of one is no more than its decoder asks for.

    Args:
        tars: the shards.
    """

    def __init__(self, tars: IndexedTars) -> None:
        self.location = tars.location
        self.problems = tars.problems
        self._tars = tars

    def __len__(self) -> int:
        return len(self._tars)

    def name(self, index: int) -> str:
        return self._tars.name(index)

    def path(self, index: int) -> str:
        return self._tars.path(index)

    def open(self, index: int) -> Video:
        shard, offset, size = self._tars.place(index)
        name = self.path(index)
        try:
            file = shard.open("rb")
        except OSError as error:
            raise DataError(f"{name}: {error.strerror}") from None
        return open_video(io.BufferedReader(_Window(file, offset, size)), name=name)


class ParquetVideos:
    """Videos in a column of Parquet files, which are read row group by row group.

    Args:
        rows: the column.
    """

    def __init__(self, rows: ParquetSource) -> None:
        self.location = rows.location
        self.problems = rows.problems
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return self._rows.name(index)

    def path(self, index: int) -> str:
        return self._rows.path(index)

    def open(self, index: int) -> Video:
        return open_video(self._rows.read(index), name=self.path(index))


class _Window(io.RawIOBase):
    """A part of a file, as a file.

    Args:
        file: the whole, which is closed with the part.
        start, size: of the part, in bytes.
    """

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._start = start
        self._size = size
        self._here = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._here)
        found = self._file.read(min(len(buffer), max(0, self._size - self._here)))
        buffer[: len(found)] = found
        self._here += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._here, io.SEEK_END: self._size}[whence]
        self._here = max(0, begin + offset)
        return self._here

    def tell(self) -> int:
        return self._here

    def close(self) -> None:
        self._file.close()
        super().close()


class FoundVideos(NamedTuple):
    """What a path stands for.

    Attributes:
        kind: of what is at ``paths``: video files and folders of frames, tar shards, Parquet files.
        names: what each is called, wherever it lies.
        paths: of each.
        problems: what is left out, in words.
    """

    kind: Literal["videos", "shards", "tables"]
    names: list[str]
    paths: list[Path]
    problems: tuple[str, ...] = ()

    def files(self) -> list[tuple[str, Path | None]]:
        """All files that are read, with the frames of folders one by one."""
        files: list[tuple[str, Path | None]] = []
        for name, path in zip(self.names, self.paths, strict=True):
            if not path.is_dir():
                files.append((name, path))
                continue
            frames = walked(path, FRAMES).files
            files += [(f"{name}/{frame}", path / frame) for frame in frames if "/" not in frame]
        return files


def find_videos(path: str, split: str = "") -> FoundVideos:
    """The videos that a path stands for; none of them is opened.

    A folder is searched with its subfolders. Video files in it are videos, and every folder of images
    without a video file beside them is one too, frame by frame. Where there is neither, tar shards are
    read, and where there are none, Parquet files. What is left out so is told.

    Args:
        path: a video file, a folder, a tar shard, a Parquet file, or names of shards with braces.
        split: a split, or a pattern of names; see ``rpiae.data.splits``.

    Raises:
        UsageError: if nothing can be called so, there are several splits and none is chosen, or shards
            cannot be read in any order.
        DataError: if nothing is there, or no videos.
    """
    if not path:
        raise UsageError("data: name a video, or a folder of videos: videos:PATH")
    if "{" in path or "::" in path:
        return _shards_by_name(path, split)
    place = existing(path, "file or folder")
    if not place.is_dir():
        return _single(place, split)
    return _below(place, split)


def open_source(
    path: str, *, split: str = "", column: str = "video", member: str = "", workers: int = 0
) -> VideoSource:
    """The videos that a path stands for.

    Args:
        path, split: see ``find_videos``.
        column: of Parquet files: the column of videos.
        member: of tar shards: see ``VideosConfig``.
        workers: processes that read the headers of shards.

    Raises:
        UsageError, DataError: see ``find_videos``.
    """
    found = find_videos(path, split)
    if found.kind == "tables":
        return ParquetVideos(ParquetSource(path, column, split=split, kind=VIDEOS, cached=CACHED))
    if found.kind == "shards":
        return TarVideos(
            IndexedTars(
                path, found.paths, member, workers=workers, problems=found.problems, kind=VIDEOS
            )
        )
    names = [as_path(path).resolve().name if name == "." else name for name in found.names]
    return FileVideos(path, names, found.paths, found.problems)


def _single(place: Path, split: str) -> FoundVideos:
    check_regular(place)
    name = place.name.lower()
    _refuse_compressed([place.name], printable(str(place)))
    if name.endswith(FRAMES):
        raise DataError(
            f"{printable(str(place))} is an image: name a video file, a folder of frames, or take "
            "folder:PATH for images"
        )
    chosen(layout_of_files([place.name]), split, printable(str(place)))
    kinds: dict[str, Literal["shards", "tables"]] = {_SHARDS: "shards", _TABLES: "tables"}
    return FoundVideos(kinds.get(place.suffix.lower(), "videos"), [place.name], [place])


def _below(root: Path, split: str) -> FoundVideos:
    location = printable(str(root))
    endings = (*VIDEO_EXTENSIONS, *FRAMES, _SHARDS, *_COMPRESSED, _TABLES)
    there = walked(root, endings)
    videos = _ending(there, VIDEO_EXTENSIONS)
    beside = {_folder(name) for name in videos}
    images = _ending(there, FRAMES)
    frames = sorted({_folder(name) for name in images} - beside)
    shards, tables = _ending(there, (_SHARDS,)), _ending(there, (_TABLES,))
    if videos or frames:
        names = chosen(layout_of_images([*videos, *(f or "." for f in frames)]), split, location)
        stray = [name for name in images if _folder(name) in beside]
        others = [f"{len(stray)} images in folders of videos"] if stray else []
        others += [f"{len(shards)} tar shards"] if shards else []
        others += [f"{len(tables)} Parquet files"] if tables else []
        problems = [f"{location}: left out {', '.join(others)}"] if others else []
        if videos and frames:
            problems.append(
                f"{location}: {len(frames)} folders of images are taken for videos too, frame by "
                f"frame, such as {printable(frames[0] or '.')}; data.split chooses by a pattern of names"
            )
        paths = [root / name for name in names]
        return FoundVideos("videos", names, paths, (*there.problems, *problems))
    if shards:
        names = chosen(layout_of_files(shards), split, location)
        left = [f"{location}: left out {len(tables)} Parquet files"] if tables else []
        return FoundVideos(
            "shards", names, [root / name for name in names], (*there.problems, *left)
        )
    if tables:
        names = chosen(layout_of_files(tables), split, location)
        return FoundVideos("tables", names, [root / name for name in names], there.problems)
    _refuse_compressed(_ending(there, _COMPRESSED), location)
    raise DataError(
        f"{location} has no videos: no file in it or below it ends in {', '.join(VIDEO_EXTENSIONS)}, "
        f"{_SHARDS} or {_TABLES}, and no folder holds images"
    )


def _shards_by_name(path: str, split: str) -> FoundVideos:
    try:
        from rpiae.data.opening import is_seekable, shards_of
    except ImportError:
        raise MissingExtraError(
            "names of shards with braces need webdataset, which is not installed: pip install "
            '"rpiae[webdataset]"; the folder of the shards needs nothing'
        ) from None
    shards, problems = shards_of(path, split)
    for shard in shards:
        if not is_seekable(shard):
            _refuse_compressed([shard], printable(shard))
            raise UsageError(f"{printable(shard)}: videos are read from shards on a local disk")
    files = list(map(as_path, shards))
    return FoundVideos("shards", [file.name for file in files], files, problems)


def _refuse_compressed(names: Sequence[str], where: str) -> None:
    for name in names:
        if name.lower().endswith((*_COMPRESSED, ".gz", ".bz2", ".xz")):
            raise UsageError(
                f"{where}: {printable(name)} is compressed, and videos are read in any order: unpack "
                "it into a plain .tar, which is as small"
            )


def _ending(there: Walked, endings: tuple[str, ...]) -> list[str]:
    return [name for name in there.files if name.lower().endswith(endings)]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]
