"""The bases of part configs, family by family: the config is the part's signature. Torch-free."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import attrs
from attrs import frozen

from rpiae.core.config.fields import (
    COARSEST,
    WIDEST,
    settings_only,
    wired,
    without_effect,
)
from rpiae.core.errors import (
    ConfigError,
    MissingExtraError,
    PluginError,
    RpiaeError,
    UsageError,
)

if TYPE_CHECKING:
    from torch import nn


T = TypeVar("T")


@frozen(kw_only=True)
class Alarm:
    """What to listen for in a loss term's raw value.

    Attributes:
        sign: ``rising``: its mean over a window exceeds the last window's by more than ``bound``
            (0.05 is 5 %); ``vanishing``: that mean is below ``bound``.
        bound: see ``sign``.
        advice: what it means and what to change.
    """

    sign: Literal["rising", "vanishing"]
    bound: float
    advice: str


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

    def repository(self) -> str:
        """The hub's repository that the part loads, such as ``"timm/vit_tiny_patch16_224"``, at the
        revision of the field that is declared with ``names_revision``; empty where it loads none."""
        return ""

    def arguments(self) -> dict[str, Any]:
        """The flat keywords of the module's constructor."""
        return {
            a.name: getattr(self, a.name)
            for a in attrs.fields(type(self))
            if a.metadata.get("argument", True)
        }

    def place_of(self, other: PartConfig) -> str | None:
        """Where in this part's module the whole state of another part goes, with which this one can
        begin, such as ``"image"``: empty for one of its own kind, None for one that does not fit."""
        return ""

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
        frames: input frames per token; 1 for an encoder of images.
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
    frames: int = 1


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
        temporal_downsampling: steps of tokens T per latent step after the first, see
            ``rpiae.core.model.temporal.TemporalBridge``; 1 for a bridge of images.
        fitted: whether it is fitted to features before it is trained or used.
    """

    latent_channels: int
    gaussian: bool
    downsampling: int = 1
    temporal_downsampling: int = 1
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

    @property
    def frames_per_token(self) -> int:
        """Output frames per token; 1 for a decoder of images."""
        return 1

    def on_grid(self, rows: int, columns: int) -> DecoderConfig:
        """The config for training crops of so many tokens, where it depends on that."""
        return self


@frozen(kw_only=True)
class LossConfig(PartConfig):
    """Base of loss configs.

    Attributes:
        needs: names out of ``rpiae.core.model.contracts.NEEDS``.
        over_time: whether it is about what changes from frame to frame, and so 0 where the data are
            images.
    """

    family: ClassVar[str] = "losses"
    over_time: ClassVar[bool] = False
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
    """Base of dataset configs.

    Attributes:
        clips: whether it gives clips, and not images.
    """

    family: ClassVar[str] = "datasets"
    clips: ClassVar[bool] = False

    def files(self) -> Iterable[tuple[str, Path | None]] | None:
        """What the dataset reads, in its order: what each file is called wherever it lies, and its
        path; None for the path of what is not on a local disk.

        Where there is nothing of the kind, None: then the fields alone tell one dataset from
        another, with the content of those that are declared with ``names_file``.

        Raises:
            DataError: if they are not there.
        """
        return None

    def learned_by(self, trained: DatasetConfig) -> str:
        """What of these data a run has learned from that was trained on others, in words; nothing where
        it has not, or nobody knows."""
        return ""

    def resized(self, side: int) -> DatasetConfig:
        """The config with training images resized to a short side of so many pixels, where it can
        say that and does not say another."""
        return self


@frozen(kw_only=True)
class MetricConfig(PartConfig):
    """Base of metric configs.

    Attributes:
        needs: what has to be there: ``training`` (images to learn from), ``labels``, ``pivot``,
            ``latent`` (a path through the bridge), ``clips``, which a metric with this need sees as
            they are and every other one frame by frame. Metrics of generated images need
            ``samples``, and those that compare them with real images ``real``; no others do.
    """

    family: ClassVar[str] = "metrics"
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def needed(self) -> frozenset[str]:
        """Its ``needs`` but those that its settings make up for."""
        return self.needs

    def fetch(self) -> Path | None:
        """Make what the metric loads available locally; the path of it, where it loads anything.

        Raises:
            FetchError: if it cannot be had.
        """
        return None


def parts_of(config: Any) -> Iterator[PartConfig]:
    """Every part config in a config, itself included."""
    if isinstance(config, PartConfig):
        yield config
    if isinstance(config, tuple):
        for value in config:
            yield from parts_of(value)
    elif attrs.has(type(config)):
        for a in attrs.fields(type(config)):
            yield from parts_of(getattr(config, a.name))


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
