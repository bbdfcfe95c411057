"""``rpiae encode``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table

from rpiae.cli.launch import launch, launched, speaks, this_command
from rpiae.cli.options import dataset_options, nonempty, positive, processes_option
from rpiae.cli.progress import Bar
from rpiae.cli.screen import stderr, stdout
from rpiae.core.errors import UsageError

if TYPE_CHECKING:
    from rpiae.core.model.tokenizer import RPiAE
    from rpiae.data.listed import EveryImage
    from rpiae.latents.layout import Plan
    from rpiae.latents.video.layout import VideoPlan
    from rpiae.latents.video.source import WholeVideos

#: Images whose reason for being left out is printed; all are in the index.
MENTIONED = 10

#: Images or clips per file, where nobody says.
SHARD_SIZE = 4096


def options(parser: argparse.ArgumentParser) -> None:
    """A dataset through a tokenizer, and how its latents are stored."""
    dataset_options(parser)
    video_options(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", type=nonempty)
    parser.add_argument("--label-column", metavar="NAME", type=nonempty, help="of a Parquet file")
    parser.add_argument("--posterior", choices=["mode", "sample", "moments"], default="mode")
    parser.add_argument(
        "--moments", action="store_const", const="moments", dest="posterior",
        help="store mean and logvar: --posterior moments",
    )  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="store mirrored images' latents too")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument(
        "--shard-size", type=positive, metavar="N",
        help=f"images or clips per file (default: {SHARD_SIZE}); whole videos have a file each",
    )  # fmt: skip
    processes_option(parser)


def video_options(parser: argparse.ArgumentParser) -> None:
    """Whether videos are taken whole, and how."""
    parser.add_argument(
        "--clips", action="store_true",
        help="videos: their clips of one length, as in training, instead of whole videos",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=positive, metavar="N",
        help="whole videos: frames go through in overlapping tiles of N pixels a side",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Encode a dataset into a folder of shards."""
    try:
        return _encode(arguments)
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        if speaks():
            _say_how_to_go_on(arguments)
        return 130


def dataset(
    arguments: argparse.Namespace, model: RPiAE
) -> tuple[EveryImage | WholeVideos, dict[str, Any]]:
    """The images, clips or whole videos that DATA and the options about it name, and the dataset's
    fields.

    Raises:
        UsageError: if an option does not go with them.
    """
    from rpiae.data.listed import every_image
    from rpiae.latents.video.source import is_of_videos, whole_videos

    assert model.config is not None
    videos = is_of_videos(arguments.data)
    if arguments.clips and not videos:
        raise UsageError(f"{arguments.data} has images: --clips is for videos, such as videos:PATH")
    if arguments.tile and (arguments.clips or not videos):
        raise UsageError("--tile is for whole videos: leave it out")
    values = {
        "image_size": arguments.image_size, "resize": arguments.resize,
        "workers": arguments.workers, "label_column": getattr(arguments, "label_column", None),
    }  # fmt: skip
    options = [f"data.{name}={value}" for name, value in values.items() if value is not None]
    overrides = (*arguments.overrides, *options)
    if videos and not arguments.clips:
        if arguments.crop:
            raise UsageError("whole videos are not cropped: leave --crop out, or add --clips")
        return whole_videos(arguments.data, overrides=overrides)
    return every_image(
        arguments.data, model.config,
        image_size=model.trained_size or model.config.encoder_facts.image_size,
        overrides=overrides, crop=arguments.crop or "adm",
    )  # fmt: skip


def _encode(arguments: argparse.Namespace) -> int:
    from rpiae.core.model.folders import load_tokenizer, tokenizer_folder
    from rpiae.core.runtime.processes import Runtime
    from rpiae.latents import writing
    from rpiae.latents.layout import Settings
    from rpiae.latents.video.source import WholeVideos
    from rpiae.latents.video.writing import encode_videos

    folder = tokenizer_folder(arguments.run)
    model = load_tokenizer(folder)
    found, data = dataset(arguments, model)
    settings = Settings(
        posterior=arguments.posterior, flip=arguments.flip, dtype=arguments.dtype,
        precision=arguments.precision, seed=arguments.seed,
        shard_size=arguments.shard_size or SHARD_SIZE,
    )  # fmt: skip
    if arguments.processes > 1 and not launched():
        _check_first(arguments, model, found, settings=settings, data=data, tokenizer=folder)
        return launch(arguments.processes, go_on=f"the same command: {this_command()}")
    runtime = Runtime(device=arguments.device, precision=arguments.precision)
    to: dict[str, Any] = {
        "data": data, "tokenizer": folder, "settings": settings,
        "runtime": runtime, "batch_size": arguments.batch_size,
    }  # fmt: skip
    if isinstance(found, WholeVideos):
        happened: Iterable[Any] = encode_videos(
            model, found, arguments.out, tile=arguments.tile, **to
        )
        if arguments.shard_size and speaks():
            stderr.print("note: whole videos have a file each: --shard-size has no effect")
    else:
        happened = writing.encode_dataset(model, found, arguments.out, **to)
    index = told(happened)
    runtime.close()
    if index is not None:
        _summarise(Path(arguments.out), index)
    return 0


def _check_first(
    arguments: argparse.Namespace,
    model: RPiAE,
    found: EveryImage | WholeVideos,
    **to: Any,
) -> None:
    """Say once whatever is wrong, before there are several processes to say it."""
    from rpiae.core.runtime.devices import choose_device
    from rpiae.latents.folders import check_folder
    from rpiae.latents.video.encoding import check_sizes
    from rpiae.latents.video.source import WholeVideos
    from rpiae.latents.video.writing import make_video_plan
    from rpiae.latents.writing import make_plan

    choose_device(arguments.device)
    plan: Plan | VideoPlan
    if isinstance(found, WholeVideos):
        plan = make_video_plan(model, found, tile=arguments.tile, **to)
        check_sizes(model, found, tile=arguments.tile)
    else:
        plan = make_plan(model, found, **to)
    check_folder(Path(arguments.out), plan)


def told(happened: Iterable[Any]) -> dict[str, Any] | None:
    """Say what happens; the index in the end, in the process that speaks."""
    from rpiae.latents import writing
    from rpiae.latents.pace import Progressed
    from rpiae.latents.video.writing import VideosProgressed, VideosStarted

    mentioned, index, what = 0, None, "images"
    with Bar("encode") as bar:
        for event in happened:
            if isinstance(event, writing.Skipped):
                mentioned += 1
                if mentioned <= MENTIONED:
                    bar.say(f"skipped: {event.reason}")
                if mentioned == MENTIONED:
                    bar.say("further ones are listed in index.json alone")
            elif isinstance(event, writing.Notice):
                bar.say(event.text)
            elif not speaks():
                continue
            elif isinstance(event, writing.Started):
                what = event.plan.contents
                bar.say(_described(event.plan, event.kept))
            elif isinstance(event, VideosStarted):
                bar.say(_described_videos(event.plan, event.kept))
            elif isinstance(event, Progressed):
                bar.images(event.done, event.total, event.images_per_second, what=what)
            elif isinstance(event, VideosProgressed):
                bar.frames(
                    event.done, event.total, event.frames_per_second, event.remaining_seconds
                )
            elif isinstance(event, writing.Finished):
                index = event.index
    return index


def statistics_table(mean: list[float], std: list[float]) -> Table:
    """Mean and std per channel; the middle of many channels is left out."""
    table = Table(box=None, pad_edge=False)
    for heading in ("channel", "mean", "std"):
        table.add_column(heading, justify="right")
    many = len(mean) > 2 * MENTIONED
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        if many and MENTIONED <= channel < len(mean) - MENTIONED:
            if channel == MENTIONED:
                table.add_row("…", "", "")
            continue
        table.add_row(str(channel), f"{m:.5g}", f"{s:.5g}")
    return table


def _described(plan: Plan, kept: int) -> str:
    width = {"fp32": 4, "bf16": 2, "fp16": 2}[plan.settings.dtype]
    size = plan.num_images * math.prod(plan.latent_shape) * width * len(plan.settings.tensors)
    labels = "with labels" if plan.labelled else "without labels"
    there = f", {kept} of them complete already" if kept else ""
    return (
        f"{plan.num_images} {plan.contents} of {plan.location} ({plan.crop}), {labels} → "
        f"{', '.join(plan.settings.tensors)} {'×'.join(map(str, plan.latent_shape))} in "
        f"{plan.settings.dtype}, {decimal(size)}, shards: {plan.num_files}{there}"
    )


def _described_videos(plan: VideoPlan, kept: int) -> str:
    there = f", {kept} of them complete already" if kept else ""
    tiles = f", in tiles of {plan.tile}" if plan.tile else ""
    groups = plan.temporal_downsampling
    steps = f"a step per {groups} frames" if groups > 1 else "a step per frame"
    return (
        f"{plan.num_videos} whole videos of {plan.location} ({plan.scale}{tiles}) → "
        f"{', '.join(plan.settings.tensors)} of {plan.channels} channels, {steps}, in "
        f"{plan.settings.dtype}, files: {plan.num_files}{there}"
    )


def _summarise(folder: Path, index: dict[str, Any]) -> None:
    statistics = index["statistics"]
    stdout.print(statistics_table(statistics["mean"], statistics["std"]))
    skipped = f", {len(index['skipped'])} skipped" if index["skipped"] else ""
    if "videos" in index:
        frames = sum(video["frames"] for video in index["videos"])
        text = f"latents of {index['count']} videos, {frames} frames"
    else:
        contents = "clips" if index.get("frames") else "images"
        text = f"latents of {index['count']} {contents}, shards: {len(index['shards'])}"
    stdout.print(f"{folder}: {text}{skipped}", soft_wrap=True)


def _say_how_to_go_on(arguments: argparse.Namespace) -> None:
    from rpiae.latents.video.source import is_of_videos

    there = sorted(Path(arguments.out).glob("*-of-*.safetensors"))
    total = there[0].stem.rpartition("-")[2].lstrip("0") if there else ""
    complete = f"{len(there)} of {total}" if there else "no"
    kind = "videos" if is_of_videos(arguments.data) and not arguments.clips else "shards"
    stderr.print(
        f"interrupted: {complete} {kind} are complete and stay. Go on with:\n  {this_command()}",
        soft_wrap=True,
    )
