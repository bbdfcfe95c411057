"""Sizes of a model, read off the shapes of its tensors in a foreign layout, and whether these are whole.

A size is what most of the tensors say that have it, so that one of a wrong shape is found and named,
and not all the others.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from attrs import frozen
from torch import Tensor

from rpiae.core.errors import CheckpointError, nearest
from rpiae.core.model.layouts import Layout
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weights import Shapes, check_finite

#: Names of one kind that a message has, at most.
MOST_NAMES = 8


class Place(NamedTuple):
    """Where a size stands: one of ours' tensors (``{n}`` is a block), its dimension, and how many times
    the size it is."""

    own: str
    dimension: int
    times: int = 1


@frozen(kw_only=True)
class PartShapes:
    """The tensors of one part in a file.

    Attributes:
        source: the file, for messages.
        layout: the part's.
        prefix: what stands before the layout's names in the file.
        shapes: by the layout's names.
    """

    source: str
    layout: Layout
    prefix: str
    shapes: Shapes

    def size(self, *places: Place) -> int:
        """What most tensors have in these places; the first of them where they are even.

        Raises:
            CheckpointError: if none of them is there; the first is named.
        """
        found: Counter[int] = Counter()
        for own, dimension, times in places:
            pattern = re.compile(re.escape(self._foreign(own, "\0")).replace("\0", r"\d+"))
            found.update(
                shape[dimension] // times
                for name, shape in self.shapes.items()
                if len(shape) > dimension and pattern.fullmatch(name)
            )
        if not found:
            raise self._lacks(places[0].own)
        return found.most_common(1)[0][0]

    def depth(self) -> int:
        """Blocks, counted from the first to the last before a gap."""
        prefix, depth = self.layout.blocks[0], 0
        while any(name.startswith(f"{prefix}{depth}.") for name in self.shapes):
            depth += 1
        return depth

    def side(self, place: Place, *, beside: int = 0) -> int:
        """Rows, and columns, of stored positions; ``beside`` of them are not of patches.

        Raises:
            CheckpointError: if they are missing, or fill no square.
        """
        stored = self.size(place)
        side = math.isqrt(max(stored - beside, 0))
        if not side or side * side != stored - beside:
            raise CheckpointError(
                f"{self.source}: {self.named(place.own)} has {stored} positions, {beside} of them not of "
                "patches: the others fill no square, as all grids of this layout are"
            )
        return side

    def named(self, own: str) -> str:
        """What the file calls one of our tensors, of the first block."""
        return self.prefix + self._foreign(own, "0")

    def _foreign(self, own: str, block: str) -> str:
        """The layout's name of one of our tensors, of a block."""
        base, _, last = own.rpartition(".")
        names = self.layout.names
        foreign = names[own] if own in names else names[f"{base}.{{p}}"]
        return foreign[0].format(n=block, p=last)

    def _lacks(self, own: str) -> CheckpointError:
        name = self.named(own)
        near = nearest(name, [self.prefix + other for other in self.shapes])
        instead = f". It has {' and '.join(map(printable, near))}" if near else ""
        return CheckpointError(f"{self.source}: {name} is missing{instead}")


def below(shapes: Shapes, prefix: str) -> Shapes:
    """Shapes of the names with a prefix, without it."""
    return {n.removeprefix(prefix): s for n, s in shapes.items() if n.startswith(prefix)}


def ratio(hidden: int, width: int) -> float:
    """Width of a hidden layer over that of its tokens, from which ``int(width * ratio)`` is it again."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def check_whole(
    source: str, what: str, expected: Shapes, there: Shapes, *, unused: Iterable[str] = ()
) -> None:
    """Refuse tensors that are not those of a model, by name and shape.

    Args:
        source: the file, for messages.
        what: the model in words.
        expected: the model's, by the file's names.
        there: the file's.
        unused: names, and beginnings of names that end in a dot, that it may have besides.

    Raises:
        CheckpointError: with what is missing, unexpected and of another shape.
    """
    beginnings = tuple(name for name in unused if name.endswith("."))
    extra = there.keys() - expected.keys() - set(unused)
    kinds: Mapping[str, list[str]] = {
        "missing": sorted(expected.keys() - there.keys()),
        "unexpected": sorted(printable(n) for n in extra if not n.startswith(beginnings)),
        "of another shape": [
            f"{name} is {there[name]}, expected {expected[name]}"
            for name in sorted(expected.keys() & there.keys())
            if expected[name] != there[name]
        ],
    }
    if problems := [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]:
        raise CheckpointError(f"{source} does not hold {what} whole. {'. '.join(problems)}")


def check_values(source: str, names: Iterable[str], state: Mapping[str, Tensor]) -> None:
    """Refuse tensors of a model that no weights are, by the file's names.

    Args:
        source: the file, for messages.
        names: the model's tensors.
        state: the file's; has them all.

    Raises:
        CheckpointError: if one of them has no floats, or values that are not finite.
    """
    for name in names:
        if not state[name].is_floating_point():
            raise CheckpointError(
                f"{source}: {name} is of {state[name].dtype}, and weights are floats"
            )
        check_finite(source, name, state[name])


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
