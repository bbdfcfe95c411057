"""The one strict converter: trees to frozen attrs classes, every problem told with its path."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from rpiae.core.config.tree import (
    Tree,
    dotted,
)
from rpiae.core.errors import (
    ConfigError,
    nearest,
)
from rpiae.core.runtime.names import not_plain, shown

T = TypeVar("T")


class _Expected(ValueError):
    """A leaf of the wrong type; the text is the whole message."""


_GREATEST_INT = 2**63 - 1


def _strict(kind: type, names: str) -> Any:
    accepted: Any = (int, float) if kind is float else kind

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise _Expected(f"expected {names}, got {shown(value)}")
        if isinstance(value, int) and not -_GREATEST_INT - 1 <= value <= _GREATEST_INT:
            raise _Expected(f"expected a number of at most 64 bits, got {shown(value)}")
        if isinstance(value, str) and "\0" in value:
            raise _Expected(f"expected text without null characters, got {shown(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise _Expected(f"expected a finite number, got {value!r}")
        return float(value) if kind is float else value

    return structure


def make_converter() -> cattrs.Converter:
    """A converter that coerces nothing, forbids unknown keys and reports every problem."""
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, names in ((int, "int"), (float, "float"), (bool, "true or false"), (str, "string")):
        converter.register_structure_hook(kind, _strict(kind, names))
    converter.register_structure_hook_factory(
        attrs.has, lambda cls: _structure_attrs(cls, converter)
    )
    converter.register_structure_hook_func(lambda t: _origin(t) is Literal, _structure_literal)
    converter.register_structure_hook_func(
        lambda t: _origin(t) in (tuple, Sequence), lambda v, t: _structure_tuple(v, t, converter)
    )
    converter.register_structure_hook_func(
        lambda t: _origin(t) is dict, lambda v, t: _structure_dict(v, t, converter)
    )
    return converter


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _structure_dict(value: Any, kind: Any, converter: cattrs.Converter) -> Any:
    if not isinstance(value, dict):
        raise _Expected(f"expected a table, got {shown(value)}")
    _, inner = get_args(kind)
    found, problems = {}, []
    for name, item in value.items():
        try:
            found[name] = item if inner is Any else converter.structure(item, inner)
        except (BaseValidationError, ValueError, TypeError) as error:
            error.add_note(AttributeValidationNote(f"field {name}", name, inner))
            problems.append(error)
    if problems:
        raise ClassValidationError("a table", problems, dict)
    return found


def _structure_attrs(cls: type, converter: cattrs.Converter) -> Any:
    from_dict: Any = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True
    )

    def structure(value: Any, _: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise _Expected(f"expected a table, got {shown(value)}")
        outside = _outside_range(value, cls)
        try:
            config = from_dict(value, cls)
        except ClassValidationError as error:
            raise ClassValidationError(error.message, [*error.exceptions, *outside], cls) from None
        if outside:
            raise ClassValidationError(f"values of {cls.__name__}", outside, cls)
        return config

    return structure


def _outside_range(tree: Tree, cls: type) -> list[Exception]:
    problems: list[Exception] = []
    for a in attrs.fields(cls):
        text = _unfit(tree.get(a.name), a.metadata)
        if text:
            problem = _Expected(text)
            problem.add_note(AttributeValidationNote(f"field {a.name}", a.name, a.type))
            problems.append(problem)
    return problems


def _unfit(value: Any, metadata: Mapping[str, Any]) -> str:
    """What the field's metadata has against a value of the right type, or nothing."""
    minimum, maximum = metadata.get("minimum"), metadata.get("maximum")
    for number in _numbers(value):
        if minimum is not None and number < minimum:
            return f"must be at least {minimum}, got {shown(number)}"
        if maximum is not None and number > maximum:
            return f"must be at most {maximum}, got {shown(number)}"
    if metadata.get("plain") and isinstance(value, str) and (reason := not_plain(value)):
        return f"{shown(value)} cannot be the name of a file: {reason}"
    return ""


def _numbers(value: Any) -> list[float]:
    """The number that a value is, or those of a list."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]


def _structure_literal(value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    if value not in choices:
        raise _Expected(none_of(choices, value))
    return value


def none_of(choices: Iterable[Any], value: Any) -> str:
    """What is said of a value that is none of the choices."""
    listed = [*choices]
    close = nearest(str(value), map(str, listed), limit=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"expected one of {', '.join(map(repr, listed))}, got {shown(value)}{hint}"


def _structure_tuple(value: Any, kind: Any, converter: cattrs.Converter) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _Expected(f"expected a list, got {shown(value)}")
    arguments = get_args(kind)
    if arguments[-1:] == (Ellipsis,):
        return tuple(converter.structure(list(value), list[arguments[0]]))  # type: ignore[valid-type]  # a run-time type
    if len(arguments) != len(value):
        raise _Expected(f"expected {len(arguments)} values, got {len(value)}")
    return tuple(converter.structure(v, a) for v, a in zip(value, arguments, strict=True))


def parse(tree: Any, cls: type[T], *, source: str, converter: cattrs.Converter) -> T:
    """Structure ``tree`` as ``cls``.

    Raises:
        ConfigError: with every problem and its path.
    """
    try:
        return converter.structure(tree, cls)
    except (BaseValidationError, ValueError, TypeError) as error:
        raise ConfigError(source, sorted(set(problems_of(error)))) from None


def problems_of(error: BaseException, path: str = "") -> list[str]:
    """All problems inside a cattrs error, one line each: ``path: what``."""
    if isinstance(error, ConfigError):
        return [f"{path}.{p}" if path else p for p in error.problems]
    if isinstance(error, BaseValidationError):
        found: list[str] = []
        for inner in error.exceptions:
            found += problems_of(inner, _extended(path, inner))
        return found
    if isinstance(error, ForbiddenExtraKeysError):
        known = [a.name for a in attrs.fields(error.cl)]
        return [
            _no_such_field(path, extra, error.cl, known) for extra in sorted(error.extra_fields)
        ]
    if isinstance(error, KeyError):
        return [f"{dotted(path, str(error.args[0]))}: missing"]
    return [f"{path}: {error}" if path else str(error)]


def _extended(path: str, error: BaseException) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote) and not isinstance(error, KeyError):
            return dotted(path, note.name)
        if isinstance(note, IterableValidationNote):
            return f"{path}[{note.index}]"
    return path


def _no_such_field(path: str, extra: str, cls: type, known: Iterable[str]) -> str:
    close = nearest(extra, known, limit=1)
    hint = f", did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(known))}"
    return f"{dotted(path, extra)}: no such field in {cls.__name__}{hint}"
