"""Where encoded images come from: files, here those below a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rpiae.core.errors import DataError, UsageError
from rpiae.core.runtime.names import printable
from rpiae.data.labels import Labels, check_classes, unique_names
from rpiae.data.paths import existing
from rpiae.data.splits import chosen, is_plain, layout_of_images

#: Endings that are taken for images, in any case; of several images of a sample, earlier ones win.
EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".jpe", ".jfif", ".mpo", ".avif",
    ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".gif", ".apng", ".ppm", ".pgm", ".pbm",
    ".pnm", ".dib",
)  # fmt: skip

#: Endings of images that are not read.
UNREAD = (
    ".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".psd", ".tga", ".exr", ".hdr", ".pfm", ".qoi",
    ".ico", ".pcx", ".eps", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf",
)  # fmt: skip

#: Folders that systems and programs leave behind; like hidden ones, they are never looked into.
LITTER = ("__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN")

#: Kinds of things that a notice lists.
LISTED = 6


class ImageSource(Protocol):
    """Encoded images by index.

    Attributes:
        location: what messages call the source.
        problems: what it leaves out, in words.
    """

    location: str
    problems: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What an image is called; unique within the source, and printable."""

    def path(self, index: int) -> str:
        """What messages call an image."""

    def read(self, index: int) -> bytes | Path:
        """The content of an image file, or its path.

        Raises:
            DataError: if it cannot be read.
        """


class WithLabels:
    """Base of sources whose images have labels, which are read when they are first asked for.

    Attributes:
        labelled: whether it has any.
        label_names: name of every label, by its number; empty where unknown.
        label_notices: what is to be said of them.
    """

    def _read_labels(self) -> Labels | None:
        """The labels of all images; None where there are none."""
        raise NotImplementedError

    @cached_property
    def _labels(self) -> Labels | None:
        return self._read_labels()

    @property
    def labelled(self) -> bool:
        return self._labels is not None and bool((self._labels.numbers >= 0).any())

    @property
    def label_names(self) -> Sequence[str]:
        return self._labels.names if self._labels else ()

    @property
    def label_notices(self) -> Sequence[str]:
        return self._labels.notices if self._labels else ()

    def label(self, index: int) -> int | None:
        """The label of an image, at least 0; None where it has none."""
        number = int(self._labels.numbers[index]) if self._labels else -1
        return None if number < 0 else number


class FileSource(WithLabels):
    """Image files.

    Args:
        location: what messages call the source.
        names: what each image is called.
        paths: its files, as many as ``names``.
        labels: of the images, where there are any.
        problems: what is left out, in words.
    """

    def __init__(
        self,
        location: str,
        names: Sequence[str],
        paths: Sequence[str],
        *,
        labels: Labels | None = None,
        problems: Sequence[str] = (),
    ) -> None:
        self.location = printable(location)
        self.problems = tuple(problems)
        self._names = unique_names(names)
        self._paths = paths
        self._given = labels

    def _read_labels(self) -> Labels | None:
        return self._given

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._names[index]

    def path(self, index: int) -> str:
        return printable(self._paths[index])

    def read(self, index: int) -> Path:
        return Path(self._paths[index])


def folder_source(folder: str, split: str = "", classes: Sequence[str] = ()) -> FileSource:
    """The images below a folder, sorted by their path relative to it, which is also their name.

    Links are followed; hidden files and folders are left out, and ``LITTER``. Where images lie in
    subfolders (below a split's folder, where there are splits), these are classes: all of them, with
    images or not, numbered in sorted order or in that of ``classes``.

    Args:
        folder: its path.
        split: a split, or a pattern of names; see ``rpiae.data.splits``.
        classes: the names of all classes, in the order of their numbers.

    Raises:
        UsageError: if no folder can be called so, or it has several splits and none is chosen.
        DataError: if there is no such folder, no image in it, or a class that is not listed.
    """
    if not folder:
        raise UsageError("data: name a folder of images: folder:PATH")
    check_classes(classes)
    root = existing(folder, "folder")
    if not root.is_dir():
        raise DataError(f"{printable(folder)} is a file; set data.path to a folder of images")
    found = walked(root, EXTENSIONS, doubtful=_like_an_image)
    location = printable(str(root))
    if not found.files:
        others = f" ({'; '.join(found.problems)})" if found.problems else ""
        raise DataError(
            f"{location} has no images: no file in it or below it ends in "
            f"{', '.join(EXTENSIONS)}{others}"
        )
    layout = layout_of_images(found.files, classes)
    names = chosen(layout, split, location)
    labels = _labels_of_folders(root, names, found.folders, layout.depth, classes)
    paths = [str(root / name) for name in names]
    return FileSource(str(root), names, paths, labels=labels, problems=found.problems)


def _labels_of_folders(
    root: Path, names: Sequence[str], folders: Sequence[str], depth: int, classes: Sequence[str]
) -> Labels | None:
    """Labels by the folder of each image that lies ``depth`` below the root."""
    own = [_class_of(name, depth) for name in names]
    if not any(own):
        return None
    location = printable(str(root))
    above = {tuple(name.split("/")[:depth]) for name in names}
    there = {
        parts[depth]
        for parts in (folder.split("/") for folder in folders)
        if len(parts) == depth + 1 and tuple(parts[:depth]) in above
    }
    notices = []
    if classes:
        ordered = list(classes)
        if strange := sorted(there - set(classes)):
            raise DataError(
                f"{location} has a class {printable(strange[0])!r}, which data.classes lacks: add "
                "it, or choose files with data.split"
            )
    else:
        beside = _classes_beside([root.joinpath(*parts) for parts in above], there)
        ordered = sorted(there.union(*beside.values()))
        if len(ordered) > len(there):
            notices.append(
                f"{location}: classes are numbered together with those of "
                f"{', '.join(map(printable, sorted(beside)))} beside it"
            )
    without, used = own.count(""), set(own)
    if empty := [name for name in ordered if name not in used]:
        notices.append(
            f"{location}: {len(empty)} of {len(ordered)} classes have no images, such as "
            f"{printable(empty[0])}; they keep their numbers"
        )
    if without:
        notices.append(
            f"{location}: {without} of {len(names)} images lie in no class folder and have no label"
        )
    numbers = {name: number for number, name in enumerate(ordered)} | {"": -1}
    return Labels(
        np.array([numbers[name] for name in own], dtype=np.int32), unique_names(ordered),
        tuple(notices),
    )  # fmt: skip


def _class_of(name: str, depth: int) -> str:
    """The class that an image's path names; nothing where it lies in no class folder."""
    folders = name.split("/")
    return folders[depth] if len(folders) > depth + 1 else ""


def _classes_beside(splits: Sequence[Path], classes: set[str]) -> dict[str, set[str]]:
    """Classes of the other splits beside some, by the names of their folders.

    A class of which one split has no image, and so no folder, would else shift the numbers of those
    after it. Folders that share no class are other data.
    """
    found = {}
    own = {folder.resolve() for folder in splits}
    for folder in own:
        for name in _subfolders(folder.parent) if is_plain(folder.name) else ():
            if is_plain(name) and folder.parent / name not in own:
                theirs = _subfolders(folder.parent / name)
                if theirs & classes:
                    found[name] = theirs
    return found


def _subfolders(folder: Path) -> set[str]:
    """Names of the folders in one; none where it cannot be read."""
    try:
        return {
            entry.name for entry in _entries(folder) if not _skipped(entry) and _is(entry.is_dir)
        }
    except DataError:
        return set()


class Walked(NamedTuple):
    """What is below a folder, by paths relative to it.

    Attributes:
        files: the wanted files, sorted.
        folders: those that were looked into.
        problems: what is left out and might have been wanted, in words.
    """

    files: list[str]
    folders: list[str]
    problems: tuple[str, ...]


def walked(
    root: Path, endings: Sequence[str], *, doubtful: Callable[[str], str] = lambda _: ""
) -> Walked:
    """Look through a folder and those below it.

    Links to folders are followed after all others; one that leads upwards, or to a folder that is
    read already, is left out.

    Args:
        root: the folder.
        endings: of the files that are wanted, in any case.
        doubtful: what kind of file another one is that might have been wanted, by its name;
            nothing where it might not.

    Raises:
        DataError: if a folder cannot be read.
    """
    files: list[str] = []
    folders: list[str] = []
    left_out: Counter[str] = Counter()
    visited = {str(parent) for parent in Path(os.path.realpath(root)).parents}
    waiting, links = [""], list[str]()
    while waiting or links:
        here = waiting.pop() if waiting else links.pop()
        real = os.path.realpath(root / here)
        if real in visited:
            left_out["links to folders that are read already"] += 1
            continue
        visited.add(real)
        folders += [here] if here else []
        for entry in _entries(root / here):
            name = f"{here}/{entry.name}".lstrip("/")
            if _skipped(entry):
                continue
            if _is(entry.is_dir):
                (links if entry.is_symlink() else waiting).append(name)
            elif not entry.name.lower().endswith(tuple(endings)):
                left_out.update(filter(None, [doubtful(entry.name)]))
            elif _is(entry.is_file):
                files.append(name)
            else:
                left_out["no regular files, or links that lead nowhere"] += 1
    told = ", ".join(f"{kind} ({number})" for kind, number in left_out.most_common(LISTED))
    problems = (f"{printable(str(root))}: left out {told}",) if told else ()
    return Walked(sorted(files), folders, problems)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, in an order that is the same everywhere."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(str(folder))}: {error.strerror}") from None


def _skipped(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or entry.name in LITTER


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself, or to where nobody may look
        return False


def _like_an_image(name: str) -> str:
    """What kind of image a file may be that is not read, by its name."""
    lower = printable(name.lower())
    stem, ending = os.path.splitext(lower)
    if ending in UNREAD:
        return ending
    if not ending:
        return "without an ending"
    inner = os.path.splitext(stem)[1]
    return inner + ending if inner in EXTENSIONS else ""
