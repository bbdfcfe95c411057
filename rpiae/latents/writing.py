"""Latents of a dataset's images or clips into a folder: shard by shard, in several processes, going on
where it stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from rpiae.core.config.identity import identity
from rpiae.core.config.tree import Tree
from rpiae.core.errors import UsageError
from rpiae.core.model.places import lasting_name
from rpiae.core.model.resolve import part_config
from rpiae.core.model.temporal import temporal_downsampling
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.feed import Feed
from rpiae.data.listed import EveryImage
from rpiae.data.loading import Reports
from rpiae.data.video.listed import EveryClip
from rpiae.latents.encoding import (
    batch_size_for,
    check_finite,
    check_posterior,
    encode_batch,
    positions_in_batches,
    tokenizer_digest,
)
from rpiae.latents.folders import prepare
from rpiae.latents.layout import DTYPES, FORMAT, TIME_FORMAT, Plan, Settings
from rpiae.latents.pace import GLANCE, Pace, Progressed
from rpiae.latents.shards import finished_index, problem_of, write_shard


@frozen(kw_only=True)
class Started:
    """What is about to be written.

    Attributes:
        plan: all of it.
        kept: shards of this process that are complete already.
        process: which of the processes this is.
        num_processes: how many there are.
    """

    plan: Plan
    kept: int
    process: int
    num_processes: int


@frozen(kw_only=True)
class Skipped:
    """An image that cannot be used."""

    reason: str


@frozen(kw_only=True)
class Notice:
    """Something to know that changes nothing."""

    text: str


@frozen(kw_only=True)
class Finished:
    """All shards are written.

    Attributes:
        folder: where.
        index: what its index says.
    """

    folder: Path
    index: dict[str, Any]


Event: TypeAlias = Started | Progressed | Skipped | Notice | Finished


def make_plan(
    model: RPiAE, images: EveryImage, *, settings: Settings, data: Tree, tokenizer: Path
) -> Plan:
    """What a folder of a dataset's latents is to hold.

    Args:
        model: what encodes.
        images: the dataset.
        settings: what decides the values.
        data: the dataset's fields.
        tokenizer: the folder that ``model`` is from.

    Raises:
        UsageError: if the settings do not fit.
    """
    if settings.shard_size < 1:
        raise UsageError(f"--shard-size must be at least 1, got {settings.shard_size}")
    check_posterior(model, settings.posterior)
    frames = images.frames if isinstance(images, EveryClip) else 0
    return Plan(
        settings=settings,
        tokenizer={"path": lasting_name(tokenizer), "sha256": tokenizer_digest(model)},
        data=data,
        location=images.location,
        num_images=len(images),
        image_size=images.image_size,
        crop=images.rule,
        latent_shape=_latent_shape(model, images.image_size, frames),
        frames=frames,
        format=TIME_FORMAT if frames else FORMAT,
        labelled=images.labelled,
        label_names=tuple(map(printable, images.label_names)),
        source=identity(part_config("datasets", data), times=False),
    )


def _latent_shape(model: RPiAE, image_size: int, frames: int) -> tuple[int, ...]:
    """(C, h, w) of an image's latent, (C, t, h, w) of one of a clip of so many frames."""
    channels, *sides = model.latent_shape(image_size, image_size)
    if not frames:
        return channels, *sides
    steps = model.geometry(image_size, image_size, frames).grid[0]
    return channels, 1 + (steps - 1) // temporal_downsampling(model.bridge), *sides


def encode_dataset(
    model: RPiAE,
    images: EveryImage,
    folder: str | os.PathLike[str],
    *,
    data: Tree,
    tokenizer: Path,
    settings: Settings,
    runtime: Runtime,
    batch_size: int | None = None,
) -> Iterator[Event]:
    """Encode every image of a dataset once, in its order, into a folder of shards.

    Complete shards that are there already are kept. Under a launcher of several processes each of
    them calls this; shard k is written by process k modulo their number, and the first process
    waits for the others' shards and writes the index.

    Args:
        model: what encodes.
        images: the dataset.
        folder: where to.
        data: the dataset's fields, for the index.
        tokenizer: the folder that ``model`` is from, for the index.
        settings: what decides the values.
        runtime: device, precision and processes.
        batch_size: images per forward pass; changes the latents by no more than rounding.

    Yields:
        ``Started``, then what happens, and in the first process ``Finished``.

    Raises:
        UsageError: if the folder holds anything else, or another process is at work in it.
        DataError: if no image can be used.
        RunError: if latents are not finite, or cannot be written.
    """
    target = Path(folder)
    with contextlib.ExitStack() as held:

        def begin() -> Tree:
            plan = make_plan(model, images, settings=settings, data=data, tokenizer=tokenizer)
            prepare(target, plan, held)
            return plan.as_tree()

        plan = Plan.from_tree(runtime.on_main(begin))
        own = range(runtime.rank, plan.num_files, runtime.num_processes)
        problems = {number: problem_of(plan, target, number, images) for number in own}
        missing = [number for number, problem in problems.items() if problem]
        yield from _notices(plan, target, problems, images, runtime)
        yield Started(
            plan=plan, kept=len(own) - len(missing), process=runtime.rank,
            num_processes=runtime.num_processes,
        )  # fmt: skip
        yield from _too_few_shards(plan, runtime)
        others = not_in(own, plan.num_files) if runtime.is_main else []
        pace = Pace(plan, target, others=others, kept=[n for n in own if n not in missing])
        if missing:
            size = batch_size or batch_size_for(model, images.image_size, plan.frames or 1)
            yield from _encoded(model, images, target, plan, missing, size, runtime, pace)
        if runtime.is_main:
            yield from _finished(target, plan, images, pace)


def _notices(
    plan: Plan, folder: Path, problems: Mapping[int, str], images: EveryImage, runtime: Runtime
) -> Iterator[Notice]:
    """What is to be said first: which shards are there and written anew, and what the dataset says."""
    for number, problem in problems.items():
        if problem and (folder / plan.file(number)).exists():
            yield Notice(text=f"{problem}; it is written anew")
    for text in images.notices if runtime.is_main else ():
        yield Notice(text=text)


def _finished(folder: Path, plan: Plan, images: EveryImage, pace: Pace) -> Iterator[Event]:
    """Wait for what other processes write, and write the index."""
    while not pace.others_are_done():
        time.sleep(GLANCE)
        yield pace.progressed()
    yield Finished(folder=folder, index=finished_index(folder, plan, images))


def _too_few_shards(plan: Plan, runtime: Runtime) -> Iterator[Notice]:
    if runtime.is_main and plan.num_files < runtime.num_processes:
        yield Notice(
            text=f"{runtime.num_processes} processes have {plan.num_files} shards to share: a "
            "smaller --shard-size makes more"
        )


def not_in(own: range, count: int) -> list[int]:
    """The numbers below ``count`` that are not in a range."""
    return [number for number in range(count) if number not in own]


def _encoded(
    model: RPiAE,
    images: EveryImage,
    folder: Path,
    plan: Plan,
    missing: list[int],
    size: int,
    runtime: Runtime,
    pace: Pace,
) -> Iterator[Event]:
    batches = [b for number in missing for b in positions_in_batches(plan.shard(number), size)]
    dtype = DTYPES[plan.settings.dtype]
    stored: dict[str, list[Tensor]] = defaultdict(list)
    skipped: dict[int, str] = {}
    reports = Reports()
    model = model.to(runtime.device)
    pace.start()
    for batch, positions in zip(
        Feed(images.batches(batches), runtime.device), batches, strict=True
    ):
        if batch.samples:
            latents = encode_batch(model, batch.inputs, batch.samples, plan.settings, runtime)
            latents = {name: tensor.to(dtype) for name, tensor in latents.items()}
            check_finite(latents, [images.name(position) for position in batch.samples])
            latents["position"] = torch.tensor(batch.samples)
            if plan.labelled:
                assert batch.labels is not None
                latents["label"] = batch.labels.cpu()
            for name, tensor in latents.items():
                stored[name].append(tensor)
        left_out = [position for position in positions if position not in batch.samples]
        skipped |= zip(left_out, batch.skipped, strict=True)
        pace.done += len(positions)
        for reason in reports.fresh(batch.skipped):
            yield Skipped(reason=reason)
        number = positions[0] // plan.settings.shard_size
        if positions[-1] == plan.shard(number)[-1]:
            tensors = {name: torch.cat(stored[name]) for name in stored}
            write_shard(folder, plan, number, images, tensors, skipped)
            stored.clear()
            skipped.clear()
        yield pace.progressed()
