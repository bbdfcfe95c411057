"""Configs of the built-in encoders (torch-free)."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import field, frozen

from rpiae.core.config import EncoderConfig, EncoderDescription, at_least, settings_only
from rpiae.core.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import nn

Triple = tuple[float, float, float]


@frozen(kw_only=True)
class TimmEncoderConfig(EncoderConfig):
    """A timm vision transformer.

    Attributes:
        model: timm's model name.
        layers: blocks whose final-normed tokens are averaged; empty is the last block alone.
        model_args: replaces arguments of timm's model, such as ``{depth = 2}``.
        mean, std: input statistics; timm's own where not given.
        weights: a local weights file; empty takes the hub's.
        hub_id, revision: where the weights are; timm's own entry where ``hub_id`` is empty.
        output_patch, image_size: see ``EncoderDescription``.
        width, patch, num_blocks, prefix_tokens: facts a preset states so that plans need no timm.
    """

    module: ClassVar[str] = "rpiae.encoders.timm:TimmEncoder"
    model: str = ""
    layers: tuple[int, ...] = ()
    model_args: dict[str, Any] = field(factory=dict)
    mean: Triple | None = None
    std: Triple | None = None
    weights: str = settings_only("")
    hub_id: str = settings_only("")
    revision: str = settings_only("")
    output_patch: int | None = settings_only(None)
    image_size: int | None = settings_only(None)
    width: int | None = settings_only(None)
    patch: int | None = settings_only(None)
    num_blocks: int | None = settings_only(None)
    prefix_tokens: int | None = settings_only(None)

    def describe(self) -> EncoderDescription:
        """From the preset's facts, else from timm's model on the meta device."""
        if not self.model:
            raise UsageError(
                "encoder 'timm' needs a model: write timm:<model>, such as "
                "timm:vit_small_patch16_224, or set encoder.model"
            )
        facts = (self.width, self.patch, self.num_blocks, self.prefix_tokens, self.mean, self.std)
        if not self.model_args and None not in facts:
            width, patch, num_blocks, prefix, mean, std = facts
        else:
            from rpiae.encoders.timm import describe_model

            known = describe_model(self.model, self.model_args)
            width, patch, num_blocks, prefix, mean, std = known
        assert width
        assert patch
        assert num_blocks
        assert prefix is not None
        _check_layers(self.layers, num_blocks, self.label)
        output_patch = self.output_patch or (16 if patch == 14 else patch)
        return EncoderDescription(
            width=width,
            patch=patch,
            output_patch=output_patch,
            num_blocks=max(self.layers) + 1 if self.layers else num_blocks,
            prefix_tokens=prefix,
            image_size=self.image_size or 16 * output_patch,
            mean=self.mean or mean or (0.5, 0.5, 0.5),
            std=self.std or std or (0.5, 0.5, 0.5),
        )

    def load_pretrained(self, module: nn.Module) -> None:
        """Load timm's weights, from ``weights`` or from the hub."""
        from rpiae.encoders.timm import TimmEncoder

        assert isinstance(module, TimmEncoder)
        module.load_weights(self.fetch())

    def fetch(self) -> Path:
        """The local weights file, downloaded first where ``weights`` is empty."""
        from rpiae.encoders.hub import download, local_weights
        from rpiae.encoders.timm import hub_source

        if self.weights:
            return local_weights(self.weights, self.label)
        hub_id, revision = self.hub_id, self.revision
        if not hub_id:
            hub_id = hub_source(self.model)
        return download(hub_id, revision or "main", label=self.label)


@frozen(kw_only=True)
class VitEncoderConfig(EncoderConfig):
    """A plain ViT of ours.

    Attributes:
        width, depth, num_heads, mlp_ratio, patch, native_grid, stem, layers, mean, std: see ``VitEncoder``.
        weights: a local weights file, or ``package:NAME`` for one that ships with rpiae.
        image_size: side of the training crops by default.
    """

    module: ClassVar[str] = "rpiae.encoders.vit:VitEncoder"
    pretrained: bool = settings_only(False)
    width: int = at_least(4, default=192)
    depth: int = at_least(1, default=6)
    num_heads: int = at_least(1, default=3)
    mlp_ratio: float = at_least(0, default=4.0)
    patch: int = at_least(1, default=4)
    native_grid: int = at_least(1, default=8)
    stem: Literal["patch", "conv"] = "conv"
    layers: tuple[int, ...] = ()
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    weights: str = settings_only("")
    image_size: int | None = settings_only(None)

    def describe(self) -> EncoderDescription:
        """From the config alone."""
        if self.width % self.num_heads or self.width % 4:
            raise UsageError(
                f"encoder.width = {self.width} must be divisible by 4 and by "
                f"encoder.num_heads = {self.num_heads}"
            )
        _check_layers(self.layers, self.depth, self.label)
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
        from rpiae.encoders.hub import read_weights

        state = {name: value.float() for name, value in read_weights(self.fetch()).items()}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.weights} holds weights of another architecture than encoder "
                f"{self.label!r}: {str(error).splitlines()[1].strip()}"
            ) from None

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
            return Path(str(importlib.resources.files("rpiae.encoders") / "weights" / name))
        return local_weights(self.weights, self.label)


def _check_layers(layers: tuple[int, ...], num_blocks: int, label: str) -> None:
    for layer in layers:
        if not 0 <= layer < num_blocks:
            raise UsageError(
                f"encoder.layers: {label!r} has blocks 0 to {num_blocks - 1}, not {layer}"
            )
