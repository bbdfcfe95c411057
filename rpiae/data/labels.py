"""Labels: numbers from 0 on, out of whatever a source says about its images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from rpiae.core.errors import DataError, UsageError
from rpiae.core.runtime.names import printable

#: Texts of one column that can be classes; more of them are captions.
MOST_CLASSES = 100_000

#: Names that a notice lists.
LISTED = 5


@frozen
class Labels:
    """The labels of a source's images.

    Attributes:
        numbers: (n,), int32; −1 where an image has none.
        names: name of every label, by its number; empty where unknown.
        notices: what is to be said of them.
    """

    numbers: NDArray[np.int32]
    names: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def read_labels(
    values: Iterable[object], what: str, *, classes: Sequence[str] = (), names: Sequence[str] = ()
) -> Labels:
    """Labels out of values.

    Whole numbers are labels themselves, and so are texts if all of them are whole numbers and no
    name in ``classes`` is one. Other texts are classes, numbered in the order of ``classes``, else in
    sorted order. None, NaN, an empty text and negative numbers are missing labels.

    Args:
        values: one per image.
        what: what messages call them.
        classes: the names of all classes, where given.
        names: of the numbers, where the source says them.

    Raises:
        DataError: if values cannot be labels, or ``classes`` lacks one.
    """
    seen: dict[object, int] = {}
    keys = np.fromiter((_key(value, seen, what) for value in values), dtype=np.int64)
    texts = [value for value in seen if isinstance(value, str)]
    numbered = all(map(_is_number, texts)) and not any(map(_is_number, classes))
    if len(texts) == len(seen) and numbered:
        meaning: dict[object, int] = {text: int(text) for text in texts}
        texts = []
    elif texts and len(texts) < len(seen):
        raise DataError(f"{what} holds texts as well as numbers, which cannot both be labels")
    else:
        meaning = {value: int(value) for value in seen if isinstance(value, (bool, int, float))}
    told: tuple[str, ...] = ()
    if texts:
        names = tuple(classes) or tuple(sorted(texts))
        if strange := sorted(set(texts) - set(names)):
            raise DataError(f"{what} holds {printable(strange[0])!r}, which data.classes lacks")
        meaning = {name: number for number, name in enumerate(names)}
        if not classes:
            told = (_numbered(what, names),)
    elif classes:
        if names:
            meaning = _renumbered(meaning, names, classes, what)
        names = classes
    elif not names and seen and all(isinstance(value, bool) for value in seen):
        names = ("false", "true")
    over = [number for number in meaning.values() if number > np.iinfo(np.int32).max]
    if over:
        raise DataError(f"{what} holds {over[0]}, which is too large for a label")
    table = np.array([meaning[value] for value in seen] + [-1], dtype=np.int32)
    numbers = np.maximum(table[keys], -1)
    if names and len(numbers) and numbers.max() >= len(names):
        raise DataError(
            f"{what} holds {numbers.max()}, and there are {len(names)} classes: 0 to "
            f"{len(names) - 1}"
        )
    missing = int((numbers < 0).sum())
    if missing:
        told = (*told, f"{what}: {missing} of {len(numbers)} images have no label")
    return Labels(numbers, unique_names(names), told)


def check_classes(classes: Sequence[str]) -> None:
    """Refuse a list of classes that names one twice.

    Raises:
        UsageError: if it does not.
    """
    if "" in classes:
        raise UsageError("data.classes has an empty name")
    if twice := sorted(name for name, count in Counter(classes).items() if count > 1):
        raise UsageError(f"data.classes has {twice[0]!r} twice")


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names as they may leave the process, still different from each other.

    Different bytes can look alike once they are printed; the later ones get a number.
    """
    if len(set(names)) == len(names) and all(n.isascii() and n.isprintable() for n in names):
        return tuple(names)
    taken: set[str] = set()
    found = []
    for name in map(printable, names):
        free, number = name, 2
        while free in taken:
            free, number = f"{name}#{number}", number + 1
        taken.add(free)
        found.append(free)
    return tuple(found)


def _key(value: object, seen: dict[object, int], what: str) -> int:
    """The number of a value among the different ones; −1 for a missing one."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return -1
    if isinstance(value, float) and not value.is_integer():
        raise DataError(f"{what} holds {value}: labels are whole numbers, texts or booleans")
    if not isinstance(value, (bool, int, float, str)):
        raise DataError(
            f"{what} holds a {type(value).__name__}: labels are whole numbers, texts or booleans"
        )
    key = seen.setdefault(value, len(seen))
    if key >= MOST_CLASSES and isinstance(value, str) and not _is_number(value):
        raise DataError(
            f"{what} holds more than {MOST_CLASSES} different texts, too many to be classes"
        )
    return key


def _renumbered(
    meaning: Mapping[object, int], names: Sequence[str], classes: Sequence[str], what: str
) -> dict[object, int]:
    """Numbers that the source names, as those of the same names in ``classes``."""
    found = {}
    for value, number in meaning.items():
        if number >= len(names):
            raise DataError(f"{what} holds {number}, and the source names {len(names)} classes")
        if number >= 0 and names[number] not in classes:
            raise DataError(f"{what} holds {printable(names[number])!r}, which data.classes lacks")
        found[value] = classes.index(names[number]) if number >= 0 else -1
    return found


def _is_number(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= 10


def _numbered(what: str, names: Sequence[str]) -> str:
    more = ", …" if len(names) > LISTED else ""
    shown = ", ".join(printable(name) for name in names[:LISTED])
    return (
        f"{what} holds text: its {len(names)} different values are the classes, numbered in sorted "
        f"order ({shown}{more}); to number other data alike, list them in data.classes"
    )
