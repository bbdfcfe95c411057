"""Images on their way through a tokenizer, what metrics see of them, and what a metric is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from attrs import field, frozen
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.errors import RunError, UsageError
from rpiae.core.model.clips import of_images
from rpiae.core.model.contracts import Features, GaussianPosterior, Posterior, Replica
from rpiae.core.model.geometry import Rounding, to_8_bits
from rpiae.core.model.tokenizer import RPiAE
from rpiae.evaluation.spaces import FeatureSpace


class Examination:
    """Some images and what a tokenizer makes of them, each computed when first asked for.

    Args:
        model: the tokenizer.
        images: (b, 3, s, s) in [0, 1], on the model's device.
        labels: of the images, −1 where there is none.
        positions: of the images in their dataset; they name the images.
        replica: the pivot; None where it is not known.
        autocast: context that the tokenizer is run in.
        rounding: how decoded images are brought to 8 bits.
    """

    def __init__(
        self,
        model: RPiAE,
        images: Float[Tensor, "b 3 s s"],
        *,
        labels: Int[Tensor, " b"],
        positions: Int[Tensor, " b"],
        replica: Replica | None = None,
        autocast: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        rounding: Rounding = "nearest",
    ) -> None:
        self.model = model
        self.images = images
        self.labels = labels
        self.positions = positions
        self.replica = replica
        self._autocast = autocast
        self._rounding = rounding
        self._described: dict[tuple[int, str], Tensor] = {}

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
            return of_images(self.model.posterior(self.features))

    @cached_property
    def latent(self) -> Float[Tensor, "b c h w"]:
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
    def reconstruction(self) -> Float[Tensor, "b 3 s s"]:
        """Images through the mode and back, brought to 8 bits."""
        return self.decoded(self.latent)

    def decoded(self, latent: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 s s"]:
        """Images of latents in the size of ``images``, brought to 8 bits.

        Raises:
            RunError: if they are not finite.
        """
        size = (self.images.shape[-2], self.images.shape[-1])
        with torch.no_grad(), self._autocast():
            made = self.model.decode(latent, size=size)
        if not made.isfinite().all():
            raise RunError("the decoder gives numbers that are not finite")
        return to_8_bits(made.float(), rounding=self._rounding)

    def tokens_of(self, images: Float[Tensor, "b 3 s s"]) -> Features:
        """The encoder's tokens of other images, fp32."""
        with torch.no_grad(), self._autocast():
            found = self.model.features(images)
        return Features(found.tokens.float(), found.grid)

    def pivot_tokens_of(self, images: Float[Tensor, "b 3 s s"]) -> Features:
        """The pivot's tokens of other images, fp32."""
        assert self.replica is not None
        with torch.no_grad(), self._autocast():
            found = self.replica.features(images)
        return Features(found.tokens.float(), found.grid)

    def described(self, space: FeatureSpace, which: str = "images") -> Float[Tensor, "b d"]:
        """``images`` or ``reconstruction`` in a feature space; several metrics may ask."""
        key = (id(space), which)
        if key not in self._described:
            space.to(self.images.device)
            self._described[key] = space(getattr(self, which))
        return self._described[key]


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


class Accumulator(Protocol):
    """What a metric gathers; can be pickled."""

    def merge(self, other: Any) -> None:
        """Add all that another one of its kind has gathered."""


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


class Mean:
    """The mean of numbers, one per image; in float64."""

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Add numbers (n,)."""
        self.total += float(values.double().sum())
        self.count += values.numel()

    def merge(self, other: Mean) -> None:
        """Add all that another one has seen."""
        self.total += other.total
        self.count += other.count

    @property
    def value(self) -> float:
        """The mean; NaN where nothing was added."""
        return self.total / self.count if self.count else float("nan")


class Once:
    """An accumulator that is made when the first images tell its size; a process may see none.

    Attributes:
        made: the accumulator; None before that.
    """

    def __init__(self) -> None:
        self.made: Any = None

    def merge(self, other: Once) -> None:
        """Add all that another one has gathered."""
        if self.made is None:
            self.made = other.made
        elif other.made is not None:
            self.made.merge(other.made)


class Rows:
    """Tensors of images, kept by the images' positions."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, dict[str, Tensor]]] = []

    def add(self, positions: Int[Tensor, " b"], **tensors: Tensor) -> None:
        """Add tensors (b, …) of some images, by name; they are kept on CPU."""
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self._parts.append((positions.cpu(), kept))

    def merge(self, other: Rows) -> None:
        """Add all that another one has kept."""
        self._parts += other._parts

    def joined(self) -> dict[str, Tensor]:
        """All tensors (n, …) by name, in the order of positions."""
        if len(self._parts) > 1:
            positions = torch.cat([positions for positions, _ in self._parts])
            order = torch.argsort(positions)
            place = torch.empty_like(order)
            place[order] = torch.arange(len(order))
            whole = {
                name: torch.empty(len(order), *tensor.shape[1:], dtype=tensor.dtype)
                for name, tensor in self._parts[0][1].items()
            }
            done = 0
            while self._parts:  # each part is let go once it is copied: these can be large
                part, kept = self._parts.pop(0)
                for name, tensor in kept.items():
                    whole[name][place[done : done + len(part)]] = tensor
                done += len(part)
            self._parts = [(positions[order], whole)]
        return dict(self._parts[0][1]) if self._parts else {}


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
