"""The config of the encoder (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from attrs import frozen

from rpiae.plugin import (
    EncoderConfig,
    EncoderDescription,
    UsageError,
    loaded_once,
    names_file,
    names_revision,
    settings_only,
    within,
)

if TYPE_CHECKING:
    from torch import nn

#: ImageNet's statistics, which V-JEPA 2 was trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: What says of which architecture weights are, beside them in transformers' layout.
CONFIG = "config.json"

#: Names of weights in transformers' layout, in the order in which they are looked for.
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip

_HELD = "the run's folder holds the pivot"


@frozen(kw_only=True)
class VJepa2EncoderConfig(EncoderConfig):
    """V-JEPA 2's encoder.

    Attributes:
        width, depth, num_heads, mlp_ratio, frames, patch: see ``VJepa2Encoder``.
        image_size: side of the training crops by default.
        weights: a local folder as transformers saves it, or a file of weights; empty takes the hub's.
        hub_id, revision: where the weights are.
    """

    module: ClassVar[str] = "rpiae_vjepa2.encoder:VJepa2Encoder"
    width: int = within(6, 65_536, default=1024)
    depth: int = within(1, 1_000, default=24)
    num_heads: int = within(1, 65_536, default=16)
    mlp_ratio: float = within(0.01, 1_000, default=4.0)
    frames: int = within(2, 64, default=2)
    patch: int = within(1, 1_024, default=16)
    image_size: int = settings_only(within(1, 65_536, default=256))
    weights: str = loaded_once(names_file(settings_only("")), _HELD)
    hub_id: str = loaded_once(settings_only(""), _HELD)
    revision: str = loaded_once(names_revision(settings_only("")), _HELD)

    def describe(self) -> EncoderDescription:
        """From the config alone.

        Raises:
            UsageError: if the heads do not divide the width, or have no channels for positions.
        """
        channels = self.width / self.num_heads
        if channels % 2 or channels < 6:
            raise UsageError(
                f"encoder.width = {self.width} is not encoder.num_heads = {self.num_heads} heads of an "
                "even number of channels, at least 6, as rotary positions in time and space need them"
            )
        return EncoderDescription(
            width=self.width,
            patch=self.patch,
            frames=self.frames,
            output_patch=self.patch,
            num_blocks=self.depth,
            prefix_tokens=0,
            image_size=self.image_size,
            mean=MEAN,
            std=STD,
        )

    def repository(self) -> str:
        """``hub_id``, where the weights are from the hub."""
        return self.hub_id if self.pretrained and not self.weights else ""

    def load_pretrained(self, module: nn.Module) -> None:
        """Load the encoder's weights, from ``weights`` or from the hub."""
        from rpiae_vjepa2.encoder import VJepa2Encoder

        assert isinstance(module, VJepa2Encoder)
        module.load_weights(self.fetch())

    def fetch(self) -> Path:
        """The local weights file, downloaded first where ``weights`` is empty, with the config
        beside it.

        Raises:
            FetchError: if it cannot be had from the hub.
            CheckpointError: if ``weights`` names no file of weights.
            UsageError: if the config names no weights.
        """
        from rpiae.plugin import download, local_weights

        if self.weights:
            folder = Path(self.weights).expanduser()
            there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
            return local_weights(str(there[0]) if there else self.weights, self.label)
        if not self.hub_id:
            raise UsageError(
                f"encoder {self.label!r} names no weights: take a preset such as vjepa2-l, set "
                "encoder.hub_id or encoder.weights, or encoder.pretrained = false"
            )
        revision = self.revision or "main"
        download(self.hub_id, revision, label=self.label, files=(CONFIG,))
        return download(self.hub_id, revision, label=self.label, files=WEIGHTS)
