"""Which split an image or a file of images belongs to, by the names of files and folders.

The words are those of Hugging Face ``datasets`` (train or training; validation, valid, val or dev;
test, testing, eval or evaluation) and some that stand beside them (``trainval``, ``holdout``,
``unlabeled``, ``pred``); as a whole name, or set off by one of ``-._``, a space, a digit or, as in
``trainA``, a capital letter. Images of several splits are never mixed without being asked to.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from attrs import frozen

from rpiae.core.errors import DataError, UsageError
from rpiae.core.runtime.names import printable

WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "trainval": "trainval", "holdout": "holdout", "heldout": "holdout", "unlabeled": "unlabeled",
    "unlabelled": "unlabeled", "pred": "pred",
}  # fmt: skip

_BETWEEN = re.compile(r"[-._ 0-9]+|(?<=[a-z])(?=[A-Z])")

#: A shard with the number of all of them, as ``datasets`` names it: what comes before is the split.
_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}(?:[-.].*)?")

#: Groups that a message lists.
LISTED = 6


def split_of(name: str) -> str:
    """The split that one part of a path names; of several words, all of them; else nothing."""
    return _read(name)[0]


def is_plain(name: str) -> bool:
    """Whether nothing but a split is named, such as ``train`` or ``val2017``."""
    split, rest = _read(name)
    return bool(split) and not rest


def _read(name: str) -> tuple[str, tuple[str, ...]]:
    """The split that a name names, and the other words in it."""
    words = [word.lower() for word in _BETWEEN.split(name) if word]
    splits = dict.fromkeys(WORDS[word] for word in words if word in WORDS)
    return "+".join(splits), tuple(word for word in words if word not in WORDS)


@frozen
class Layout:
    """Names, and the split of each.

    Attributes:
        splits: names by their split; those that belong to none under "".
        depth: folders of a name that come before its class.
    """

    splits: Mapping[str, Sequence[str]]
    depth: int = 0


def layout_of_files(names: Sequence[str]) -> Layout:
    """The splits of files that hold many images each, by their paths below a folder.

    The first folder that names a split decides, else the file's own name.
    """
    some = any(split_of(folder) for name in names for folder in name.split("/"))

    def split(name: str) -> str:
        *folders, file = name.split("/")
        named = next(filter(None, map(split_of, [*folders, file])), "")
        numbered = _NUMBERED.fullmatch(file)
        return named or (numbered[1].lower() if some and numbered else "")

    return Layout(_grouped(names, split))


def layout_of_images(names: Sequence[str], classes: Sequence[str] = ()) -> Layout:
    """The splits of image files, by their paths below a folder.

    The folders of a level are splits if all of them are called so, or two of them are told apart by
    nothing else: ``train`` and ``val2017``, ``trainA`` and ``testA``. One class called ``test`` beside
    other classes is none; one folder called so beside nothing but images is. Classes lie below the
    splits, or are the folders that these lie in. Where no folders are splits, the files' names are
    looked at: they count if at least half of them name one.

    Args:
        names: the paths.
        classes: names that are known to be classes.
    """
    level = _level_of_splits(names, set(classes))
    if level is not None:
        splits = _grouped(names, lambda name: _split_at(name, level))
        return Layout(splits, _depth_of_classes(names, level))
    splits = _grouped(names, lambda name: split_of(name.rpartition("/")[2]))
    sure = 2 * len(splits.get("", ())) <= len(names) and len(set(splits) - {""}) > 1
    return Layout(splits if sure else {"": names})


def _level_of_splits(names: Sequence[str], classes: set[str]) -> int | None:
    """How many folders of a path come before the one that is a split; None where none is.

    The folders of a level count together, whatever they lie in.
    """
    level = 0
    while folders := {_part(name, level) for name in names} - {""}:
        if _are_splits(folders) and not folders <= classes:
            return level
        level += 1
    return None


def _depth_of_classes(names: Sequence[str], level: int) -> int:
    """How many folders of a path come before its class, with splits at a level."""
    above = (len({_part(name, depth) for name in names} - {""}) for depth in range(level))
    return next((depth for depth, count in enumerate(above) if count > 1), level + 1)


def _split_at(name: str, level: int) -> str:
    folder = _part(name, level)
    return split_of(folder) or folder


def _are_splits(folders: Collection[str]) -> bool:
    """Whether the folders of a level are splits.

    Two that differ in their split alone are (``seg_train`` and ``seg_test``), and so is one that
    is alone and called by nothing else, with images beside it or not.
    """
    if len(folders) == 1:
        return all(map(is_plain, folders))
    read = [_read(folder) for folder in folders]
    found = {(split, rest) for split, rest in read if split}
    named = {split for split, _ in found}
    alike = len({rest for _, rest in found}) < len(found)
    return alike or (all(split for split, _ in read) and len(named) > 1)


def chosen(layout: Layout, split: str, where: str) -> list[str]:
    """The names of one split, sorted.

    Args:
        layout: all names.
        split: a split, or a pattern of names such as ``train-*``; where empty, there must be one.
        where: what messages call the source.

    Raises:
        UsageError: if there are several splits and none was chosen.
        DataError: if there is no such split.
    """
    splits = layout.splits
    everything = sorted(name for names in splits.values() for name in names)
    if not split:
        if len(splits) > 1:
            raise UsageError(_several(layout, where))
        return everything
    if any(sign in split for sign in "*?["):
        found = [name for name in everything if fnmatch.fnmatchcase(name, split)]
    elif split in splits:
        found = sorted(splits[split])
    else:
        found = sorted(splits.get(split_of(split) or split.lower(), ()))
    if found:
        return found
    there = f"it has {listed(splits)}" if set(splits) - {""} else "no name in it is one of a split"
    raise DataError(
        f"{where} has no split {printable(split)!r}: {there}. Set data.split to what there is, or to "
        "a pattern of names; '*' takes all"
    )


def _several(layout: Layout, where: str) -> str:
    named = sorted(set(layout.splits) - {""})
    first = "train" if "train" in named else named[0]
    classes = "; if these folders are classes, list them in data.classes" if layout.depth else ""
    return (
        f"{where} has several splits: {listed(layout.splits)}. Choose one, such as --set "
        f"data.split={printable(first)} (or a pattern of names; '*' takes all){classes}"
    )


def listed(splits: Mapping[str, Sequence[str]]) -> str:
    """Splits and how many names each has, in words."""
    texts = [f"{printable(s)} ({len(names)})" for s, names in sorted(splits.items()) if s]
    more = [f"and {len(texts) - LISTED} more"] if len(texts) > LISTED else []
    if rest := splits.get(""):
        more.append(f"{len(rest)} of none, such as {printable(rest[0])}")
    return ", ".join([*texts[:LISTED], *more])


def _part(name: str, level: int) -> str:
    """The folder of a path at a level; nothing where the path is not that deep."""
    folders = name.split("/")
    return folders[level] if level < len(folders) - 1 else ""


def _grouped(names: Sequence[str], split: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(split(name), []).append(name)
    return groups
