"""Which split an image or a file of images belongs to, by the names of files and folders.

The words are those of Hugging Face ``datasets``: train or training; validation, valid, val or dev;
test, testing, eval or evaluation; as a whole name, or set off by one of ``-._``, a space or a digit.
Images of several splits are never mixed without being asked to.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence

from attrs import frozen

from rpiae.core.errors import DataError, UsageError
from rpiae.core.names import printable

WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip

_BETWEEN = re.compile(r"[-._ 0-9]+")

#: A shard with the number of all of them, as ``datasets`` names it: what comes before is the split.
_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}(?:[-.].*)?")

#: Groups that a message lists.
LISTED = 6


def split_of(name: str) -> str:
    """The split that one part of a path names; of several words, all of them; else nothing."""
    words = [WORDS[word] for word in _BETWEEN.split(name.lower()) if word in WORDS]
    return "+".join(dict.fromkeys(words))


def is_plain(name: str) -> bool:
    """Whether nothing but a split is named, such as ``train`` or ``val2017``."""
    return [word in WORDS for word in _BETWEEN.split(name.lower()) if word] == [True]


@frozen
class Layout:
    """Names, and the split of each.

    Attributes:
        splits: names by their split; those that belong to none under "".
        depth: folders of a name that lead to a split; classes lie below them.
    """

    splits: Mapping[str, Sequence[str]]
    depth: int = 0


def layout_of_files(names: Sequence[str]) -> Layout:
    """The splits of files that hold many images each, by their paths below a folder.

    The first folder that names a split decides, else the file's own name.
    """
    some = any(split_of(part) for name in names for part in name.split("/"))

    def split(name: str) -> str:
        *folders, file = name.split("/")
        named = next(filter(None, map(split_of, [*folders, file])), "")
        numbered = _NUMBERED.fullmatch(file)
        return named or (numbered[1].lower() if some and numbered else "")

    return Layout(_grouped(names, split))


def layout_of_images(names: Sequence[str], classes: Sequence[str] = ()) -> Layout:
    """The splits of image files, by their paths below a folder.

    Subfolders are splits if all of them are called so, or at least two by nothing else than
    different splits; one class called ``test`` beside other classes is none. Where no folders are
    splits, the files' names are looked at: they count if at least half of them name one.

    Args:
        names: the paths.
        classes: names that are known to be classes.
    """
    level = _level_of_splits(names, set(classes))
    if level is not None:
        return Layout(_grouped(names, lambda name: _split_at(name, level)), level + 1)
    splits = _grouped(names, lambda name: split_of(name.rpartition("/")[2]))
    sure = 2 * len(splits.get("", ())) <= len(names) and len(set(splits) - {""}) > 1
    return Layout(splits if sure else {"": names})


def _level_of_splits(names: Sequence[str], classes: set[str]) -> int | None:
    """How many folders of a path come before the one that is a split; None where none is."""
    level = 0
    while folders := {_part(name, level) for name in names} - {""}:
        whole = all(_part(name, level) for name in names)
        found = {folder: split_of(folder) for folder in folders}
        if _are_splits(found, whole=whole) and not folders <= classes:
            return level
        if len(folders) > 1 or not whole:
            break
        level += 1
    return None


def _split_at(name: str, level: int) -> str:
    folder = _part(name, level)
    return split_of(folder) or folder


def _are_splits(found: Mapping[str, str], *, whole: bool) -> bool:
    """Whether folders are splits.

    Args:
        found: folders, and the split each seems to be.
        whole: whether all images lie in them.
    """
    plain = {split for folder, split in found.items() if is_plain(folder)}
    if len(found) == 1:
        return whole and bool(plain)
    return len(plain) > 1 or (all(found.values()) and len(set(found.values())) > 1)


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
    there = f"it has {_listed(splits)}" if set(splits) - {""} else "no name in it is one of a split"
    raise DataError(
        f"{where} has no split {printable(split)!r}: {there}. Set data.split to what there is, or to "
        "a pattern of names; '*' takes all"
    )


def _several(layout: Layout, where: str) -> str:
    named = sorted(set(layout.splits) - {""})
    first = "train" if "train" in named else named[0]
    classes = "; if these folders are classes, list them in data.classes" if layout.depth else ""
    return (
        f"{where} has several splits: {_listed(layout.splits)}. Choose one, such as --set "
        f"data.split={printable(first)} (or a pattern of names; '*' takes all){classes}"
    )


def _listed(splits: Mapping[str, Sequence[str]]) -> str:
    texts = [f"{printable(s)} ({len(names)})" for s, names in sorted(splits.items()) if s]
    more = [f"and {len(texts) - LISTED} more"] if len(texts) > LISTED else []
    if rest := splits.get(""):
        more.append(f"{len(rest)} of none, such as {printable(rest[0])}")
    return ", ".join([*texts[:LISTED], *more])


def _part(name: str, level: int) -> str:
    """The folder of a path at a level; nothing where the path is not that deep."""
    parts = name.split("/")
    return parts[level] if level < len(parts) - 1 else ""


def _grouped(names: Sequence[str], split: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(split(name), []).append(name)
    return groups
