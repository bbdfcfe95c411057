"""Images as clips of one frame, and clips through encoders of images.

Inside, everything is a clip: images (b, 3, t, h, w), latents (b, C, t, h, w). The tokenizer's door
takes images and their latents without the time axis; ``as_clip`` adds it on the way in, and
``of_images`` and ``RPiAE.decode_features`` take it away on the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import (
    BlockFeatures,
    Encoder,
    Features,
    GaussianPosterior,
    Posterior,
    QuantisedPosterior,
)
from rpiae.core.model.folding import fold, frames_at_once, in_chunks, per_frame
from rpiae.core.model.geometry import Geometry

#: Images (n, 3, H, W) in [0, 1] → as an encoder takes them: padded, resized and normalised.
Prepare = Callable[[Tensor], Tensor]


def as_clip(values: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c t h w"]:
    """Images or their latents (b, c, h, w) as clips of one frame; clips as they are."""
    return values.unsqueeze(2) if values.ndim == 4 else values


def clip_features(
    encoder: Encoder, clip: Float[Tensor, "b 3 t h w"], plan: Geometry, prepare: Prepare
) -> Features:
    """An encoder's tokens of clips.

    An encoder with one frame per token is one of images and sees them frame by frame; another one
    sees the clip. The last frame is repeated to fill the last token, and the bridge's last group.

    Args:
        encoder: the encoder.
        clip: in [0, 1].
        plan: its geometry.
        prepare: what is done to every frame before.
    """
    [tokens] = _encoded(lambda images: [encoder(images).tokens], encoder, clip, plan, prepare)
    return Features(tokens, plan.grid)


def clip_blocks(
    encoder: Encoder,
    clip: Float[Tensor, "b 3 t h w"],
    plan: Geometry,
    prepare: Prepare,
    indices: Sequence[int],
) -> BlockFeatures:
    """As ``clip_features``, the tokens after the encoder's blocks with these indices."""
    tokens = _encoded(
        lambda images: encoder.blocks(images, indices).tokens, encoder, clip, plan, prepare
    )
    return BlockFeatures(list(tokens), plan.grid)


def _encoded(
    encode: Callable[[Tensor], Sequence[Tensor]],
    encoder: Encoder,
    clip: Tensor,
    plan: Geometry,
    prepare: Prepare,
) -> Sequence[Tensor]:
    """Tensors of tokens (b, t·h·w, d) that an encoder makes of clips."""
    if encoder.patch[0] > 1:
        return encode(per_frame(prepare, _with_last_repeated(clip, plan.padded[0], dim=2)))
    made = in_chunks(
        lambda images: encode(prepare(images)), fold(clip), most=frames_at_once(plan.grid)
    )
    return [
        _with_last_repeated(
            tokens.reshape(clip.shape[0], clip.shape[2], *tokens.shape[1:]), plan.grid[0], dim=1
        ).flatten(1, 2)
        for tokens in made
    ]


def _with_last_repeated(values: Tensor, number: int, *, dim: int) -> Tensor:
    """Frames along a dimension, the last one repeated until there are so many."""
    missing = number - values.shape[dim]
    if not missing:
        return values
    last = values.narrow(dim, -1, 1)
    return torch.cat([values, *[last] * missing], dim=dim)


def of_images(posterior: Posterior) -> Posterior:
    """The posterior of clips of one frame as one of images: (b, C, h, w) instead of (b, C, 1, h, w)."""
    if isinstance(posterior, GaussianPosterior):
        return GaussianImagePosterior(posterior)
    if isinstance(posterior, QuantisedPosterior):
        return QuantisedImagePosterior(posterior)
    return ImagePosterior(posterior)


class ImagePosterior:
    """A posterior over latents (b, C, h, w) of images.

    Args:
        posterior: the same over latents (b, C, 1, h, w).
    """

    def __init__(self, posterior: Posterior) -> None:
        self._posterior = posterior

    def mode(self) -> Float[Tensor, "b c h w"]:
        """The most likely latent."""
        return self._posterior.mode().squeeze(2)

    def sample(self, noise: Float[Tensor, "b c h w"] | None = None) -> Float[Tensor, "b c h w"]:
        """A sample; ``noise`` is standard normal of the latent's shape (drawn where not given)."""
        return self._posterior.sample(None if noise is None else as_clip(noise)).squeeze(2)


class GaussianImagePosterior(ImagePosterior):
    """A diagonal Gaussian over latents of images.

    Attributes:
        mean, logvar: (b, C, h, w).
    """

    def __init__(self, posterior: GaussianPosterior) -> None:
        super().__init__(posterior)
        self.mean = posterior.mean.squeeze(2)
        self.logvar = posterior.logvar.squeeze(2)
        self.kl = posterior.kl


class QuantisedImagePosterior(ImagePosterior):
    """A code per latent position of images.

    Attributes:
        indices: (b, h, w), which code it is.
        codebook_size: how many there are.
    """

    def __init__(self, posterior: QuantisedPosterior) -> None:
        super().__init__(posterior)
        self.indices = posterior.indices.squeeze(1)
        self.codebook_size = posterior.codebook_size
