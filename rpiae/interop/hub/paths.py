"""Values that leave this machine: without the paths of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from rpiae.core.runtime.names import printable

#: A path from the root or from a home folder within a text, and not the rest of an address.
_WITHIN = re.compile(
    r"(?<![\w./\\~-])(?:~[\w.-]*/|/(?!/)|[A-Za-z]:[\\/](?![\\/])|\\\\)[^\s:,;'\"()<>|]+"
)

#: What may stand before a path: the kind of a dataset, or of an address.
_KIND = re.compile(r"[a-z][\w-]+:(?!//)", re.IGNORECASE)

#: Slashes of an address that is a path.
_FILE = re.compile(r"\bfile:/+", re.IGNORECASE)


def without_paths(tree: Any, *others: Any) -> Any:
    """A tree of plain values in which paths of this machine are their last names.

    Paths are texts that begin at the root or at a home folder, wherever in a text they stand, and
    relative ones of what is there now.

    Args:
        tree: the values.
        others: further trees, whose paths count too: one that is named alone there may stand in the
            middle of a sentence here.
    """
    known = {
        path: name
        for text in _texts([tree, *others])
        if (path := _path_of(text)) and (name := _last(path)) != path
    }
    return _cleaned(tree, sorted(known.items(), key=lambda each: -len(each[0])))


def _cleaned(tree: Any, known: Iterable[tuple[str, str]]) -> Any:
    if isinstance(tree, Mapping):
        return {_text(str(name), known): _cleaned(each, known) for name, each in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_cleaned(each, known) for each in tree]
    return _text(tree, known) if isinstance(tree, str) else tree


def _text(text: str, known: Iterable[tuple[str, str]]) -> str:
    text = _FILE.sub("file:/", text)
    for path, name in known:
        whole = rf"(?<![\w./\\-]){re.escape(path)}(?![\w/\\-])"
        text = re.sub(whole, name.replace("\\", r"\\"), text)
    return printable(_WITHIN.sub(lambda found: _last(found[0]), text))


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, Mapping):
        for each in tree.values():
            yield from _texts(each)
    elif isinstance(tree, (list, tuple)):
        for each in tree:
            yield from _texts(each)
    elif isinstance(tree, str):
        yield tree


def _path_of(text: str) -> str:
    """The path that a text is, as a whole or behind its kind; nothing where it is none."""
    for path in (text, _KIND.sub("", _FILE.sub("file:/", text), count=1)):
        if "\n" in path or "\0" in path or not re.search(r"[/\\]", path):
            continue
        from_root = PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()
        if from_root or path.startswith("~") or os.path.lexists(path):
            return path
    return ""


def _last(path: str) -> str:
    names = [name for name in re.split(r"[/\\]+", path) if name not in ("", ".", "..", "~")]
    return names[-1] if names else "."
