"""The pivot's frozen replica."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.clips import Prepare, as_clip, clip_blocks, clip_features
from rpiae.core.model.contracts import BlockFeatures, Encoder, Features
from rpiae.core.model.geometry import Geometry, Patch, encoder_view, geometry
from rpiae.core.model.temporal import temporal_downsampling
from rpiae.core.model.tokenizer import RPiAE


class PivotReplica:
    """The frozen copy of the pivot (PRE): no gradients of its own, always in eval mode.

    Args:
        encoder: an encoder of the same architecture that holds the pivot's weights.
        output_patch: the tokenizer's output patch q, for the geometry.
        downsampling, temporal_downsampling: its bridge's, for the same.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        output_patch: int | Patch,
        downsampling: int = 1,
        temporal_downsampling: int = 1,
    ) -> None:
        assert isinstance(encoder, Encoder)
        encoder.requires_grad_(False).eval()
        self._encoder: Encoder = encoder
        self._output_patch = output_patch
        self._downsampling = downsampling
        self._temporal_downsampling = temporal_downsampling
        weight = next(encoder.parameters())
        device, self._dtype = weight.device, weight.dtype
        self._mean = torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(encoder.std, device=device).view(1, 3, 1, 1)

    @classmethod
    def beside(cls, model: RPiAE, encoder: nn.Module) -> PivotReplica:
        """The pivot of a tokenizer, on its grid."""
        return cls(
            encoder, output_patch=model.decoder.patch, downsampling=model.bridge.downsampling,
            temporal_downsampling=temporal_downsampling(model.bridge),
        )  # fmt: skip

    @property
    def num_blocks(self) -> int:
        """Blocks that ``blocks`` can be asked for."""
        return self._encoder.num_blocks

    def features(self, images: Float[Tensor, "b 3 ..."]) -> Features:
        """Tokens of images or clips of any size in [0, 1], on the tokenizer's grid."""
        return clip_features(self._encoder, *self._seen(images))

    def blocks(self, images: Float[Tensor, "b 3 ..."], indices: Sequence[int]) -> BlockFeatures:
        """Block outputs for images or clips of any size in [0, 1]."""
        return clip_blocks(self._encoder, *self._seen(images), indices)

    def _seen(self, images: Tensor) -> tuple[Tensor, Geometry, Prepare]:
        """Images as clips, their geometry, and what is done to every frame."""
        plan = geometry(
            images.shape[2:], patch=self._encoder.patch, output_patch=self._output_patch,
            downsampling=self._downsampling, temporal_downsampling=self._temporal_downsampling,
        )  # fmt: skip

        def prepare(frames: Tensor) -> Tensor:
            return ((encoder_view(frames, plan) - self._mean) / self._std).to(self._dtype)

        return as_clip(images), plan, prepare
