"""What the latents of a generator are normalised with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rpiae.core.config.generation import FlowConfig
from rpiae.core.model.contracts import StageSteps
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.feed import Feed
from rpiae.latents.reading import LatentDataset
from rpiae.latents.statistics import ChannelStatistics, latent_norm
from rpiae.runs.generating.learning_from import LearnedFrom

#: Images that statistics are of, where latents are encoded on the way.
MEASURED = 16_384

#: Latents, or images, that are looked at together.
TOGETHER = 256


def statistics(
    found: LearnedFrom, flow: FlowConfig, runtime: Runtime, seed: int
) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of latents as they are trained on, of the shape that the flow says;
    None where they are not normalised. All processes call it, take their share, and get the same."""
    shape = shape_of(found, flow)
    if shape is None:
        return None
    channels, rows, columns = found.facts.shape
    by_channel = flow.normalisation == "channel"
    if by_channel and found.stored is not None:
        return found.stored.mean, found.stored.std
    own = ChannelStatistics(channels if by_channel else channels * rows * columns)
    for latents, variances in _latents(found, runtime, seed):
        if by_channel:
            own.add(latents, variance=variances)
        else:
            spread = None if variances is None else _as_channels(variances)
            own.add(_as_channels(latents), variance=spread)
    sums = ChannelStatistics(len(own.mean))
    for tree in runtime.gather(own.as_tree()):
        sums.merge(ChannelStatistics.from_tree(tree))
    mean, std = latent_norm(sums.mean, sums.std)
    return mean.view(shape), std.view(shape)


def shape_of(found: LearnedFrom, flow: FlowConfig) -> tuple[int, int, int] | None:
    """Shape of the statistics: (C, 1, 1) per channel, (C, h, w) per position, None where there are
    none."""
    if flow.normalisation == "none":
        return None
    channels, rows, columns = found.facts.shape
    return (channels, 1, 1) if flow.normalisation == "channel" else (channels, rows, columns)


def _as_channels(latents: Tensor) -> Tensor:
    """Every position of a latent as a channel of its own."""
    return latents.reshape(len(latents), -1, 1, 1)


def _latents(
    found: LearnedFrom, runtime: Runtime, seed: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """This process's share of what is measured, with variances where latents are drawn around it."""
    if found.stored is not None:
        yield from _stored(found.stored, runtime)
    else:
        yield from _encoded(found, runtime, seed)


def _stored(latents: LatentDataset, runtime: Runtime) -> Iterator[tuple[Tensor, Tensor | None]]:
    own = range(runtime.rank, len(latents), runtime.num_processes)
    for start in range(0, len(own), TOGETHER):
        found = [pair for index in own[start : start + TOGETHER] for pair in latents.moments(index)]
        variances = [variance for _, variance in found if variance is not None]
        yield (
            torch.stack([mean for mean, _ in found]),
            torch.stack(variances) if variances else None,
        )


@torch.no_grad()
def _encoded(
    found: LearnedFrom, runtime: Runtime, seed: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    assert found.tokenizer is not None
    tokenizer = found.tokenizer.to(runtime.device)
    number = min(MEASURED, found.source.num_images)
    size = min(TOGETHER, number)
    steps = StageSteps(
        seed=seed, stage="statistics", batch_size=size, start=0, steps=-(-number // size),
        rank=runtime.rank, num_processes=runtime.num_processes,
    )  # fmt: skip
    for batch in Feed(found.source.batches(steps), runtime.device):
        yield tokenizer.encode(batch.inputs).mode().cpu(), None
