"""Part configs, the one strict converter, and loading, dumping and overriding of config trees.

A config *tree* is what a TOML file holds: dicts, lists, strings, numbers, booleans. *Parsing* turns
it into frozen attrs classes without importing torch. TOML has no null: a field that is None is
"not given", is left out of every dump, and is filled in by ``rpiae.core.resolve``.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args, get_origin

import attrs
import cattrs
import tomli_w
from attrs import field, frozen
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ClassValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from rpiae.core.errors import (
    ConfigError,
    MissingExtraError,
    PluginError,
    RpiaeError,
    UsageError,
    nearest,
)
from rpiae.core.files import DEEPEST, nested_too_deeply, open_regular
from rpiae.core.names import not_plain, shown
from rpiae.core.watch import Alarm

if TYPE_CHECKING:
    from torch import nn

Tree = dict[str, Any]
T = TypeVar("T")


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


def settings_only(default: Any) -> Any:
    """A field that describes the part and is not an argument of its module."""
    return field(default=default, metadata={"argument": False})


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
    return _declared(made, without_effect=reason)


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


@frozen(kw_only=True)
class PartConfig:
    """Base of all part configs: the config is the part's signature.

    Attributes:
        name: the registered part.
        preset: the preset that the values come from, where one was named.
        family: the registry the part belongs to.
        module: import string of the class that ``build`` constructs.
    """

    name: str = settings_only("")
    preset: str = without_effect(settings_only(""), "its values are in the other fields")

    family: ClassVar[str] = ""
    module: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """What the user calls it: the preset where there is one."""
        return self.preset or self.name

    def arguments(self) -> dict[str, Any]:
        """The flat keywords of the module's constructor."""
        return {
            a.name: getattr(self, a.name)
            for a in attrs.fields(type(self))
            if a.metadata.get("argument", True)
        }

    def build(self) -> Any:
        """Construct the part (imports torch).

        Raises:
            PluginError: if its module cannot be loaded.
            ConfigError: if its constructor does not take these values.
        """
        try:
            module = load_foreign(lambda: load_object(self.module))
        except PluginError as error:
            if isinstance(error.__cause__, MissingExtraError):
                raise error.__cause__ from None
            raise PluginError(
                f"{self.label!r} of the {self.family} cannot be built: its module "
                f"{self.module!r} cannot be loaded: {error}"
            ) from error
        with explained(self, "cannot be built"):
            return module(**self.arguments())


@frozen(kw_only=True)
class EncoderDescription:
    """What other parts and the plan need to know about an encoder, without building it.

    Attributes:
        width: channels of its tokens.
        patch: input pixels per token and side (p).
        output_patch: image pixels per token and side (q) that go with it by default.
        num_blocks: transformer blocks that are used.
        prefix_tokens: class and register tokens that are dropped.
        image_size: side of the training crops by default, in image pixels.
        mean, std: input statistics.
    """

    width: int
    patch: int
    output_patch: int
    num_blocks: int
    prefix_tokens: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@frozen(kw_only=True)
class EncoderConfig(PartConfig):
    """Base of encoder configs.

    Attributes:
        pretrained: whether the pivot's weights are loaded; otherwise it starts at random.
    """

    family: ClassVar[str] = "encoders"
    pretrained: bool = settings_only(True)

    def describe(self) -> EncoderDescription:
        """Facts about the encoder, torch-free wherever the config holds them."""
        raise UsageError(f"encoder {self.label!r} does not describe itself")

    def load_pretrained(self, module: nn.Module) -> None:
        """Load the pivot's weights into a built module.

        Raises:
            FetchError: if they cannot be had.
        """
        raise UsageError(
            f"encoder {self.label!r} has no pretrained weights: set encoder.pretrained = false"
        )

    def fetch(self) -> Path:
        """Make the weights available locally and return their path.

        Raises:
            FetchError: if they cannot be had.
        """
        raise UsageError(f"encoder {self.label!r} has nothing to fetch")


@frozen(kw_only=True)
class BridgeDescription:
    """What others need to know about a bridge.

    Attributes:
        latent_channels: channels C of the latent.
        gaussian: whether its posterior is Gaussian.
        downsampling: tokens per latent position and side.
        fitted: whether it is fitted to features before it is trained or used.
    """

    latent_channels: int
    gaussian: bool
    downsampling: int = 1
    fitted: bool = False


@frozen(kw_only=True)
class BridgeConfig(PartConfig):
    """Base of bridge configs."""

    family: ClassVar[str] = "bridges"

    def describe(self) -> BridgeDescription:
        """Facts about the bridge, after its wired fields are filled."""
        raise UsageError(f"bridge {self.label!r} does not describe itself")


@frozen(kw_only=True)
class DecoderConfig(PartConfig):
    """Base of decoder configs.

    Attributes:
        features: channels of the features it reads.
        patch: output pixels per token and side (q).
    """

    family: ClassVar[str] = "decoders"
    features: int | None = wired("encoder.width", what="channels", maximum=WIDEST)
    patch: int | None = wired(
        "encoder.output_patch", what="pixels per token", strict=False, maximum=COARSEST
    )

    def on_grid(self, rows: int, columns: int) -> DecoderConfig:
        """The config for training crops of so many tokens, where it depends on that."""
        return self


@frozen(kw_only=True)
class LossConfig(PartConfig):
    """Base of loss configs.

    Attributes:
        needs: names out of ``rpiae.core.contracts.NEEDS``.
    """

    family: ClassVar[str] = "losses"
    alarm: ClassVar[Alarm | None] = None
    needs: ClassVar[frozenset[str]] = frozenset()

    def fetch(self) -> Path | None:
        """Make what the loss loads available locally; the path of it, where it loads anything.

        Raises:
            FetchError: if it cannot be had.
        """
        return None


@frozen(kw_only=True)
class CriticConfig(PartConfig):
    """Base of critic configs."""

    family: ClassVar[str] = "critics"

    def load_pretrained(self, module: nn.Module) -> None:
        """Load what a built critic does not learn, such as a backbone's weights.

        Raises:
            FetchError: if it cannot be had.
        """

    def fetch(self) -> Path | None:
        """Make what ``load_pretrained`` loads available locally; the path of it.

        Raises:
            FetchError: if it cannot be had.
        """
        return None


@frozen(kw_only=True)
class DatasetConfig(PartConfig):
    """Base of dataset configs."""

    family: ClassVar[str] = "datasets"

    def files(self) -> Iterable[tuple[str, Path | None]] | None:
        """What the dataset reads, in its order: what each file is called wherever it lies, and its
        path; None for the path of what is not on a local disk.

        Where there is nothing of the kind, None: then the fields alone tell one dataset from
        another, with the content of those that are declared with ``names_file``.

        Raises:
            DataError: if they are not there.
        """
        return None

    def resized(self, side: int) -> DatasetConfig:
        """The config with training images resized to a short side of so many pixels, where it can
        say that and does not say another."""
        return self


@frozen(kw_only=True)
class MetricConfig(PartConfig):
    """Base of metric configs.

    Attributes:
        needs: what has to be there: ``training`` (images to learn from), ``labels``, ``pivot``.
    """

    family: ClassVar[str] = "metrics"
    needs: ClassVar[frozenset[str]] = frozenset()

    def fetch(self) -> Path | None:
        """Make what the metric loads available locally; the path of it, where it loads anything.

        Raises:
            FetchError: if it cannot be had.
        """
        return None


def load_object(target: str) -> Any:
    """The object behind an import string ``"package.module:name"``."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def explained(part: PartConfig, what: str) -> Iterator[None]:
    """Name the part where its own code fails; what is said on purpose stays as it is.

    Raises:
        ConfigError: in place of what a part raises that nobody thought of.
    """
    try:
        yield
    except (RpiaeError, ValueError, OSError, MemoryError):
        raise
    except Exception as error:
        text = f"{part.label!r} {what}: {type(error).__name__}: {_first_line(error)}"
        raise ConfigError(f"one of the {part.family}", [text]) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]


def load_foreign(load: Callable[[], T]) -> T:
    """What ``load`` gives, which runs code that a plugin may have written.

    What that code prints goes to stderr, where it spoils no result.

    Raises:
        PluginError: in place of whatever it raises, SystemExit included; Ctrl-C stays what it is.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        text = " ".join(str(error).split())[:500]
        raise PluginError(f"{type(error).__name__}: {text}".removesuffix(": ")) from error


# --- parsing -----------------------------------------------------------------------------------


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
        close = nearest(str(value), map(str, choices), limit=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise _Expected(
            f"expected one of {', '.join(map(repr, choices))}, got {shown(value)}{hint}"
        )
    return value


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
        return [f"{_dotted(path, str(error.args[0]))}: missing"]
    return [f"{path}: {error}" if path else str(error)]


def _extended(path: str, error: BaseException) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote) and not isinstance(error, KeyError):
            return _dotted(path, note.name)
        if isinstance(note, IterableValidationNote):
            return f"{path}[{note.index}]"
    return path


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _no_such_field(path: str, extra: str, cls: type, known: Iterable[str]) -> str:
    close = nearest(extra, known, limit=1)
    hint = f", did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(known))}"
    return f"{_dotted(path, extra)}: no such field in {cls.__name__}{hint}"


# --- files and overrides -----------------------------------------------------------------------


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
        here = f"{walked}[{step}]" if isinstance(step, int) else _dotted(walked, step)
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
