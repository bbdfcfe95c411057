"""``rpiae encode``."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal
from rich.table import Table

from rpiae.cli.launch import launch, launched, speaks
from rpiae.cli.options import dataset_options, nonempty, positive, processes_option
from rpiae.cli.progress import Bar
from rpiae.cli.screen import stderr, stdout

if TYPE_CHECKING:
    from rpiae.core.model.tokenizer import RPiAE
    from rpiae.data.listed import EveryImage
    from rpiae.latents.layout import Plan

#: Images whose reason for being left out is printed; all are in the index.
MENTIONED = 10


def options(parser: argparse.ArgumentParser) -> None:
    """A dataset through a tokenizer, and how its latents are stored."""
    dataset_options(parser)
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
        "--shard-size", type=positive, default=4096, metavar="N", help="images per file"
    )
    processes_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Encode a dataset into a folder of shards."""
    try:
        return _encode(arguments)
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        if speaks():
            _say_how_to_go_on(Path(arguments.out))
        return 130


def dataset(arguments: argparse.Namespace, model: RPiAE) -> tuple[EveryImage, dict[str, Any]]:
    """The images that DATA and the options about it name, and the dataset's fields."""
    from rpiae.data.listed import every_image

    assert model.config is not None
    values = {
        "image_size": arguments.image_size, "resize": arguments.resize,
        "workers": arguments.workers, "label_column": getattr(arguments, "label_column", None),
    }  # fmt: skip
    options = [f"data.{name}={value}" for name, value in values.items() if value is not None]
    return every_image(
        arguments.data, model.config,
        image_size=model.trained_size or model.config.encoder_facts.image_size,
        overrides=(*arguments.overrides, *options), crop=arguments.crop or "adm",
    )  # fmt: skip


def _encode(arguments: argparse.Namespace) -> int:
    from rpiae.core.model.folders import load_tokenizer, tokenizer_folder
    from rpiae.core.runtime.devices import choose_device
    from rpiae.core.runtime.processes import Runtime
    from rpiae.latents import writing
    from rpiae.latents.folders import check_folder
    from rpiae.latents.layout import Settings

    model = load_tokenizer(arguments.run)
    images, data = dataset(arguments, model)
    settings = Settings(
        posterior=arguments.posterior, flip=arguments.flip, dtype=arguments.dtype,
        precision=arguments.precision, seed=arguments.seed, shard_size=arguments.shard_size,
    )  # fmt: skip
    tokenizer = tokenizer_folder(arguments.run)
    if arguments.processes > 1 and not launched():
        # Whatever is wrong is said once, before there are several to say it.
        choose_device(arguments.device)
        plan = writing.make_plan(model, images, settings=settings, data=data, tokenizer=tokenizer)
        check_folder(Path(arguments.out), plan)
        return launch(arguments.processes, go_on=f"the same command: {_command()}")
    runtime = Runtime(device=arguments.device, precision=arguments.precision)
    happened = writing.encode_dataset(
        model, images, arguments.out, data=data, tokenizer=tokenizer, settings=settings,
        runtime=runtime, batch_size=arguments.batch_size,
    )  # fmt: skip
    mentioned = 0
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
                bar.say(_described(event.plan, event.kept))
            elif isinstance(event, writing.Progressed):
                bar.images(event.done, event.total, event.images_per_second)
            elif isinstance(event, writing.Finished):
                index = event.index
    runtime.close()
    if speaks():
        _summarise(Path(arguments.out), index)
    return 0


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
    c, h, w = plan.latent_shape
    size = plan.num_images * c * h * w * width * len(plan.settings.tensors)
    labels = "with labels" if plan.labelled else "without labels"
    there = f", {kept} of them complete already" if kept else ""
    return (
        f"{plan.num_images} images of {plan.location} ({plan.crop}), {labels} → "
        f"{', '.join(plan.settings.tensors)} {c}×{h}×{w} in {plan.settings.dtype}, "
        f"{decimal(size)}, shards: {plan.num_files}{there}"
    )


def _summarise(folder: Path, index: dict[str, Any]) -> None:
    statistics = index["statistics"]
    stdout.print(statistics_table(statistics["mean"], statistics["std"]))
    skipped = f", {len(index['skipped'])} skipped" if index["skipped"] else ""
    stdout.print(
        f"{folder}: latents of {index['count']} images, shards: {len(index['shards'])}{skipped}",
        soft_wrap=True,
    )


def _say_how_to_go_on(folder: Path) -> None:
    there = sorted(folder.glob("latents-*.safetensors"))
    total = there[0].stem.rpartition("-")[2].lstrip("0") if there else ""
    complete = f"{len(there)} of {total}" if there else "no"
    stderr.print(
        f"interrupted: {complete} shards are complete and stay. Go on with:\n  {_command()}",
        soft_wrap=True,
    )


def _command() -> str:
    return shlex.join(["rpiae", *sys.argv[1:]])
