"""The pivot's frozen replica."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.contracts import BlockFeatures, Encoder, Features
from rpiae.core.model.geometry import encoder_view, geometry


class PivotReplica:
    """The frozen copy of the pivot (PRE): no gradients of its own, always in eval mode.

    Args:
        encoder: an encoder of the same architecture that holds the pivot's weights.
        output_patch: the tokenizer's output patch q, for the geometry.
        downsampling: its bridge's, for the same.
    """

    def __init__(self, encoder: nn.Module, *, output_patch: int, downsampling: int = 1) -> None:
        assert isinstance(encoder, Encoder)
        encoder.requires_grad_(False).eval()
        self._encoder: Encoder = encoder
        self._output_patch = output_patch
        self._downsampling = downsampling
        weight = next(encoder.parameters())
        device, self._dtype = weight.device, weight.dtype
        self._mean = torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(encoder.std, device=device).view(1, 3, 1, 1)

    @property
    def num_blocks(self) -> int:
        """Blocks that ``blocks`` can be asked for."""
        return self._encoder.num_blocks

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """Tokens of images of any size in [0, 1], on the tokenizer's grid."""
        return self._encoder(self._prepared(images))

    def blocks(self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]) -> BlockFeatures:
        """Block outputs for images of any size in [0, 1]."""
        return self._encoder.blocks(self._prepared(images), indices)

    def _prepared(self, images: Tensor) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        plan = geometry(
            size, patch=self._encoder.patch, output_patch=self._output_patch,
            downsampling=self._downsampling,
        )  # fmt: skip
        normalised = (encoder_view(images, plan) - self._mean) / self._std
        return normalised.to(self._dtype)
