"""Config trees: loading, dumping and overriding what a TOML file holds.

TOML has no null: a field that is None is "not given", is left out of every dump, and is filled in when
a run is resolved.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from rpiae.core.errors import (
    UsageError,
)
from rpiae.core.runtime.files import DEEPEST, nested_too_deeply, open_regular
from rpiae.core.runtime.names import shown

Tree = dict[str, Any]


def dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def read_toml(path: Path) -> Tree:
    """The tree of a TOML file.

    Raises:
        UsageError: if it cannot be read or is not TOML.
    """
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, or a null character in the path
        raise UsageError(f"{path} is not a TOML file: {error}") from None
    return parse_toml(text.replace("\r\n", "\n"), source=str(path))


def parse_toml(text: str, *, source: str) -> Tree:
    """The tree of a TOML text.

    Raises:
        UsageError: if it is not TOML, naming ``source``.
    """
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{source} is nested too deeply") from None
    except ValueError as error:  # a syntax error, or a number of more digits than Python reads
        reason = str(error).partition(";")[0]
        raise UsageError(f"{source} is not a TOML file: {reason}") from None
    if nested_too_deeply(tree):
        raise UsageError(f"{source} is nested too deeply")
    return tree


def unparse(config: Any) -> Any:
    """A config as a tree; fields that are not given (None or empty names) are left out."""
    if attrs.has(type(config)):
        values = {a.name: getattr(config, a.name) for a in attrs.fields(type(config))}
        return {
            name: unparse(value)
            for name, value in values.items()
            if value is not None and not (name == "preset" and value == "")
        }
    if isinstance(config, Mapping):
        return {name: unparse(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [unparse(value) for value in config]
    return config


def dump_toml(config: Any) -> str:
    """A config as TOML text; parsing it again gives an equal config."""
    return tomli_w.dumps(unparse(config))


_STEP = re.compile(r"([A-Za-z_][\w-]*)|\[([0-9]{1,9})\]")


def parse_override(text: str) -> tuple[list[str | int], Any]:
    """``"recipe.stages[0].noise=0.4"`` as a path and a value.

    The value is read as TOML where it parses, else it is the bare string.

    Raises:
        UsageError: if there is no ``=`` or the path is malformed.
    """
    dotted, equals, value = text.partition("=")
    dotted = dotted.strip()
    steps: list[str | int] = []
    position = 0
    while position < len(dotted):
        if dotted[position] == "." and steps:
            position += 1
        match = _STEP.match(dotted, position)
        if match is None:
            break
        steps.append(match.group(1) if match.group(1) else int(match.group(2)))
        position = match.end()
    if not equals or not 0 < len(steps) <= DEEPEST or position < len(dotted):
        raise UsageError(
            f"--set {shown(text)} is not of the form path=value, such as recipe.stages[0].noise=0.4"
        )
    try:
        tree = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return steps, value.strip()
    except (ValueError, RecursionError):
        tree = None
    if tree is None or nested_too_deeply(tree):
        raise UsageError(
            f"--set {dotted}: {shown(value)} is too long a number, or nested too deeply"
        )
    return steps, tree["value"]


def apply_override(tree: Tree, text: str) -> None:
    """Set one value in a tree in place.

    Raises:
        UsageError: if the path runs through something that is not a table or list.
    """
    steps, value = parse_override(text)
    node: Any = tree
    walked = ""
    for i, step in enumerate(steps):
        last = i == len(steps) - 1
        here = f"{walked}[{step}]" if isinstance(step, int) else dotted(walked, step)
        if isinstance(step, int):
            if not isinstance(node, list) or step >= len(node):
                size = f"a list of {len(node)}" if isinstance(node, list) else "not a list"
                raise UsageError(
                    f"--set {shown(text)}: there is no {here}; {walked or 'the top'} is {size}"
                )
        elif not isinstance(node, dict):
            raise UsageError(f"--set {shown(text)}: {walked or 'the top'} is not a table")
        if last:
            node[step] = value
        else:
            if isinstance(node, dict) and step not in node:
                node[step] = {}
            node = node[step]
        walked = here
