"""RPiAE: encoder, bridge and decoder composed into a tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from rpiae.core.errors import UsageError
from rpiae.core.model.clips import as_clip, clip_features, of_images
from rpiae.core.model.contracts import Bridge, Decoder, Encoder, Features, Posterior
from rpiae.core.model.geometry import Geometry, encoder_view, geometry
from rpiae.core.model.streaming import Stream
from rpiae.core.model.temporal import Past, TemporalBridge, TemporalDecoder, temporal_downsampling

if TYPE_CHECKING:
    from rpiae.core.model.resolve import ResolvedTokenizer

_log = logging.getLogger(__name__)

NORM_EPS = 1e-5

#: How far images may lie outside [0, 1] without a word: what resampling overshoots by.
TOLERANCE = 0.05


class RPiAE(nn.Module):
    """A representation-pivoted autoencoder: images in [0, 1] to latents and back.

    ``encode``, ``decode`` and ``reconstruct`` take images (b, 3, h, w) with latents (b, C, h, w), or
    clips (b, 3, t, h, w) with latents (b, C, t, h, w). All other methods work on clips, of which an
    image is one of one frame. Parts for images see a clip frame by frame.

    Holds nothing but its parts and their two normalisers; no stage, no loss, no replica. Whatever
    passes into a part is cast to that part's dtype, so ``.to(torch.bfloat16)`` and the like work,
    for single parts too; images come out in the decoder's dtype, posteriors in fp32 at least.

    Args:
        encoder, bridge, decoder: parts that fit ``rpiae.core.model.contracts``.
        feature_norm: (mean, var) of the features, (D, 1, 1) or (D, h, w), applied before the
            bridge and inverted before the decoder.
        latent_norm: (mean, std) of the latents, (C,); stored for the diffusion model, never
            applied here.
        config: what the parts were built from; needed to save.
        trained_size: side of the training crops in pixels; 0 if unknown.

    Raises:
        UsageError: if a part's patch is not (frames, rows, columns).

    Source: arXiv 2603.19206.
    """

    mean: Tensor
    std: Tensor
    feature_mean: Tensor | None
    feature_var: Tensor | None
    latent_mean: Tensor | None
    latent_std: Tensor | None

    def __init__(
        self,
        *,
        encoder: Encoder,
        bridge: Bridge,
        decoder: Decoder,
        feature_norm: tuple[Tensor, Tensor] | None = None,
        latent_norm: tuple[Tensor, Tensor] | None = None,
        config: ResolvedTokenizer | None = None,
        trained_size: int = 0,
    ) -> None:
        super().__init__()
        _check_patches(encoder=encoder, decoder=decoder)
        self.encoder = encoder
        self.bridge = bridge
        self.decoder = decoder
        self.config = config
        self.trained_size = trained_size
        self._watches_range = True
        self.register_buffer("mean", torch.tensor(encoder.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(encoder.std).view(3, 1, 1), persistent=False)
        feature_mean, feature_var = feature_norm or (None, None)
        latent_mean, latent_std = latent_norm or (None, None)
        self.register_buffer("feature_mean", feature_mean)
        self.register_buffer("feature_var", feature_var)
        self.register_buffer("latent_mean", latent_mean)
        self.register_buffer("latent_std", latent_std)

    @property
    def roles(self) -> dict[str, nn.Module]:
        """Role name → part."""
        return {"encoder": self.encoder, "bridge": self.bridge, "decoder": self.decoder}  # type: ignore[dict-item]  # parts are modules

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters; the encoder's, where the parts have several."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def geometry(self, height: int, width: int, frames: int = 1) -> Geometry:
        """How an image or a clip of this size is padded, resized and tokenised."""
        return geometry(
            (frames, height, width), patch=self.encoder.patch, output_patch=self.decoder.patch,
            downsampling=self.bridge.downsampling,
            temporal_downsampling=temporal_downsampling(self.bridge),
        )  # fmt: skip

    def encode(self, images: Float[Tensor, "b 3 ..."]) -> Posterior:
        """Posterior over latents of images or clips in [0, 1], of any size.

        Values outside [0, 1] are told once per model, as a warning of ``logging``.

        Shapes:
            images (b, 3, h, w) → latents (b, C, h, w), clips (b, 3, t, h, w) → (b, C, t, h, w)

        Raises:
            UsageError: if they are neither, or not float.
        """
        posterior = self.posterior(self.features(images))
        return of_images(posterior) if images.ndim == 4 else posterior

    def decode(
        self, latent: Float[Tensor, "b c ..."], *, size: Sequence[int] | None = None
    ) -> Float[Tensor, "b 3 ..."]:
        """Images or clips of latents, not clamped.

        Args:
            latent: (b, C, h, w) for images, (b, C, t, h, w) for clips.
            size: (H, W) or, of clips, (T, H, W) that they are cropped to; not given, not cropped.

        Raises:
            UsageError: if it is no latent of this tokenizer, or the size is not one of such, or more
                than there is.
        """
        channels = self.bridge.latent_channels
        if (
            not isinstance(latent, Tensor)
            or latent.ndim not in (4, 5)
            or latent.shape[1] != channels
        ):
            given = tuple(latent.shape) if isinstance(latent, Tensor) else type(latent).__name__
            raise UsageError(
                f"latents must be tensors (batch, {channels}, h, w), or (batch, {channels}, t, h, w) "
                f"of clips, not {given}; a posterior gives them with mode() or sample()"
            )
        if 0 in latent.shape[2:]:
            raise UsageError(f"the latent is empty: its shape is {tuple(latent.shape)}")
        sides = latent.ndim - 2
        if size is not None and len(size) != sides:
            raise UsageError(
                f"size is {'(H, W) of images' if sides == 2 else '(T, H, W) of clips'}, whose latents "
                f"these are, not {tuple(size)}"
            )
        features = self.expand(as_clip(latent))
        whole = self.decoded_size(features)[-sides:]
        if size is None:
            size = whole
        if not all(0 < wanted <= there for wanted, there in zip(size, whole, strict=True)):
            raise UsageError(
                f"these latents are of {' × '.join(map(str, whole))} "
                f"{'pixels' if sides == 2 else 'frames, rows and columns'}, of which size is a part, "
                f"not {tuple(size)}"
            )
        return self.decode_features(features, size=size)

    def reconstruct(self, images: Float[Tensor, "b 3 ..."]) -> Float[Tensor, "b 3 ..."]:
        """Images or clips through the posterior's mode and back, clamped to [0, 1], in their size."""
        return self.decode(self.encode(images).mode(), size=images.shape[2:]).clamp(0, 1)

    forward = reconstruct

    def stream(self, *, tile: int | None = None, size: tuple[int, int] | None = None) -> Stream:
        """A stream that encodes and decodes a clip piece by piece; see ``Stream``."""
        return Stream(self, tile=tile, size=size)

    def features(self, images: Float[Tensor, "b 3 ..."]) -> Features:
        """Clean encoder features z of images or clips in [0, 1]: pad, resize, normalise, encode."""
        if images.ndim not in (4, 5) or images.shape[1] != 3 or not images.is_floating_point():
            raise UsageError(
                "images must be float tensors (batch, 3, height, width), and clips (batch, 3, frames, "
                f"height, width), in [0, 1], not {images.dtype} {tuple(images.shape)}"
            )
        self._check_range(images)
        clip = as_clip(images)
        frames, height, width = clip.shape[2:]
        plan = self.geometry(height, width, frames)

        def prepare(frames: Tensor) -> Tensor:
            return _fitting((encoder_view(frames, plan) - self.mean) / self.std, self.encoder)

        return clip_features(self.encoder, clip, plan, prepare)

    def normalise_latent(self, latent: Float[Tensor, "*b c ..."]) -> Float[Tensor, "*b c ..."]:
        """Latents with mean 0 and std 1 per channel over the data that latent_norm is of.

        Shapes:
            (C, h, w) or (b, C, h, w) of images, (b, C, t, h, w) of clips

        Raises:
            UsageError: if there is no latent_norm, or it is no latent of this tokenizer.
        """
        mean, std = self._latent_norm(latent)
        return (latent - mean) / std

    def denormalise_latent(self, latent: Float[Tensor, "*b c ..."]) -> Float[Tensor, "*b c ..."]:
        """Inverse of ``normalise_latent``: what a diffusion model generated, for ``decode``.

        Raises:
            UsageError: if there is no latent_norm, or it is no latent of this tokenizer.
        """
        mean, std = self._latent_norm(latent)
        return latent * std + mean

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of an image of this size, or of each step of a clip's.

        Raises:
            UsageError: if the tokenizer was put together without configs.
        """
        if self.config is None:
            raise UsageError("this tokenizer was put together by hand: encode an image instead")
        facts = self.config.bridge_facts
        _, rows, columns = self.geometry(height, width).grid
        return facts.latent_channels, rows // facts.downsampling, columns // facts.downsampling

    def posterior(self, features: Features, past: Past | None = None) -> Posterior:
        """The bridge's posterior of features, normalised first where there is a feature_norm.

        Args:
            features: of images or clips.
            past: what the bridge remembers of the clips' earlier pieces, where these are the next.
        """
        tokens, grid = self.normalised(features)
        features = Features(_fitting(tokens, self.bridge), grid)
        if past is not None and isinstance(self.bridge, TemporalBridge):
            return self.bridge.encode(features, past)
        return self.bridge.encode(features)

    def normalised(self, features: Features) -> Features:
        """Features as the bridge sees them: through the feature_norm, where there is one."""
        if self.feature_mean is None:
            return features
        mean, std = self._feature_norm(features)
        return Features((features.tokens - mean) / std, features.grid)

    def expand(self, latent: Float[Tensor, "b c t h w"], past: Past | None = None) -> Features:
        """Features ẑ of a latent, in the space of ``features``; ``past`` as in ``posterior``."""
        latent = _fitting(latent, self.bridge)
        if past is not None and isinstance(self.bridge, TemporalBridge):
            features = self.bridge.decode(latent, past)
        else:
            features = self.bridge.decode(latent)
        if self.feature_mean is not None:
            mean, std = self._feature_norm(features)
            features = Features(features.tokens * std + mean, features.grid)
        return features

    def decoded_size(self, features: Features) -> tuple[int, int, int]:
        """(T, H, W) of what features decode to, of which ``size`` is a part."""
        (t, h, w), (qt, qh, qw) = features.grid, self.decoder.patch
        return t * qt, h * qh, w * qw

    def decode_features(
        self, features: Features, *, size: Sequence[int], past: Past | None = None
    ) -> Float[Tensor, "b 3 ..."]:
        """Pixels of features, not clamped, cropped to ``size``: images of (H, W), where the features
        are of one frame, or clips of (T, H, W); ``past`` as in ``posterior``."""
        features = Features(_fitting(features.tokens, self.decoder), features.grid)
        if past is not None and isinstance(self.decoder, TemporalDecoder):
            pixels = self.decoder(features, past)
        else:
            pixels = self.decoder(features)
        std, mean = self.std.unsqueeze(-1), self.mean.unsqueeze(-1)
        clip = _fitting(pixels * std + mean, self.decoder)[..., : size[-2], : size[-1]]
        return clip[:, :, 0] if len(size) == 2 else clip[:, :, : size[0]]

    def _check_range(self, images: Tensor) -> None:
        """Warn of the first images outside [0, 1] by more than rounding and resampling explain.

        Looking at values makes an accelerator's queue wait, so there only the first batch is looked
        at; traced code and what ``vmap`` maps are not looked at.
        """
        if torch.compiler.is_compiling() or not self._watches_range:
            return
        if images.is_meta or not images.numel() or is_batchedtensor(images):
            return
        least, largest = (value.item() for value in images.detach().aminmax())
        inside = least >= -TOLERANCE and largest <= 1 + TOLERANCE
        self._watches_range = inside and images.device.type == "cpu"
        if not inside:
            _log.warning(
                "images go from %.3g to %.3g, and this tokenizer takes them in [0, 1]: divide 8-bit "
                "images by 255, and bring [-1, 1] back with (images + 1) / 2", least, largest,
            )  # fmt: skip

    def _feature_norm(self, features: Features) -> tuple[Tensor, Tensor]:
        """Mean and std as tokens (1 or n, D), the same in every frame."""
        assert self.feature_mean is not None
        assert self.feature_var is not None
        if self.feature_mean.shape[-2:] not in ((1, 1), features.grid[1:]):
            raise UsageError(
                f"feature_norm was made for a grid of {tuple(self.feature_mean.shape[-2:])}, not "
                f"{features.grid[1:]}: use images of the size it was made for"
            )
        mean = self.feature_mean.flatten(1).T
        std = (self.feature_var.flatten(1).T + NORM_EPS).sqrt()
        if len(mean) == 1:
            return mean, std
        return mean.repeat(features.grid[0], 1), std.repeat(features.grid[0], 1)

    def _latent_norm(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the latent's channels, (C, 1, 1) or (C, 1, 1, 1)."""
        if self.latent_mean is None or self.latent_std is None:
            raise UsageError(
                "this tokenizer has no latent_norm: rpiae stats RUN DATA measures and stores it"
            )
        channels = len(self.latent_mean)
        sides = 3 if latent.ndim == 5 else 2
        if latent.ndim not in (3, 4, 5) or latent.shape[-1 - sides] != channels:
            raise UsageError(
                f"latents must be tensors ({channels}, h, w), (batch, {channels}, h, w) or (batch, "
                f"{channels}, t, h, w), not {tuple(latent.shape)}"
            )
        ones = (1,) * sides
        return self.latent_mean.view(-1, *ones), self.latent_std.view(-1, *ones)


def _check_patches(**parts: Encoder | Decoder) -> None:
    """Refuse patches that are no triples."""
    for role, part in parts.items():
        if not isinstance(part.patch, tuple) or len(part.patch) != 3:
            raise UsageError(
                f"{role}.patch is {part.patch!r}, not (frames, rows, columns) of pixels per token: "
                f"{type(part).__name__} must set it, to (1, p, p) where it works on images"
            )


def _fitting(values: Tensor, part: object) -> Tensor:
    """Values in the dtype of a part's weights; as they are where it has none."""
    assert isinstance(part, nn.Module)
    weight = next(part.parameters(), None)
    return values if weight is None else values.to(weight.dtype)
