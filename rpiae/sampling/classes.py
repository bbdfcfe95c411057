"""What a sample is to show: classes by number, by name, or none."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from rpiae.core.errors import UnknownNameError, UsageError, did_you_mean
from rpiae.core.runtime.draws import uniform
from rpiae.core.runtime.names import printable, shown

#: A class by its number or name; None is no class.
Class: TypeAlias = int | str | None

#: Class names that a message lists.
_LISTED = 12

_RANGE = re.compile(r"([0-9]{1,9})-([0-9]{1,9})")


def labels_of(
    classes: Class | Iterable[Class], *, num_classes: int, names: Sequence[str]
) -> list[int]:
    """Labels of classes, as a generator takes them.

    Args:
        classes: numbers, names and None; a single one is a list of one.
        num_classes: of the generator.
        names: of its classes, by number; empty where unknown.

    Raises:
        UsageError: if there is no such class.
    """
    return [_label(one, num_classes, names) for one in _several(classes)]


def _several(classes: Any) -> list[Any]:
    """Classes; what cannot be gone through is one, such as an array's or a tensor's number."""
    if isinstance(classes, str):
        return [classes]
    try:
        return list(classes)
    except TypeError:
        return [classes]


def labels_in(text: str, *, num_classes: int, names: Sequence[str]) -> list[int]:
    """Labels of the classes in a comma-separated list of names, numbers and ranges such as ``0-9``.

    What is the name of a class is that class, numerals too.

    Raises:
        UsageError: if there is no such class, or the list is empty.
    """
    if text in names:
        return [names.index(text)]
    found: list[int] = []
    for word in filter(None, map(str.strip, text.split(","))):
        bounds = _RANGE.fullmatch(word)
        if word not in names and bounds:
            first, last = int(bounds[1]), int(bounds[2])
            if last < first:
                raise UsageError(f"classes {word}: the smaller number comes first")
            for number in (first, last):
                _of_word(str(number), num_classes, names)
            found += [_of_word(str(n), num_classes, names) for n in range(first, last + 1)]
        else:
            found.append(_of_word(word, num_classes, names))
    if not found:
        raise UsageError(
            f"{shown(text)} names no class: write numbers or names, such as 0-9 or cat"
        )
    return found


def _of_word(word: str, num_classes: int, names: Sequence[str]) -> int:
    number = word not in names and re.fullmatch(r"[0-9]{1,9}", word)
    return _label(int(word) if number else word, num_classes, names)


def _label(one: Any, num_classes: int, names: Sequence[str]) -> int:
    if one is None:
        return num_classes
    if not num_classes:
        raise UsageError(
            f"class {shown(one)}: the latents that this generator was trained on had no labels, so it "
            "knows no classes; ask for samples without them"
        )
    if isinstance(one, str):
        if one in names:
            return names.index(one)
        raise UnknownNameError(
            f"no class named {printable(one)[:80]!r}.{did_you_mean(one, names)} {_there(num_classes, names)}"
        )
    try:
        number = operator.index(one)
    except TypeError:
        raise UsageError(
            f"a class is a number, a name or None, not {shown(one)}. {_there(num_classes, names)}"
        ) from None
    if not 0 <= number < num_classes:
        raise UsageError(f"no class {number}. {_there(num_classes, names)}")
    return number


def _there(num_classes: int, names: Sequence[str]) -> str:
    numbers = f"There are {num_classes}, numbered from 0"
    if not names:
        return f"{numbers}; their names are not known"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{numbers}: {', '.join(map(printable, names[:_LISTED]))}{more}"


def equal_labels(classes: Sequence[int], count: int) -> tuple[int, ...]:
    """Labels of so many samples, one class after the other, over and over.

    So every class has as many, but for the first ones where the count is no multiple; and the labels of
    fewer samples are the beginning of those of more.
    """
    return tuple(classes[index % len(classes)] for index in range(count))


def uneven(classes: Sequence[int], count: int) -> str:
    """What to say of a count that is no multiple of the classes; nothing where it is one."""
    each, more = divmod(count, len(classes))
    if not more:
        return ""
    if not each:
        return f"{count} samples are of the first {count} of {len(classes)} classes, one of each"
    return (
        f"{count} samples cannot be the same number of each of {len(classes)} classes: it is {each} of "
        f"each, and one more of the first {more}"
    )


def random_labels(num_classes: int, count: int, seed: int) -> tuple[int, ...]:
    """Labels that are drawn, each a function of the seed and the sample's index."""
    return tuple(int(uniform(seed, "label", index) * num_classes) for index in range(count))
