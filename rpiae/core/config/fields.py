"""Kinds of config fields: what they are filled from, their bounds, and what they affect."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import field
from cattrs.errors import (
    AttributeValidationNote,
)

from rpiae.core.errors import (
    UsageError,
)


def wired(
    fact: str, *, what: str, strict: bool = True, minimum: int = 1, maximum: int | None = None
) -> Any:
    """A field that is filled from another part's description.

    Args:
        fact: what fills it, such as ``"encoder.width"``.
        what: the unit in words, for messages ("channels").
        strict: whether another value is a contradiction, or merely a choice.
        minimum, maximum: least and greatest value that may be given.
    """
    wire = {"wired": fact, "what": what, "strict": strict}
    return field(default=None, metadata=wire | {"minimum": minimum, "maximum": maximum})


def settings_only(made: Any) -> Any:
    """A field that describes the part and is not an argument of its module.

    Args:
        made: the field, or its default.
    """
    return _declared(made, argument=False)


#: Greatest numbers of channels, and of pixels per token and side, that a part may be asked for.
WIDEST = 65536


COARSEST = 1024


def at_least(minimum: float, *, default: Any = attrs.NOTHING) -> Any:
    """A numeric field that must not lie below ``minimum``."""
    return field(default=default, metadata={"minimum": minimum})


def within(minimum: float, maximum: float, *, default: Any = attrs.NOTHING) -> Any:
    """A field whose number, or each number of its list, lies from ``minimum`` to ``maximum``.

    The maximum of a size is far above what anybody trains, and keeps a slip of the pen from
    asking for terabytes.
    """
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum})


def without_effect(made: Any, reason: str) -> Any:
    """A field that no result depends on: it is in no address, and a resume may change it.

    Args:
        made: the field, or its default.
        reason: why, in words.
    """
    return _declared(made, affects="nothing", reason=reason)


def rounding_only(made: Any, reason: str) -> Any:
    """A field that results depend on by rounding alone: addresses, which stand for results to the
    bit, have it, and a resume may change it.

    Args:
        made: the field, or its default.
        reason: why, in words.
    """
    return _declared(made, affects="rounding", reason=reason)


def loaded_once(made: Any, reason: str) -> Any:
    """A field that says what a run or stage loads as it begins, and holds from then on: addresses
    have it, and a resume may change it.

    Args:
        made: the field, or its default.
        reason: where it is held, in words.
    """
    return _declared(made, affects="start", reason=reason)


def names_file(made: Any, *, after: str = "", but: str = "") -> Any:
    """A field that names a local file or folder: its content counts where it is there, and not
    where it lies. What only happens to be called like another field's value never counts.

    Args:
        made: the field, or its default.
        after: what stands before the name, such as ``"cnn:"``; several are separated by blanks.
        but: what a text begins with that names no file, such as ``"package:"``.
    """

    def place(text: str) -> str:
        if but and text.startswith(but):
            return ""
        if not after:
            return text
        kinds = [kind for kind in after.split() if text.lower().startswith(kind)]
        return text[len(kinds[0]) :] if kinds else ""

    return _declared(made, file=place)


def names_revision(made: Any) -> Any:
    """A field that names a branch, tag or commit of the hub's repository that the part loads.

    Addresses have the commit that it stands for, where the local cache knows it; a run writes that
    down as it begins. Which repository it is, ``PartConfig.repository`` says.

    Args:
        made: the field, or its default.
    """
    return _declared(made, revision=True)


def _declared(made: Any, **facts: Any) -> Any:
    if not hasattr(made, "metadata"):
        made = field(default=made)
    made.metadata = {**made.metadata, **facts}
    return made


def folder_name(*, default: Any = attrs.NOTHING) -> Any:
    """A name that becomes a file's or folder's: it cannot lead out of the folder it is put in."""
    return field(default=default, metadata={"plain": True})


def refused(name: str, text: str) -> UsageError:
    """The error of a config whose field ``name`` does not fit its other fields.

    Raised in ``__attrs_post_init__``, it is told under the field's path wherever the config is read.
    """
    error = UsageError(text)
    error.add_note(AttributeValidationNote(f"field {name}", name, object))
    return error
