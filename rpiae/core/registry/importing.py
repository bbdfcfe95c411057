"""Modules that register parts of a user's own: named by the user alone, never by a file."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable

from rpiae.core.config.parts import load_foreign
from rpiae.core.errors import PluginError, UsageError
from rpiae.core.runtime.names import shown

#: Where the parts of a notebook or of a script are defined.
MAIN = "__main__"

#: What a module of a message may be called; files are written by anybody.
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)

_imported: dict[str, None] = {}


def import_modules(names: Iterable[str]) -> None:
    """Import modules that the user named; those of the working folder are found too.

    Raises:
        UsageError: if a name is none of a module, or there is no such module.
        PluginError: if one fails while it is imported.
    """
    for name in names:
        if not _MODULE.fullmatch(name):
            raise UsageError(
                f"--import {shown(name)}: write a module as in Python, such as my_package.encoder"
            )
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            load_foreign(lambda: importlib.import_module(name))  # noqa: B023  # it is called at once
        except PluginError as error:
            if isinstance(error.__cause__, ModuleNotFoundError):
                raise UsageError(
                    f"--import {name}: there is no module {error.__cause__.name!r} here; run rpiae in "
                    "the folder that holds it, or install it"
                ) from None
            raise PluginError(f"--import {name}: {error}") from None
        _imported[name] = None


def imported() -> tuple[str, ...]:
    """The modules that the user named so far, for processes that are started."""
    return tuple(_imported)


def import_hint(modules: Iterable[str]) -> str:
    """What to import so that parts are known that a notebook or script registered.

    Args:
        modules: where their configs are defined, as it was written down.
    """
    named = [name for name in modules if _MODULE.fullmatch(name) and name != MAIN]
    if not named:
        return (
            "it was defined in a notebook or script: put it into a module, say my_parts.py, whose "
            "import registers it, and name that with --import my_parts (in Python, import my_parts)"
        )
    options = " ".join(f"--import {name}" for name in named)
    return f"add {options}, which registers it (in Python, import {', '.join(named)} first)"
