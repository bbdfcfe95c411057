"""Latents from a folder that ``rpiae encode`` wrote, for training on them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.contracts import Batch, StageSteps
from rpiae.core.runtime.draws import generator, uniform
from rpiae.core.runtime.names import shown
from rpiae.data.loading import handed_over, loaded_batches
from rpiae.data.orders import EpochOrder, Requests
from rpiae.latents.layout import UNCHECKED_FORMAT, check_shard, check_tensor, read_index
from rpiae.latents.statistics import latent_norm

logger = logging.getLogger(__name__)

_WRITE_AGAIN = (
    "Call rpiae encode again with the same arguments: it writes what is missing or damaged"
)


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
    """Latents and labels in the order of the images, read from memory-mapped shards.

    ``dataset[i]`` is (latent (C, h, w) in fp32, label); the label is −1 where there is none. Latents
    are as the tokenizer made them: ``normalised`` and ``denormalised`` convert, and nothing is ever
    converted unasked. Where moments are stored, every access draws a new sample; with ``flip``, it
    takes the mirrored image's latent half of the time. Both draw from torch's global generator,
    which a ``DataLoader`` seeds differently in each of its workers and epochs; ``batches`` draws as a
    function of the sample.

    Every tensor of a shard is compared with its digest when it is read for the first time, in each
    process that reads; ``verify`` does so for all beforehand, and what is forked or pickled afterwards
    knows. What was written before there were digests is read unchecked, and a warning says so.

    Args:
        folder: what ``rpiae encode`` wrote.
        flip: whether mirrored images are used too; they must be stored.
        sample: whether stored moments are sampled; otherwise the mean is taken.
        label_names: the names that labels must have by number, such as those of the latents that a
            model is trained on; anything goes where not given.
        workers: processes that read the latents of ``batches``; 0 reads in this process.

    Attributes:
        num_images: how many there are.
        notices: none; see ``BatchSource``.
        index: what ``index.json`` holds.
        latent_shape: (C, h, w).
        labels: (n,), int64; −1 where there is none.
        mean, std: statistics of all latents, (C, 1, 1) in fp32; std is 1 for a channel that never
            varies.

    Raises:
        CheckpointError: if the folder is incomplete or damaged.
        UsageError: if ``flip`` is asked for and not stored, or labels have other names.
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
    ) -> None:
        self.folder = Path(folder)
        self._workers = workers
        self._plan, self.index = read_index(self.folder)
        plan = self._plan
        if not self.index.get("complete"):
            there = len(list(self.folder.glob("latents-*.safetensors")))
            raise CheckpointError(
                f"{self.folder} is not complete: {there} of {plan.num_shards} shards are there. "
                "Call rpiae encode again with the same arguments to go on"
            )
        if flip and not plan.settings.flip:
            raise UsageError(f"{self.folder} has no mirrored latents: encode with --flip")
        self._flip = flip
        self._moments = plan.settings.posterior == "moments"
        self._sample = sample and self._moments
        self.latent_shape = plan.latent_shape
        if label_names is not None:
            _check_label_names(self.folder, plan.label_names, label_names)
        self._unchecked = plan.format == UNCHECKED_FORMAT
        if self._unchecked:
            logger.warning(
                "%s was written by an earlier rpiae, without digests: damage in it goes unseen",
                self.folder,
            )
        counts = [len(self._metadata(number)["names"]) for number in range(plan.num_shards)]
        self._starts = np.cumsum([0, *counts])
        statistics = self.index["statistics"]
        mean, std = (torch.tensor(statistics[k], dtype=torch.float64) for k in ("mean", "std"))
        self.mean, self.std = (t.view(-1, 1, 1) for t in latent_norm(mean, std))
        self._files: dict[int, Any] = {}
        self._names: dict[int, list[str]] = {}
        self._checked: set[tuple[int, str]] = set()
        self.labels = torch.full((len(self),), -1)
        if plan.labelled:
            self.labels = torch.cat(
                [self._stored(number, "label")[:] for number in range(plan.num_shards)]
            )
            _check_labels(self.labels, plan.label_names, self.folder)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = range(len(self))[index]
        latent = self.drawn(index, flipped=self._flip and bool(torch.rand(()) < 0.5))
        return latent.float(), int(self.labels[index])

    def drawn(
        self, index: int, *, flipped: bool, draws: torch.Generator | None = None
    ) -> Float[Tensor, "c h w"]:
        """A latent in the type that it is stored in; in fp32 where it is a sample of moments.

        Args:
            index: which one.
            flipped: whether it is the mirrored image's.
            draws: where a sample's noise is from; torch's global generator where not given.
        """
        number, row = self._locate(index)
        suffix = "_flipped" if flipped else ""
        kind = "mean" if self._moments else "latent"
        latent: Tensor = self._stored(number, kind + suffix)[row]
        if not self._sample:
            return latent
        logvar = self._stored(number, "logvar" + suffix)[row].float()
        noise = torch.randn(latent.shape, generator=draws)
        sampled: Tensor = latent.float() + (0.5 * logvar).exp() * noise
        return sampled

    @property
    def num_images(self) -> int:
        return len(self)

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """Latents and labels of the steps of a stage; see ``BatchSource``.

        Every epoch shows all latents, in an order of its own.

        Raises:
            DataError: if what is stored is damaged.
        """
        seed, stage = steps.seed, steps.stage
        order = EpochOrder(seed, stage, len(self))

        def request(sample: int) -> LatentRequest:
            flipped = self._flip and uniform(seed, stage, sample, "flip") < 0.5
            return LatentRequest(
                sample, order.image(sample), flipped, (seed, stage, sample, "posterior")
            )

        requests = Requests(request, steps)
        return loaded_batches(_Drawn(self), requests, collate=_collated, workers=self._workers)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def name(self, index: int) -> str:
        """What the source calls an image."""
        number, row = self._locate(index)
        return self._names_of(number)[row]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of every label, by its number; empty where unknown."""
        return self._plan.label_names

    def verify(self) -> None:
        """Read everything and compare it with its digests, so that no later reader has to.

        Raises:
            CheckpointError: if anything is damaged.
        """
        for number in range(self._plan.num_shards):
            for name in self._metadata(number).get("tensors", ()):
                self._stored(number, name)

    def normalised(self, latent: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """Latents with mean 0 and std 1 per channel over this dataset."""
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    def denormalised(self, latent: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """Inverse of ``normalised``."""
        return latent * self.std.to(latent) + self.mean.to(latent)

    def in_order(
        self, size: int, *, limit: int | None = None
    ) -> Iterator[tuple[Float[Tensor, "b c h w"], list[str]]]:
        """Stored latents (means, where there are moments) in order, with the images' names."""
        kind = "mean" if self._moments else "latent"
        left = len(self) if limit is None else limit
        for number in range(self._plan.num_shards):
            if not left:
                return
            names = self._names_of(number)
            stored = self._stored(number, kind)
            count = min(len(names), left)
            for start in range(0, count, size):
                stop = min(start + size, count)
                yield stored[start:stop].float(), names[start:stop]
            left -= count

    def _locate(self, index: int) -> tuple[int, int]:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, index - int(self._starts[number])

    def _names_of(self, number: int) -> list[str]:
        if number not in self._names:
            self._names[number] = self._metadata(number)["names"]
        return self._names[number]

    def _metadata(self, number: int) -> dict[str, Any]:
        """What a shard says of itself."""
        sha256 = self.index["shards"][number].get("sha256", "")
        try:
            return check_shard(self._plan, self.folder, number, sha256=sha256)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {_WRITE_AGAIN}") from None

    def _stored(self, number: int, name: str) -> Any:
        """A tensor of a shard, of which nothing is in memory yet; checked the first time."""
        file = self._file(number)
        if not self._unchecked and (number, name) not in self._checked:
            path = self.folder / self._plan.shard_file(number)
            try:
                check_tensor(path, file, name, self._metadata(number))
            except CheckpointError as error:
                raise CheckpointError(f"{error}. {_WRITE_AGAIN}") from None
            self._checked.add((number, name))
        return file.get_slice(name)

    def _file(self, number: int) -> Any:
        if number not in self._files:
            path = self.folder / self._plan.shard_file(number)
            try:
                self._files[number] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} cannot be read: {error}") from None
        return self._files[number]


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
