"""Latents from a folder that ``rpiae encode`` wrote, for training on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from rpiae.core.errors import CheckpointError, UsageError, unknown
from rpiae.core.model.contracts import Batch, StageSteps
from rpiae.core.runtime.draws import generator, uniform
from rpiae.core.runtime.names import shown
from rpiae.data.held_out import held_out_indices
from rpiae.data.loading import handed_over, loaded_batches
from rpiae.data.orders import EpochOrder, Requests
from rpiae.latents.index import AnyPlan, read_index
from rpiae.latents.layout import UNCHECKED_FORMAT, Plan
from rpiae.latents.statistics import latent_norm
from rpiae.latents.stored import Shards, Stored
from rpiae.latents.video.layout import VideoPlan
from rpiae.latents.video.windows import Starts, VideoWindows

logger = logging.getLogger(__name__)


class LatentRequest(NamedTuple):
    """A latent with all its random draws.

    Attributes:
        sample: global sample index within the stage.
        latent: which one, by its index.
        flipped: whether it is the mirrored image's.
        draws: seed and labels of a sample's noise.
    """

    sample: int
    latent: int
    flipped: bool
    draws: tuple[int, str, int, str]


class LatentDataset(TorchDataset[tuple[Tensor, int]]):
    """Latents and labels in the order of the images, clips or videos, read from files on disk.

    ``dataset[i]`` is (latent (C, h, w) in fp32, label), of clips and videos (latent (C, t, h, w),
    label); the label is −1 where there is none. Latents are as the tokenizer made them:
    ``normalised`` and ``denormalised`` convert, and nothing is ever converted unasked. Where moments
    are stored, every access draws a new sample; with ``flip``, it takes the mirrored image's latent
    half of the time. Both draw from torch's global generator, which a ``DataLoader`` seeds differently
    in each of its workers and epochs; ``batches`` draws as a function of the sample.

    Of whole videos, items are windows of ``frames`` latent steps. The first latent step of a video
    stands for fewer frames than later ones, and the decoder takes the first that it is given for such
    a one: windows start there, so that what is learned from them can be decoded. Windows that start
    ``anywhere`` are for models that continue videos.

    Every tensor of a shard is compared with its digest when it is read for the first time, in each
    process that reads, and of a video what lies around a window; ``verify`` does so for all
    beforehand, and what is forked or pickled afterwards knows. What was written before there were
    digests is read unchecked, and a warning says so.

    Args:
        folder: what ``rpiae encode`` wrote.
        flip: whether mirrored images are used too; they must be stored.
        sample: whether stored moments are sampled; otherwise the mean is taken.
        label_names: the names that labels must have by number, such as those of the latents that a
            model is trained on; anything goes where not given.
        workers: processes that read the latents of ``batches``; 0 reads in this process.
        held_out: how many latents ``batches`` leaves out, drawn once and for all; at most half of them.
        frames: latent steps of a window of a whole video; where not given, items are whole videos.
        starts: of windows: ``first``, a window per video, at its first latent step; ``anywhere``, one
            at every step that leaves room.
        size: (h, w) of the latents of videos; others are left out. Any where not given.

    Attributes:
        num_images: how many items ``batches`` shows.
        held_out: indices of those that it does not.
        notices: none; see ``BatchSource``.
        index: what ``index.json`` holds.
        latent_shape: (C, h, w) of images, (C, t, h, w) of clips and videos; 0 for a side in which
            videos differ.
        labels: (n,), int64; −1 where there is none.
        mean, std: statistics of all latents, (C, 1, 1) in fp32, of clips and videos (C, 1, 1, 1);
            std is 1 for a channel that never varies.

    Raises:
        CheckpointError: if the folder is incomplete or damaged.
        UsageError: if ``flip`` is asked for and not stored, labels have other names, there is no
            window of these steps and size, or windows are asked for of what are no whole videos.
    """

    notices: tuple[str, ...] = ()

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        flip: bool = False,
        sample: bool = True,
        label_names: Sequence[str] | None = None,
        workers: int = 0,
        held_out: int = 0,
        frames: int | None = None,
        starts: Starts = "first",
        size: Sequence[int] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._workers = workers
        self._plan, self.index = read_index(self.folder)
        plan = self._plan
        if not self.index.get("complete"):
            raise CheckpointError(
                f"{self.folder} is not complete: {_there(self.folder, plan)}. "
                "Call rpiae encode again with the same arguments to go on"
            )
        if flip and not plan.settings.flip:
            raise UsageError(f"{self.folder} has no mirrored latents: encode with --flip")
        self._flip = flip
        self._moments = plan.settings.posterior == "moments"
        self._sample = sample and self._moments
        if label_names is not None:
            _check_label_names(self.folder, self.label_names, label_names)
        if plan.format == UNCHECKED_FORMAT:
            logger.warning(
                "%s was written by an earlier rpiae, without digests: damage in it goes unseen",
                self.folder,
            )
        self._stored: Stored
        if isinstance(plan, VideoPlan):
            _check_window(frames, starts)
            self._stored = VideoWindows(
                self.folder, plan, self.index, frames=frames, starts=starts, size=size
            )
        else:
            if (frames, starts, size) != (None, "first", None):
                raise UsageError(
                    f"{self.folder} holds latents of {plan.contents}, which are of one size: frames, "
                    "starts and size are for those of whole videos"
                )
            self._stored = Shards(self.folder, plan, self.index)
        self.latent_shape: tuple[int, ...] = self._stored.latent_shape
        self.labels = self._stored.labels
        _check_labels(self.labels, self.label_names, self.folder)
        self.held_out = held_out_indices(len(self), held_out) if held_out else []
        self._shown = np.setdiff1d(np.arange(len(self)), self.held_out)
        statistics = self.index["statistics"]
        mean, std = (torch.tensor(statistics[k], dtype=torch.float64) for k in ("mean", "std"))
        ones = (1,) * (len(self.latent_shape) - 1)
        self.mean, self.std = (t.view(-1, *ones) for t in latent_norm(mean, std))

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = range(len(self))[index]
        latent = self.drawn(index, flipped=self._flip and bool(torch.rand(()) < 0.5))
        return latent.float(), int(self.labels[index])

    def drawn(
        self, index: int, *, flipped: bool, draws: torch.Generator | None = None
    ) -> Float[Tensor, "c ..."]:
        """A latent in the type that it is stored in; in fp32 where it is a sample of moments.

        Args:
            index: which one.
            flipped: whether it is the mirrored image's.
            draws: where a sample's noise is from; torch's global generator where not given.
        """
        suffix = "_flipped" if flipped else ""
        latent = self._stored.read(index, self.kind + suffix)
        if not self._sample:
            return latent
        logvar = self._stored.read(index, "logvar" + suffix).float()
        noise = torch.randn(latent.shape, generator=draws)
        return latent.float() + (0.5 * logvar).exp() * noise

    def moments(
        self, index: int
    ) -> Iterator[tuple[Float[Tensor, "c ..."], Float[Tensor, "c ..."] | None]]:
        """Mean and variance of what is drawn of an item, in fp32, and of its mirror image where that is
        used too; no variance where one latent alone is drawn."""
        for suffix in ("", "_flipped") if self._flip else ("",):
            mean = self._stored.read(index, self.kind + suffix).float()
            if self._sample:
                yield mean, self._stored.read(index, "logvar" + suffix).float().exp()
            else:
                yield mean, None

    def stored(self, index: int) -> Float[Tensor, "c ..."]:
        """A latent in the type that it is stored in; the mean, where there are moments."""
        return self._stored.read(index, self.kind)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of what is stored of every item: ``latent``, or ``mean`` and ``logvar``, and each with
        ``_flipped`` of the mirrored image."""
        return self._plan.settings.tensors

    def tensor(self, index: int, name: str) -> Float[Tensor, "c ..."]:
        """An item of one of the ``tensors``, in the type that it is stored in.

        Raises:
            CheckpointError: if it is damaged.
        """
        return self._stored.read(index, name)

    @property
    def num_images(self) -> int:
        return len(self._shown)

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """Latents and labels of the steps of a stage; see ``BatchSource``.

        Every epoch shows all latents that are not held out, in an order of its own.

        Raises:
            DataError: if what is stored is damaged.
            UsageError: if these are videos of several sizes, which no batch can hold.
        """
        if not all(self.latent_shape):
            raise UsageError(
                f"the videos in {self.folder} differ in size, so they make no batches: ask for "
                "windows (frames=…), and for one size of latents (size=(h, w)) where they differ in it"
            )
        seed, stage = steps.seed, steps.stage
        order = EpochOrder(seed, stage, self.num_images)

        def request(sample: int) -> LatentRequest:
            flipped = self._flip and uniform(seed, stage, sample, "flip") < 0.5
            latent = int(self._shown[order.image(sample)])
            return LatentRequest(sample, latent, flipped, (seed, stage, sample, "posterior"))

        requests = Requests(request, steps)
        return loaded_batches(_Drawn(self), requests, collate=_collated, workers=self._workers)

    def name(self, index: int) -> str:
        """What the source calls an image, a clip, or the video of a window."""
        return self._stored.name(index)

    @property
    def positions(self) -> Tensor:
        """Index in the source of every image, every clip, or the video of every window, (n,), int64."""
        return self._stored.positions

    @property
    def windows(self) -> VideoWindows | None:
        """The windows of whole videos: which there are, and any piece of them; None of images and
        clips."""
        return self._stored if isinstance(self._stored, VideoWindows) else None

    @property
    def fingerprint(self) -> str:
        """What tells these latents from others, wherever they lie."""
        return self._plan.digest()

    @property
    def tokenizer(self) -> tuple[str, str]:
        """Folder and fingerprint of the tokenizer that made them."""
        return self._plan.tokenizer["path"], self._plan.tokenizer["sha256"]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of every label, by its number; empty where unknown."""
        return self._plan.label_names if isinstance(self._plan, Plan) else ()

    def frame_rate(self, index: int) -> Fraction | None:
        """Frames per second of a clip or video; None of an image."""
        return self._stored.rate(index)

    def verify(self) -> None:
        """Read everything and compare it with its digests, so that no later reader has to.

        Raises:
            CheckpointError: if anything is damaged.
        """
        self._stored.verify()

    def normalised(self, latent: Float[Tensor, "*b c ..."]) -> Float[Tensor, "*b c ..."]:
        """Latents with mean 0 and std 1 per channel over this dataset.

        Shapes:
            an item or a batch of them; of a dataset of images also clips (b, C, t, h, w)
        """
        mean, std = self._norm(latent)
        return (latent - mean) / std

    def denormalised(self, latent: Float[Tensor, "*b c ..."]) -> Float[Tensor, "*b c ..."]:
        """Inverse of ``normalised``."""
        mean, std = self._norm(latent)
        return latent * std + mean

    def _norm(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std that stand beside a latent's channels."""
        mean, std = self.mean.to(latent), self.std.to(latent)
        if latent.ndim == 5 and mean.ndim == 3:
            return mean.unsqueeze(-1), std.unsqueeze(-1)
        return mean, std

    def in_order(
        self, size: int, *, limit: int | None = None
    ) -> Iterator[tuple[Float[Tensor, "b c ..."], list[str]]]:
        """Stored latents (means, where there are moments) in order, with their names."""
        number = len(self) if limit is None else min(limit, len(self))
        for stored, names in self._stored.in_order(self.kind, size, number):
            yield stored.float(), names

    @property
    def kind(self) -> str:
        """Name of the tensor that a latent is taken from: ``mean`` where there are moments."""
        return "mean" if self._moments else "latent"


class _Drawn(TorchDataset["tuple[int, Tensor, int] | str"]):
    """Latents by request, with sample and label; what is wrong where one cannot be read."""

    def __init__(self, latents: LatentDataset) -> None:
        self._latents = latents

    def __getitem__(self, request: LatentRequest) -> tuple[int, Tensor, int] | str:
        draws = generator(*request.draws)
        try:
            latent = self._latents.drawn(request.latent, flipped=request.flipped, draws=draws)
        except CheckpointError as error:
            return str(error)
        return request.sample, latent, int(self._latents.labels[request.latent])


def _collated(found: Sequence[tuple[int, Tensor, int] | str]) -> Batch | str:
    for each in found:
        if isinstance(each, str):
            return each
    samples, latents, labels = zip(*found, strict=True)
    return Batch(
        handed_over(torch.stack(latents)), samples, labels=handed_over(torch.tensor(labels))
    )


def _there(folder: Path, plan: AnyPlan) -> str:
    """How much of a folder's content is there, in words."""
    kind, pattern = (
        ("videos", "video-*") if isinstance(plan, VideoPlan) else ("shards", "latents-*")
    )
    there = len(list(folder.glob(f"{pattern}.safetensors")))
    return f"{there} of {plan.num_files} {kind} are there"


def _check_window(frames: int | None, starts: str) -> None:
    """Refuse windows that cannot be."""
    if frames is not None and frames < 1:
        raise UsageError(f"frames must be at least 1, got {frames}")
    if starts not in get_args(Starts):
        raise UsageError(unknown("start of windows", starts, get_args(Starts)))
    if frames is None and starts == "anywhere":
        raise UsageError("windows that start anywhere need frames, the latent steps of a window")


def _check_labels(labels: Tensor, names: Sequence[str], folder: Path) -> None:
    """Refuse labels beyond the last name, where they have names."""
    highest = int(labels.max()) if len(labels) else -1
    if names and highest >= len(names):
        raise CheckpointError(
            f"{folder} is damaged: it has label {highest}, and names for {len(names)} labels"
        )


def _check_label_names(folder: Path, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse labels that mean something else than is wanted."""
    if tuple(names) == tuple(wanted):
        return
    if len(names) != len(wanted):
        different = f"it has {len(names)} classes, and {len(wanted)} are wanted"
        odd = sorted(set(wanted).symmetric_difference(names))
        different += f", which differ in {shown(odd[0])}" if odd else ""
    else:
        number = next(
            i for i, pair in enumerate(zip(names, wanted, strict=True)) if len({*pair}) > 1
        )
        different = (
            f"label {number} is {shown(names[number])}, and {shown(wanted[number])} is wanted"
        )
    raise UsageError(
        f"the labels in {folder} mean other classes: {different}. Encode with the same list of classes"
    )
