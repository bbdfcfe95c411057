"""What a tokenizer that compresses time has to beat: every n-th frame, and straight lines in between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import Features
from rpiae.core.model.temporal import Past, temporal_downsampling
from rpiae.core.model.tokenizer import RPiAE


def kept_frames(clip: Float[Tensor, "b c t h w"], every: int) -> Float[Tensor, "b c k h w"]:
    """Frames 0, n, 2n, … of clips; images (b, c, h, w) are what they are."""
    return clip[:, :, ::every] if clip.ndim == 5 else clip


def interpolated(
    kept: Float[Tensor, "b c k h w"], every: int, frames: int
) -> Float[Tensor, "b c t h w"]:
    """Clips of their frames 0, n, 2n, …: those in between lie on a straight line, pixel by pixel, and
    those behind the last one are like it.

    Args:
        kept: these frames.
        every: n.
        frames: of a clip, t; k is 1 + ⌊(t − 1)/n⌋.
    """
    numbers = torch.arange(frames, device=kept.device)
    before = numbers // every
    after = (before + 1).clamp(max=kept.shape[2] - 1)
    weight = (numbers % every / every).to(kept.dtype).view(-1, 1, 1)
    return torch.lerp(kept[:, :, before], kept[:, :, after], weight)


class Interpolated(RPiAE):
    """A tokenizer that sees every n-th frame of a clip and draws straight lines in between.

    Its latents are of the frames that are kept. Images pass through it as through the other one, whose
    parts it has.

    Args:
        model: the tokenizer.
        every: n.

    Raises:
        UsageError: if n is below 1.
    """

    def __init__(self, model: RPiAE, *, every: int) -> None:
        if every < 1:
            raise UsageError(f"frames are kept every 1, 2, 3, … frames, not every {every}")
        super().__init__(
            encoder=model.encoder, bridge=model.bridge, decoder=model.decoder,
            feature_norm=_pair(model.feature_mean, model.feature_var),
            latent_norm=_pair(model.latent_mean, model.latent_std),
            config=model.config, trained_size=model.trained_size,
        )  # fmt: skip
        self.every = every
        self.to(model.device).train(model.training)

    def features(self, images: Float[Tensor, "b 3 ..."]) -> Features:
        """Clean encoder features of the frames that are kept."""
        return super().features(kept_frames(images, self.every))

    def decoded_size(self, features: Features) -> tuple[int, int, int]:
        """With the frames up to the next one that would be kept."""
        frames, height, width = super().decoded_size(features)
        return frames * self.every, height, width

    def decode_features(
        self, features: Features, *, size: Sequence[int], past: Past | None = None
    ) -> Float[Tensor, "b 3 ..."]:
        """As ``RPiAE.decode_features``; clips have as many frames as ``size`` says, and frames that
        are kept are clamped to [0, 1] first."""
        if len(size) == 2:
            return super().decode_features(features, size=size, past=past)
        kept = -(-size[0] // self.every)
        made = super().decode_features(features, size=(kept, *size[1:]), past=past)
        return interpolated(made.clamp(0, 1), self.every, size[0])


def every_nth(number: int) -> str:
    """What an ``Interpolated`` tokenizer is measured by, in words."""
    return f"one frame in {number} through the tokenizer, those in between on straight lines"


def frames_per_token(model: RPiAE) -> int:
    """Frames of a clip per step of its tokens."""
    return model.encoder.patch[0] * (model.every if isinstance(model, Interpolated) else 1)


def frames_per_latent(model: RPiAE) -> int:
    """Frames of a clip per step of its latent after the first, which is of one step of tokens."""
    return frames_per_token(model) * temporal_downsampling(model.bridge)


def _pair(one: Tensor | None, other: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if one is None or other is None else (one, other)
