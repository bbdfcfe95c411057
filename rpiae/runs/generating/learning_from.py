"""What a generator learns from: latents of a folder, or images that a tokenizer encodes on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor

from rpiae.core.config.generation import FlowConfig, GeneratorRunConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import BatchSource, StageSteps
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.latent_generator import LatentFacts
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.names import shown
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.feed import Feed
from rpiae.data.building import built_dataset
from rpiae.data.image_dataset import CropDataset
from rpiae.data.listed import Listed
from rpiae.latents.encoding import tokenizer_digest
from rpiae.latents.reading import LatentDataset
from rpiae.latents.statistics import ChannelStatistics, latent_norm

#: Images that statistics are of, where latents are encoded on the way.
MEASURED = 16_384

#: Latents, or images, that are looked at together.
TOGETHER = 256


@frozen(kw_only=True)
class LearnedFrom:
    """The source of a generator's training.

    Attributes:
        facts: of the latents.
        source: their batches, or those of images.
        fingerprint: what tells stored latents from others; empty for images.
        stored: the stored latents; None where images are encoded.
        tokenizer: encodes images; None where latents are stored.
    """

    facts: LatentFacts
    source: BatchSource
    fingerprint: str = ""
    stored: LatentDataset | None = None
    tokenizer: RPiAE | None = None


def learned_from(config: GeneratorRunConfig) -> LearnedFrom:
    """What a run learns from.

    Raises:
        UsageError: if neither or both of latents and data are named, or they are no images'.
        CheckpointError: if latents or tokenizer cannot be read.
        DataError: if data cannot be used.
    """
    if bool(config.latents) == (config.data is not None):
        what = "both latents and data" if config.latents else "neither latents nor data"
        raise UsageError(
            f"{what} are named: train on a folder that rpiae encode wrote (rpiae diffuse FOLDER), or on "
            "images that are encoded on the way (--data folder:PATH --tokenizer RUN)"
        )
    return _of_latents(config) if config.latents else _of_images(config)


def _of_latents(config: GeneratorRunConfig) -> LearnedFrom:
    latents = LatentDataset(config.latents, flip=config.flip, held_out=config.held_out)
    if len(latents.latent_shape) != 3:
        raise UsageError(
            f"{config.latents} holds latents of clips or videos, and generators take those of images so "
            "far: encode images, or single frames"
        )
    path, sha256 = latents.tokenizer
    channels, rows, columns = latents.latent_shape
    return LearnedFrom(
        facts=LatentFacts(
            shape=(channels, rows, columns),
            tokenizer=config.tokenizer or path,
            tokenizer_sha256=sha256,
            num_classes=_num_classes(latents.labels, latents.label_names),
            label_names=latents.label_names,
        ),
        source=latents,
        fingerprint=latents.fingerprint,
        stored=latents,
    )


def _of_images(config: GeneratorRunConfig) -> LearnedFrom:
    assert config.data is not None
    if not config.tokenizer:
        raise UsageError(
            "data are encoded on the way by a tokenizer: name one with --tokenizer RUN"
        )
    if config.data.clips:
        raise UsageError(
            f"data {config.data.label!r} are clips, and generators take latents of images so far"
        )
    tokenizer = load_tokenizer(config.tokenizer).requires_grad_(False)
    data = built_dataset(config.data)
    names: tuple[str, ...] = ()
    num_classes = 0
    if isinstance(data, CropDataset) and isinstance(data, Listed):
        listed = data.every_image()
        names, num_classes = listed.label_names, listed.num_classes()
        data = data.with_labels()
    channels, rows, columns = tokenizer.latent_shape(data.image_size, data.image_size)
    return LearnedFrom(
        facts=LatentFacts(
            shape=(channels, rows, columns),
            tokenizer=config.tokenizer,
            tokenizer_sha256=tokenizer_digest(tokenizer),
            num_classes=num_classes,
            label_names=names,
        ),
        source=data,
        tokenizer=tokenizer,
    )


def _num_classes(labels: Tensor, names: tuple[str, ...]) -> int:
    """Classes: as many as are named, else up to the highest label; 0 where nothing is labelled."""
    if int(labels.max()) < 0:
        return 0
    return len(names) or int(labels.max()) + 1


def statistics(
    found: LearnedFrom, flow: FlowConfig, runtime: Runtime, seed: int
) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation that latents are normalised with, of the shape that the flow says;
    None where they are not."""
    if flow.normalisation == "none":
        return None
    channels, rows, columns = found.facts.shape
    by_channel = flow.normalisation == "channel"
    if by_channel and found.stored is not None:
        return found.stored.mean, found.stored.std
    sums = ChannelStatistics(channels if by_channel else channels * rows * columns)
    for latents in _latents(found, runtime, seed):
        sums.add(latents if by_channel else latents.reshape(len(latents), -1, 1, 1))
    sides = (1, 1) if by_channel else (rows, columns)
    mean, std = latent_norm(sums.mean, sums.std)
    return mean.view(channels, *sides), std.view(channels, *sides)


@torch.no_grad()
def _latents(found: LearnedFrom, runtime: Runtime, seed: int) -> Iterator[Tensor]:
    """All stored latents, or those of some training images, in batches."""
    if found.stored is not None:
        for latents, _ in found.stored.in_order(TOGETHER):
            yield latents
        return
    assert found.tokenizer is not None
    tokenizer = found.tokenizer.to(runtime.device)
    number = min(MEASURED, found.source.num_images)
    steps = StageSteps(
        seed=seed, stage="statistics", batch_size=min(TOGETHER, number), start=0,
        steps=-(-number // TOGETHER),
    )  # fmt: skip
    for batch in Feed(found.source.batches(steps), runtime.device):
        yield tokenizer.encode(batch.inputs).mode().cpu()


def moved(config: GeneratorRunConfig, found: LearnedFrom) -> str:
    """How what a run learns from differs from what its config says, in words; nothing where it does
    not."""
    if config.latents_sha256 and found.fingerprint != config.latents_sha256:
        return (
            f"{shown(config.latents)} holds other latents than the run was trained on: name the folder "
            "that these were moved to, or start another run from its weights with --init"
        )
    if config.tokenizer_sha256 and found.facts.tokenizer_sha256 != config.tokenizer_sha256:
        return (
            f"{shown(str(Path(found.facts.tokenizer)))} holds another tokenizer than the run was "
            "trained with: name the folder that it was moved to with --tokenizer"
        )
    return ""
