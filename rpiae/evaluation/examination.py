"""Images on their way through a tokenizer, what metrics see of them, and what a metric is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from attrs import field, frozen
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.clips import of_images
from rpiae.core.model.contracts import Features, GaussianPosterior, Posterior, Replica
from rpiae.core.model.folding import fold, in_chunks
from rpiae.core.model.geometry import Rounding, to_8_bits
from rpiae.core.model.tokenizer import RPiAE
from rpiae.evaluation.accumulators import Accumulator, Faults
from rpiae.evaluation.interpolation import frames_per_latent, frames_per_token
from rpiae.evaluation.seen import Seen
from rpiae.evaluation.spaces import FeatureSpace

#: Frames that a feature space describes together.
FRAMES_AT_ONCE = 128


class Picture(NamedTuple):
    """A whole picture among the images of a batch, or clip among its clips.

    Attributes:
        name: what its dataset calls it.
        tiles: the images that it is put together of, row by row.
        columns: tiles per row; 1 where the picture is one image.
        frame: which frame of a clip it is, from 0.
    """

    name: str
    tiles: slice
    columns: int
    frame: int = 0

    def whole(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "3 h w"]:
        """The picture, put together of its tiles."""
        tiles = images[self.tiles]
        n, c, h, w = tiles.shape
        rows = tiles.reshape(n // self.columns, self.columns, c, h, w).permute(2, 0, 3, 1, 4)
        return rows.reshape(c, n // self.columns * h, self.columns * w)


class Examination(Seen):
    """Some images or clips and what a tokenizer makes of them, each computed when first asked for.

    All has the time axis where these are clips: reconstructions are (b, 3, t, h, w), latents
    (b, C, t, h, w), tokens lie on a grid of several steps, of which the last ones can be of frames that
    the tokenizer repeated. ``frames`` shows the same as images.

    Args:
        model: the tokenizer.
        images: (b, 3, s, s), or clips (b, 3, t, h, w), in [0, 1], on the model's device.
        labels: of the images, −1 where there is none.
        positions: of the images in their dataset; they name the images.
        replica: the pivot; None where it is not known.
        use_bridge: whether the bridge is in the path; without it there is no latent.
        pictures: the whole pictures that the images are; each a picture of its own where empty.
        autocast: context that the tokenizer is run in.
        rounding: how decoded images are brought to 8 bits.
        faults: where values that are not finite are counted.
        frame_rate: of clips, in frames per second; None where it is not known.
    """

    def __init__(
        self,
        model: RPiAE,
        images: Float[Tensor, "b 3 ..."],
        *,
        labels: Int[Tensor, " b"],
        positions: Int[Tensor, " b"],
        replica: Replica | None = None,
        use_bridge: bool = True,
        pictures: Sequence[Picture] = (),
        autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        rounding: Rounding = "nearest",
        faults: Faults | None = None,
        frame_rate: float | None = None,
    ) -> None:
        super().__init__(images, labels=labels, positions=positions)
        self.model = model
        self.replica = replica
        self.use_bridge = use_bridge
        self.pictures = pictures
        self.frame_rate = frame_rate
        self._autocast = autocast
        self._rounding = rounding
        self._faults = faults or Faults()

    @property
    def num_frames(self) -> int:
        """Frames of a clip; 0 where these are images."""
        return self.images.shape[2] if self.images.ndim == 5 else 0

    @cached_property
    def frames(self) -> Examination:
        """The same frame by frame, as metrics of images see clips; images are what they are."""
        return Frames(self) if self.num_frames else self

    @property
    def given(self) -> Examination:
        """Of frames, the clips that they are of; else this."""
        return self

    @cached_property
    def latent_steps(self) -> Int[Tensor, " t"]:
        """Which step of its clip's latent each frame is decoded from."""
        group = frames_per_latent(self.model)
        first = frames_per_token(self.model)
        frames = torch.arange(self.num_frames)
        return torch.where(frames < first, 0, 1 + (frames - first) // group)

    @cached_property
    def features(self) -> Features:
        """Clean tokens of the encoder, fp32."""
        return self.tokens_of(self.images)

    @cached_property
    def pivot_features(self) -> Features:
        """The pivot's tokens, fp32."""
        return self.pivot_tokens_of(self.images)

    @cached_property
    def posterior(self) -> Posterior:
        """The bridge's posterior."""
        with torch.no_grad(), self._autocast():
            posterior = self.model.posterior(self.features)
        return posterior if self.num_frames else of_images(posterior)

    @cached_property
    def latent(self) -> Float[Tensor, "b c ..."]:
        """The posterior's mode, fp32."""
        return self.posterior.mode().float()

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and log-variance of a Gaussian posterior, fp32; None for another one."""
        posterior = self.posterior
        if not self.model.bridge.gaussian or not isinstance(posterior, GaussianPosterior):
            return None
        return posterior.mean.float(), posterior.logvar.float()

    @cached_property
    def reconstruction(self) -> Float[Tensor, "b 3 ..."]:
        """Images through the path and back, by the posterior's mode, brought to 8 bits."""
        if self.use_bridge:
            return self.decoded(self.latent)
        return self._decoded(self.model.decode_features, self.features)

    def decoded(self, latent: Float[Tensor, "b c ..."]) -> Float[Tensor, "b 3 ..."]:
        """Images of latents in the size of ``images``, brought to 8 bits."""
        return self._decoded(self.model.decode, latent)

    def _decoded(self, decode: Callable[..., Tensor], source: Any) -> Tensor:
        with torch.no_grad(), self._autocast():
            made = decode(source, size=tuple(self.images.shape[2:]))
        self._faults.in_images(made)
        return to_8_bits(made.float(), rounding=self._rounding)

    def tokens_of(self, images: Float[Tensor, "b 3 ..."]) -> Features:
        """The encoder's tokens of other images, fp32."""
        with torch.no_grad(), self._autocast():
            found = self.model.features(images)
        self._faults.in_tokens(found.tokens)
        return Features(found.tokens.float(), found.grid)

    def pivot_tokens_of(self, images: Float[Tensor, "b 3 ..."]) -> Features:
        """The pivot's tokens of other images, fp32."""
        assert self.replica is not None
        with torch.no_grad(), self._autocast():
            found = self.replica.features(images)
        return Features(found.tokens.float(), found.grid)

    def whole(self, images: Float[Tensor, "b 3 s s"]) -> list[Float[Tensor, "n 3 h w"]]:
        """Whole pictures of ``images``, or of others in their places, those of one size together."""
        if all(picture.columns == len(images[picture.tiles]) == 1 for picture in self.pictures):
            return [images]
        return [picture.whole(images)[None] for picture in self.pictures]


class Frames(Examination):
    """The frames of clips as images, clip by clip.

    Tokens and latents are those that a frame is seen and decoded by, so several frames have the same
    where a part takes them together.

    Args:
        clips: what they are of.
    """

    def __init__(self, clips: Examination) -> None:
        number = clips.num_frames
        positions = clips.positions.unsqueeze(1) * number + torch.arange(number)
        super().__init__(
            clips.model, fold(clips.images), labels=clips.labels.repeat_interleave(number),
            positions=positions.flatten(), replica=clips.replica, use_bridge=clips.use_bridge,
            pictures=_of_frames(clips.pictures, number), autocast=clips._autocast,
            rounding=clips._rounding, faults=clips._faults, frame_rate=clips.frame_rate,
        )  # fmt: skip
        self._clips = clips

    @property
    def given(self) -> Examination:
        """The clips."""
        return self._clips

    @cached_property
    def features(self) -> Features:
        """Clean tokens of the encoder, fp32."""
        return self._of_each(self._clips.features)

    @cached_property
    def pivot_features(self) -> Features:
        """The pivot's tokens, fp32."""
        return self._of_each(self._clips.pivot_features)

    @cached_property
    def posterior(self) -> Posterior:
        """The bridge's posterior over the latents of the clips."""
        return self._clips.posterior

    @cached_property
    def latent(self) -> Float[Tensor, "b c h w"]:
        """The posterior's mode, fp32."""
        return self._at_latent_steps(self._clips.latent)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and log-variance of a Gaussian posterior, fp32; None for another one."""
        found = self._clips.moments
        if found is None:
            return None
        mean, logvar = found
        return self._at_latent_steps(mean), self._at_latent_steps(logvar)

    @cached_property
    def reconstruction(self) -> Float[Tensor, "b 3 s s"]:
        """Frames of the clips through the path and back, brought to 8 bits."""
        return fold(self._clips.reconstruction)

    def decoded(self, latent: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 s s"]:
        """Frames of latents, of which those of one step of a clip are equal."""
        clips = latent.reshape(-1, self._clips.num_frames, *latent.shape[1:]).transpose(1, 2)
        steps = self._clips.latent_steps
        firsts = [int((steps == step).nonzero()[0]) for step in range(int(steps[-1]) + 1)]
        return fold(self._clips.decoded(clips[:, :, firsts]))

    def described(self, space: FeatureSpace, which: str = "images") -> Float[Tensor, "b d"]:
        """As of images, of some frames at a time: a clip can be long."""
        key = (id(space), which)
        if key not in self._described:
            space.to(self.images.device)
            [found] = in_chunks(
                lambda frames: [space(frames)], getattr(self, which), most=FRAMES_AT_ONCE
            )
            self._described[key] = found
        return self._described[key]

    def _of_each(self, features: Features) -> Features:
        """Tokens (b·t, h·w, d) of every frame."""
        per_token = frames_per_token(self.model)
        steps = torch.arange(self._clips.num_frames) // per_token
        tokens = features.tokens
        by_step = tokens.reshape(len(tokens), features.grid[0], -1, tokens.shape[-1])
        return Features(by_step[:, steps].flatten(0, 1), (1, *features.grid[1:]))

    def _at_latent_steps(self, values: Float[Tensor, "b c t h w"]) -> Float[Tensor, "bt c h w"]:
        return fold(values[:, :, self._clips.latent_steps])


def _of_frames(pictures: Sequence[Picture], number: int) -> tuple[Picture, ...]:
    """The pictures that the frames of clips are, clip by clip."""
    return tuple(
        picture._replace(
            tiles=slice(picture.tiles.start * number + k, picture.tiles.stop * number, number),
            frame=k,
        )
        for picture in pictures
        for k in range(number)
    )


@frozen(kw_only=True)
class Measured:
    """What a metric found.

    Attributes:
        values: the numbers by name.
        details: further JSON values, such as one number per channel.
        facts: what the numbers depend on besides tokenizer and images, for the protocol.
        warnings: what to keep in mind.
    """

    values: Mapping[str, float]
    details: Mapping[str, Any] = field(factory=dict)
    facts: Mapping[str, Any] = field(factory=dict)
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Metric(Protocol):
    """Numbers over images that come in batches, in any order, over any number of processes."""

    def update(self, seen: Examination) -> None:
        """Take in some of the images."""

    def accumulators(self) -> Sequence[Accumulator]:
        """All that ``update`` gathered; merged over processes before ``compute``."""

    def compute(self) -> Measured:
        """The numbers."""


@runtime_checkable
class TrainedMetric(Metric, Protocol):
    """A metric that goes over training images first."""

    def update_training(self, seen: Examination) -> None:
        """Take in some of the training images; all of these come before the first ``update``."""

    def training_accumulators(self) -> Sequence[Accumulator]:
        """All that ``update_training`` gathered; merged over processes before the first ``update``."""


@runtime_checkable
class ComparedMetric(Metric, Protocol):
    """A metric that compares generated images, which ``update`` sees, with real ones."""

    def update_real(self, seen: Seen) -> None:
        """Take in some of the real images; all of these come before the first ``update``."""

    def real_accumulators(self) -> Sequence[Accumulator]:
        """All that ``update_real`` gathered; merged over processes before the first ``update``."""


def check_side(images: Float[Tensor, "b 3 h w"], least: int, reason: str) -> None:
    """Refuse images that are too small to be measured so.

    Args:
        images: what is measured.
        least: length of the short side, in pixels.
        reason: why they have to be, in words.

    Raises:
        UsageError: if they are smaller.
    """
    height, width = images.shape[-2:]
    if min(height, width) < least:
        raise UsageError(
            f"images of {height}×{width} pixels are smaller than {least}×{least}, {reason}"
        )


def pooled(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
    """Mean over tokens: what probes see of an encoder."""
    return tokens.float().mean(1)


def pooled_latent(latent: Float[Tensor, "b c h w"], most: int) -> Float[Tensor, "b d"]:
    """A latent's values in their places, averaged down to as many places as give at most ``most``
    values (but one per channel)."""
    side = max(1, math.isqrt(most // latent.shape[1]))
    size = (min(side, latent.shape[-2]), min(side, latent.shape[-1]))
    return F.adaptive_avg_pool2d(latent, size).flatten(1)
