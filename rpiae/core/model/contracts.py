"""What the parts of a tokenizer must offer, as types only.

A part is any ``torch.nn.Module`` that fits its Protocol; nothing has to be inherited.
``rpiae.testing`` checks a part against these contracts. They lie in one file, over 400 lines, because a
part's author reads them together, and docstrings are most of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from attrs import frozen
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from rpiae.core.errors import UsageError
from rpiae.core.model.geometry import Grid, Patch
from rpiae.core.runtime.draws import StepRandomness, uniform


class Features(NamedTuple):
    """Token features with the grid they lie on.

    Attributes:
        tokens: (b, n, d), row-major over the grid.
        grid: (t, h, w) with t·h·w = n.
    """

    tokens: Float[Tensor, "b n d"]
    grid: Grid


class BlockFeatures(NamedTuple):
    """Outputs of some encoder blocks, before any final norm.

    Attributes:
        tokens: one (b, n, d) tensor of patch tokens per index asked for.
        grid: (t, h, w).
    """

    tokens: list[Tensor]
    grid: Grid


@runtime_checkable
class Encoder(Protocol):
    """A vision transformer that turns normalised images into patch tokens.

    Attributes:
        width: channels d of the tokens.
        patch: (pt, ph, pw), input frames and pixels per token. With pt = 1 it is an encoder of
            images, (1, p, p) for square patches: it takes (b, 3, h, w), gives tokens on grids
            (1, h/ph, w/pw), and is given a clip frame by frame. With more it takes clips
            (b, 3, t, h, w).
        mean, std: per-channel statistics that its input is normalised with.
        num_blocks: transformer blocks that are used.
        last_weight: MLP output weight of the last used block; adaptive weights refer to it.

    Every trainable parameter must receive a gradient from the tokens.
    """

    width: int
    patch: Patch
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_blocks: int

    @property
    def last_weight(self) -> nn.Parameter: ...

    def forward(self, images: Float[Tensor, "b 3 ..."]) -> Features:
        """Tokens of normalised images whose sides are multiples of ``patch``."""

    def blocks(self, images: Float[Tensor, "b 3 ..."], indices: Sequence[int]) -> BlockFeatures:
        """Patch tokens after the blocks with these indices (negative ones count from the end)."""

    def __call__(self, images: Float[Tensor, "b 3 ..."]) -> Features: ...


@runtime_checkable
class Posterior(Protocol):
    """A distribution over latents (b, C, t, h, w); where ``RPiAE.encode`` gives it for images, over
    (b, C, h, w)."""

    def mode(self) -> Float[Tensor, "b c ..."]: ...

    def sample(self, noise: Float[Tensor, "b c ..."] | None = None) -> Float[Tensor, "b c ..."]:
        """A sample; ``noise`` is standard normal of the latent's shape (drawn where not given)."""


@runtime_checkable
class GaussianPosterior(Posterior, Protocol):
    """A diagonal Gaussian over latents.

    Attributes:
        mean, logvar: of the latents' shape.
    """

    mean: Float[Tensor, "b c ..."]
    logvar: Float[Tensor, "b c ..."]

    def kl(self) -> Float[Tensor, ""]: ...


@runtime_checkable
class QuantisedPosterior(Posterior, Protocol):
    """A point out of a finite set of codes per latent position.

    Attributes:
        indices: (b, t, h, w), which code it is; (b, h, w) where the latents are of images.
        codebook_size: how many there are.
    """

    indices: Int[Tensor, "b ..."]
    codebook_size: int


@runtime_checkable
class Bridge(Protocol):
    """Compresses encoder features into a latent and expands them again.

    Both lie on grids (t, h, w), one of images on (1, h, w). A bridge of images takes the frames of
    a clip apart, see ``rpiae.core.model.folding.per_frame``.

    Attributes:
        features: channels of the features on both sides.
        latent_channels: channels C of the latent.
        gaussian: whether ``encode`` gives a ``GaussianPosterior``.
        downsampling: tokens s per latent position and side. The tokenizer pads images, so that
            ``encode`` sees rows and columns in multiples of s, and ``decode`` gives s·h × s·w back.
    """

    features: int
    latent_channels: int
    gaussian: bool
    downsampling: int

    def encode(self, features: Features) -> Posterior: ...

    def decode(self, latent: Float[Tensor, "b c t h w"]) -> Features: ...


class Fit(NamedTuple):
    """What came of an analytic fit.

    Attributes:
        tokens: how many tokens it saw.
        kept: share of their variance that comes back out of the fitted part.
    """

    tokens: int
    kept: float


@runtime_checkable
class Fittable(Protocol):
    """A bridge with an analytic fit, run once: before the first stage that has it in its path.

    Attributes:
        fitted: whether it was; a buffer, so that a saved or resumed model is not fitted again.
    """

    fitted: Tensor

    def fit(self, batches: Iterable[Features]) -> Fit:
        """Fit to clean features, which come in batches; a pure function of them."""


@runtime_checkable
class Decoder(Protocol):
    """Turns features into normalised pixels.

    Attributes:
        features: channels of the features it reads.
        patch: (qt, qh, qw), output frames and pixels per token; (1, q, q) for one of images.
        last_weight: weight of the layer that makes the pixels; adaptive weights refer to it.
    """

    features: int
    patch: Patch

    @property
    def last_weight(self) -> nn.Parameter: ...

    def forward(self, features: Features) -> Float[Tensor, "b 3 t h w"]:
        """Pixels in the encoder's normalised space, ``patch`` per token of the grid."""

    def __call__(self, features: Features) -> Float[Tensor, "b 3 t h w"]: ...


class Replica(Protocol):
    """The frozen copy of the pivot, as loss terms see it."""

    def features(self, images: Float[Tensor, "b 3 ..."]) -> Features:
        """Tokens of the replica for images or clips in [0, 1]."""

    def blocks(self, images: Float[Tensor, "b 3 ..."], indices: Sequence[int]) -> BlockFeatures:
        """Intermediate tokens of the replica for images or clips in [0, 1]; gradients pass to them."""

    @property
    def num_blocks(self) -> int: ...


@runtime_checkable
class Critic(Protocol):
    """Tells images from reconstructions."""

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Any number of logits per image in [0, 1], high for images; gradients pass to them."""


class StepContext(NamedTuple):
    """All that a forward pass of the model produced; what a loss term may look at.

    A field is None where the stage has no such thing; a term declares what it ``needs``.

    Attributes:
        images: x in [0, 1]: images (b, 3, h, w), or clips (b, 3, t, h, w).
        features: clean encoder features z.
        posterior: the bridge's posterior, where the bridge is in the path.
        decoded_features: ẑ, the bridge decoder's output in the space of ``features``.
        reconstruction: x̂, of the shape of ``images``, not clamped.
        replica: the frozen pivot.
        latent: what was decoded, (b, C, t, h, w); t is 1 for images.
        draws: the step's random draws, for terms that need some.
        expand: the bridge's way back, from a latent to features.
        critic: the stage's critic, frozen.
    """

    images: Tensor
    features: Features
    posterior: Posterior | None
    latent: Tensor | None
    decoded_features: Features | None
    reconstruction: Tensor | None
    replica: Replica
    draws: StepRandomness
    expand: Callable[[Tensor], Features] | None = None
    critic: Critic | None = None


#: What a loss term's config can declare to need from a step: of a tokenizer, and of a generator.
NEEDS = (
    "pixels", "features", "latent", "decoded_features", "gaussian", "replica", "critic", "velocity"
)  # fmt: skip


class Term(Protocol):
    """A loss term: a scalar from a step's context.

    What it needs of the context stands in its config's ``needs``.
    """

    def __call__(self, context: StepContext) -> Float[Tensor, ""]: ...


@runtime_checkable
class AdversarialTerm(Term, Protocol):
    """A term that plays against a critic, and knows what the critic's own loss is.

    Clips are shown frame by frame, each frame with the draws of its clip.
    """

    def augmented(
        self, images: Float[Tensor, "b 3 h w"], draws: StepRandomness, purpose: str
    ) -> Float[Tensor, "b 3 h w"]:
        """Images as the critic is shown them; differentiable."""

    def critic_loss(
        self, real: Float[Tensor, "b k"], made: Float[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        """The critic's loss, from its logits of images and of reconstructions."""


class Batch(NamedTuple):
    """What one process learns from at a step, or a part of it that goes through the model together.

    Attributes:
        inputs: (b, …), of one shape in all processes at a step: images (b, 3, h, w), as bytes or as
            floats in [0, 1]; clips (b, 3, t, h, w); or latents (b, C, h, w) in the type that they are
            stored in.
        samples: global sample index of each row within the stage; names its random draws.
        skipped: samples that could not be used and were replaced, in words; new ones only.
        notices: what else is worth saying, such as a shard that was left out; new ones only.
        labels: of each row, (b,); −1 where there is none, None where none is known.
        share: weight of these rows' mean in the mean over the step: their number over that of the
            whole step, times the processes whose means are averaged.
    """

    inputs: Shaped[Tensor, "b ..."]
    samples: tuple[int, ...]
    skipped: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    labels: Int[Tensor, " b"] | None = None
    share: float = 1.0

    def split(self, parts: int) -> list[Batch]:
        """At most ``parts`` batches of like size, whose shares add up to this one's."""
        number = len(self.samples)
        size = math.ceil(number / parts)
        return [self._rows(slice(i, min(i + size, number))) for i in range(0, number, size)]

    def _rows(self, rows: slice) -> Batch:
        samples = self.samples[rows]
        return Batch(
            self.inputs[rows],
            samples,
            labels=None if self.labels is None else self.labels[rows],
            share=self.share * len(samples) / len(self.samples),
        )


class HeldOut(NamedTuple):
    """Images, or clips, that are never trained on.

    Attributes:
        images: (n, 3, s, s) in [0, 1], or clips (n, 3, t, s, s).
        groups: per image, the photograph it is a tile of; crops of one photograph lie row-major.
        columns: photograph → tiles per row (1 where the photograph is one crop).
    """

    images: Float[Tensor, "n 3 ..."]
    groups: tuple[str, ...]
    columns: dict[str, int]


@frozen(kw_only=True)
class StageSteps:
    """The steps of a stage, and a process's share of each; iterated, its samples step by step.

    The samples of step s are s·b to s·b + b − 1, of which every process has consecutive ones, as many
    as others. Where their number b is no multiple of the number of processes, the first ones have one
    more.

    Attributes:
        seed: the run's.
        stage: name of the stage.
        batch_size: samples of a step, b, in all processes together.
        start, steps: the first step, and the one after the last.
        rank, num_processes: which of how many processes it is.
        image_share: share of the steps that are of single frames, where the data are clips.
    """

    seed: int
    stage: str
    batch_size: int
    start: int
    steps: int
    rank: int = 0
    num_processes: int = 1
    image_share: float = 0.0

    def __len__(self) -> int:
        return len(range(self.start, self.steps))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (tuple(self.samples(step)) for step in range(self.start, self.steps))

    def samples(self, step: int) -> range:
        """The process's samples of a step."""
        small, more = divmod(self.batch_size, self.num_processes)
        first = step * self.batch_size + self.rank * small + min(self.rank, more)
        return range(first, first + small + (self.rank < more))

    def of_frames(self, step: int) -> bool:
        """Whether a step learns from single frames: drawn, and the same in all processes."""
        return uniform(self.seed, self.stage, step, "frames") < self.image_share

    @property
    def share(self) -> float:
        """See ``Batch``."""
        return len(self.samples(0)) * self.num_processes / self.batch_size


class BatchSource(Protocol):
    """What a stage learns from, step by step.

    Attributes:
        num_images: images (or their latents) to train on, which are an epoch.
        notices: what is to be said of it before it is used, such as what is left out, in words; the
            first batch says it too.
    """

    @property
    def num_images(self) -> int: ...

    @property
    def notices(self) -> tuple[str, ...]: ...

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """Batches of these steps, one after the other, on CPU.

        What they hold, and how it is cropped, depends on the seed, the stage and the sample alone (and
        on the size of the batches, where all images of a batch have something in common).
        """


@runtime_checkable
class Dataset(BatchSource, Protocol):
    """Images to train on and images held out.

    Attributes:
        image_size: side s of square crops; other shapes have about their area.
    """

    @property
    def image_size(self) -> int: ...

    def held_out(self) -> HeldOut: ...

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """Random training crops in [0, 1], for fitting."""


@runtime_checkable
class ClipDataset(Dataset, Protocol):
    """A dataset of clips: batches (b, 3, t, s, s), except for ``StageSteps.of_frames``; held-out clips
    (n, 3, t, s, s); and single frames as crops for fitting.

    Attributes:
        frames: t, of a clip.
    """

    @property
    def frames(self) -> int: ...


def block_index(index: int, num_blocks: int) -> int:
    """Position of a block; negative indices count from the end.

    Raises:
        UsageError: if there is no such block.
    """
    if not -num_blocks <= index < num_blocks:
        raise UsageError(f"there is no block {index}: the encoder has blocks 0 to {num_blocks - 1}")
    return index % num_blocks


def standard_normal_like(reference: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise of a tensor's shape, dtype and device."""
    return torch.randn(
        reference.shape, dtype=reference.dtype, device=reference.device, generator=generator
    )
