"""Configs of the built-in encoders (torch-free)."""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import field, frozen

from rpiae.core.config.fields import (
    loaded_once,
    names_file,
    names_revision,
    settings_only,
    within,
)
from rpiae.core.config.parts import EncoderConfig, EncoderDescription
from rpiae.core.errors import RpiaeError, UsageError
from rpiae.core.runtime.names import shown

if TYPE_CHECKING:
    from torch import nn

Triple = tuple[float, float, float]

#: Where what is loaded is kept: ``pivot.safetensors``, and a critic's backbone in checkpoints.
HELD = "the run's folder holds the pivot, its checkpoints the critic"

#: Greatest sizes of an encoder: far above every published one.
MOST_WIDTH, MOST_DEPTH, MOST_PATCH, MOST_SIDE = 65_536, 1_000, 4_096, 65_536

#: Greatest numbers of ``model_args``, by the names that timm and open_clip have for them.
_MOST = {
    "depth": MOST_DEPTH, "layers": MOST_DEPTH, "embed_dim": MOST_WIDTH, "width": MOST_WIDTH,
    "num_heads": MOST_WIDTH, "head_width": MOST_WIDTH, "patch_size": MOST_PATCH,
    "img_size": MOST_SIDE, "image_size": MOST_SIDE, "mlp_ratio": 1_000,
}  # fmt: skip
_MOST_OTHERWISE = 1_000_000

#: Arguments of timm's factory and fields of open_clip's config that fetch or read files.
_LOADING = (
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
    "features_only", "timm_model_name", "timm_model_pretrained",
)  # fmt: skip


def _fact(minimum: int, maximum: int) -> Any:
    """A size that describes the part and is not an argument of its module."""
    bounds = {"minimum": minimum, "maximum": maximum}
    return field(default=None, metadata={"argument": False, **bounds})


@frozen(kw_only=True)
class LibraryEncoderConfig(EncoderConfig):
    """Base of the configs of encoders that another library builds.

    Attributes:
        model: the library's name of it.
        layers: blocks whose final-normed tokens are averaged; empty is the last block alone.
        add_final_mean: whether the spatial mean of the last of these blocks is added to every token.
        model_args: replaces arguments of the library's model.
        mean, std: input statistics; the library's own where not given.
        weights: a local weights file; empty takes the hub's.
        weights_key: which weights to take where a file has several (raw and averaged, student and
            teacher): the beginning of their place in it, such as ``model_ema``, or ``.`` for its top
            level. Empty takes the averaged ones, else the first, and says so.
        hub_id, revision: where the weights are; the library's own entry where ``hub_id`` is empty.
        output_patch, image_size: see ``EncoderDescription``.
        width, patch, num_blocks, prefix_tokens: facts a preset states so that plans need no library.
    """

    model: str = ""
    layers: tuple[int, ...] = ()
    add_final_mean: bool = False
    model_args: dict[str, Any] = field(factory=dict)
    mean: Triple | None = None
    std: Triple | None = None
    weights: str = loaded_once(names_file(settings_only("")), HELD)
    weights_key: str = loaded_once(settings_only(""), HELD)
    hub_id: str = loaded_once(settings_only(""), HELD)
    revision: str = loaded_once(names_revision(settings_only("")), HELD)
    output_patch: int | None = _fact(1, MOST_PATCH)
    image_size: int | None = _fact(1, MOST_SIDE)
    width: int | None = _fact(1, MOST_WIDTH)
    patch: int | None = _fact(1, MOST_PATCH)
    num_blocks: int | None = _fact(1, MOST_DEPTH)
    prefix_tokens: int | None = _fact(0, MOST_WIDTH)

    def repository(self) -> str:
        """``hub_id``, else the library's own entry, where the weights are from the hub."""
        if self.weights or not self.pretrained:
            return ""
        try:
            return self.hub_id or self._listed_repository()
        except (RpiaeError, ImportError):  # loading says why
            return ""

    def _listed_repository(self) -> str:
        """What the library's own entry of the model names, or nothing."""
        return ""

    def arguments(self) -> dict[str, Any]:
        """The flat keywords of the module's constructor.

        Raises:
            UsageError: if ``model_args`` has a size beyond all reason, or names a file.
        """
        _check_model_args(self.model_args)
        return super().arguments()


@frozen(kw_only=True)
class TimmEncoderConfig(LibraryEncoderConfig):
    """A timm vision transformer.

    Attributes:
        eps: epsilon of every LayerNorm; timm's own where not given.
        weights: may be in the layout of timm, of the original code or of transformers.
        url: where the weights are, instead of ``hub_id``.
    """

    module: ClassVar[str] = "rpiae.encoders.timm:TimmEncoder"
    eps: float | None = within(0, 1, default=None)
    url: str = loaded_once(settings_only(""), HELD)

    def describe(self) -> EncoderDescription:
        """From the preset's facts, else from timm's model on the meta device."""
        if not self.model:
            raise UsageError(
                "encoder 'timm' needs a model: write timm:<model>, such as "
                "timm:vit_small_patch16_224, or set encoder.model"
            )
        _check_model_args(self.model_args)
        facts = _stated(self)
        if facts is None:
            from rpiae.encoders.timm import describe_model

            facts = describe_model(self.model, self.model_args)
        return _description(self, facts)

    def _listed_repository(self) -> str:
        from rpiae.encoders.timm_models import weights_source

        return "" if self.url or not self.model else weights_source(self.model)[0]

    def load_pretrained(self, module: nn.Module) -> None:
        """Load timm's weights, from ``weights`` or from the hub."""
        from rpiae.encoders.timm import TimmEncoder

        assert isinstance(module, TimmEncoder)
        module.load_weights(self.fetch(), key=self.weights_key)

    def fetch(self) -> Path:
        """The local weights file, downloaded first where ``weights`` is empty."""
        from rpiae.encoders.hub import FILES, download, download_url, local_weights

        if self.weights:
            return local_weights(self.weights, self.label)
        hub_id, filename, url = self.hub_id, "", self.url
        if not (hub_id or url):
            from rpiae.encoders.timm_models import weights_source

            hub_id, filename, url = weights_source(self.model)
        if not hub_id:
            return download_url(url, label=self.label)
        files = (filename,) if filename else FILES
        return download(hub_id, self.revision or "main", label=self.label, files=files)


@frozen(kw_only=True)
class OpenClipEncoderConfig(LibraryEncoderConfig):
    """The image tower of an open_clip model; its text tower is never built.

    Attributes:
        model: open_clip's model name, and after ``/`` the tag of its weights, such as
            ``ViT-B-16/laion2b_s34b_b88k``.
        model_args: replaces fields of open_clip's ``vision_cfg`` or, where the tower is a timm model,
            arguments of that.
        weights: may be of the whole model or of its image tower.
    """

    module: ClassVar[str] = "rpiae.encoders.open_clip:OpenClipEncoder"

    def describe(self) -> EncoderDescription:
        """From the preset's facts, else from open_clip's config of the model."""
        if not self.model:
            raise UsageError(
                "encoder 'open-clip' needs a model: write open_clip:<model>/<tag>, such as "
                "open_clip:ViT-B-16/laion2b_s34b_b88k, or set encoder.model"
            )
        _check_model_args(self.model_args)
        facts = _stated(self)
        if facts is None:
            from rpiae.encoders.open_clip import describe_model

            facts = describe_model(self.model, self.model_args)
        return _description(self, facts)

    def _listed_repository(self) -> str:
        from rpiae.encoders.open_clip import weights_source

        return weights_source(self.model)[0] if self.model else ""

    def load_pretrained(self, module: nn.Module) -> None:
        """Load the image tower's weights, from ``weights`` or from where open_clip has them."""
        from rpiae.encoders.open_clip import OpenClipEncoder

        assert isinstance(module, OpenClipEncoder)
        module.load_weights(self.fetch(), key=self.weights_key)

    def fetch(self) -> Path:
        """The local weights file, downloaded first where ``weights`` is empty."""
        from rpiae.encoders.hub import download, download_url, local_weights

        if self.weights:
            return local_weights(self.weights, self.label)
        from rpiae.encoders.open_clip import FILES, weights_source

        if self.hub_id:
            return download(self.hub_id, self.revision or "main", label=self.label, files=FILES)
        hub_id, files, url = weights_source(self.model)
        if not hub_id:
            return download_url(url, label=self.label)
        return download(hub_id, self.revision or "main", label=self.label, files=files)


@frozen(kw_only=True)
class VitEncoderConfig(EncoderConfig):
    """A plain ViT of ours.

    Attributes:
        width, depth, num_heads, mlp_ratio, patch, native_grid, stem, layers, add_final_mean, mean,
            std: see ``VitEncoder``.
        weights: a local weights file, or ``package:NAME`` for one that ships with rpiae.
        weights_key: see ``LibraryEncoderConfig``.
        image_size: side of the training crops by default.
    """

    module: ClassVar[str] = "rpiae.encoders.vit:VitEncoder"
    pretrained: bool = settings_only(False)
    width: int = within(4, MOST_WIDTH, default=192)
    depth: int = within(1, MOST_DEPTH, default=6)
    num_heads: int = within(1, MOST_WIDTH, default=3)
    mlp_ratio: float = within(0.01, 1_000, default=4.0)
    patch: int = within(1, MOST_PATCH, default=4)
    native_grid: int = within(1, 1_024, default=8)
    stem: Literal["patch", "conv"] = "conv"
    layers: tuple[int, ...] = ()
    add_final_mean: bool = False
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    weights: str = loaded_once(names_file(settings_only(""), but="package:"), HELD)
    weights_key: str = loaded_once(settings_only(""), HELD)
    image_size: int | None = _fact(1, MOST_SIDE)

    def describe(self) -> EncoderDescription:
        """From the config alone."""
        if self.width % self.num_heads or self.width % 4:
            raise UsageError(
                f"encoder.width = {self.width} must be divisible by 4 and by "
                f"encoder.num_heads = {self.num_heads}"
            )
        _check_layers(self.layers, self.depth, self.label)
        _check_std(self.std)
        return EncoderDescription(
            width=self.width,
            patch=self.patch,
            output_patch=self.patch,
            num_blocks=max(self.layers) + 1 if self.layers else self.depth,
            prefix_tokens=0,
            image_size=self.image_size or self.patch * self.native_grid,
            mean=self.mean,
            std=self.std,
        )

    def load_pretrained(self, module: nn.Module) -> None:
        """Load ``weights`` (any float precision)."""
        from rpiae.encoders.vit import VitEncoder

        assert isinstance(module, VitEncoder)
        module.load_weights(self.fetch(), key=self.weights_key)

    def fetch(self) -> Path:
        """The weights file; nothing is ever downloaded for this part."""
        from rpiae.encoders.hub import local_weights

        if not self.weights:
            raise UsageError(
                f"encoder {self.label!r} names no weights: set encoder.weights to a file, or "
                "encoder.pretrained = false"
            )
        kind, _, name = self.weights.partition(":")
        if kind == "package" and name:
            if Path(name).name != name:
                raise UsageError(f"encoder.weights: {shown(name)} is no file that rpiae ships")
            return Path(str(importlib.resources.files("rpiae.encoders") / "weights" / name))
        return local_weights(self.weights, self.label)


#: Width, patch, blocks, prefix tokens, mean and std.
Facts = tuple[int, int, int, int, Triple, Triple]


def _stated(config: LibraryEncoderConfig) -> Facts | None:
    """The facts that a preset states, where they hold for the config."""
    width, patch, num_blocks = config.width, config.patch, config.num_blocks
    prefix, mean, std = config.prefix_tokens, config.mean, config.std
    if config.model_args or not (width and patch and num_blocks and mean and std):
        return None
    return None if prefix is None else (width, patch, num_blocks, prefix, mean, std)


def _description(config: LibraryEncoderConfig, facts: Facts) -> EncoderDescription:
    width, patch, num_blocks, prefix, mean, std = facts
    _check_layers(config.layers, num_blocks, config.label)
    _check_std(config.std or std)
    output_patch = config.output_patch or (16 if patch == 14 else patch)
    return EncoderDescription(
        width=width,
        patch=patch,
        output_patch=output_patch,
        num_blocks=max(config.layers) + 1 if config.layers else num_blocks,
        prefix_tokens=prefix,
        image_size=config.image_size or 16 * output_patch,
        mean=config.mean or mean,
        std=config.std or std,
    )


def _check_model_args(arguments: Mapping[str, Any]) -> None:
    """Refuse what is no size of a model, before a library tries to build it."""
    for name, value in arguments.items():
        if name in _LOADING:
            raise UsageError(
                f"encoder.model_args.{name}: what is loaded is set with encoder.weights or "
                "encoder.hub_id, not with an argument of the library's model"
            )
        most = _MOST.get(name, _MOST_OTHERWISE)
        least = 1 if name in _MOST else -_MOST_OTHERWISE
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            positive_ratio = name == "mlp_ratio" and 0 < number < 1
            if not math.isfinite(number) or not (least <= number <= most or positive_ratio):
                raise UsageError(
                    f"encoder.model_args.{name} must be a number from {least:,} to {most:,}, got "
                    f"{shown(number)}"
                )


def _check_layers(layers: tuple[int, ...], num_blocks: int, label: str) -> None:
    for layer in layers:
        if not 0 <= layer < num_blocks:
            raise UsageError(
                f"encoder.layers: {label!r} has blocks 0 to {num_blocks - 1}, not {layer}"
            )


def _check_std(std: Triple) -> None:
    if min(std) <= 0:
        raise UsageError(f"encoder.std divides the image and must be positive, got {list(std)}")
