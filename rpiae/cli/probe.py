"""``rpiae probe``."""

from __future__ import annotations

import argparse
import json

from rich.table import Table

from rpiae.cli.measuring import images_of, named_datasets, show
from rpiae.cli.options import measuring_options, nonempty, positive
from rpiae.cli.progress import Bar
from rpiae.cli.screen import stderr, stdout
from rpiae.core.runtime.names import printable


def options(parser: argparse.ArgumentParser) -> None:
    """An encoder, and what the probe learns from and is measured on."""
    parser.add_argument(
        "encoder",
        help="an encoder's name, a run's or tokenizer's folder, or user/name[@revision] of the hub",
    )
    parser.add_argument(
        "--train", required=True, metavar="DATA", type=nonempty, help="learned from"
    )
    parser.add_argument("--test", required=True, metavar="DATA", type=nonempty, help="measured on")
    parser.add_argument("--k", type=positive, default=20, metavar="N", help="neighbours that vote")
    parser.add_argument(
        "--rotation", action="store_true", help="also tell how images are turned, a label-free task"
    )
    measuring_options(parser, fields="train.column=img or test.column=img")


def run(arguments: argparse.Namespace) -> int:
    """Probe an encoder and print what it knows."""
    from rpiae.core.runtime.processes import Runtime
    from rpiae.evaluation.encoders import probe_encoder
    from rpiae.evaluation.records import printable_tree

    data = named_datasets(arguments.overrides, {"train": arguments.train, "test": arguments.test})
    runtime = Runtime(device=arguments.device, precision=arguments.precision or "fp32")
    with Bar("probe") as bar:
        found = probe_encoder(
            arguments.encoder, training=data["train"], testing=data["test"], runtime=runtime,
            num_training=arguments.train_images, num_testing=arguments.images, k=arguments.k,
            rotation=arguments.rotation, image_size=arguments.image_size,
            resize=arguments.resize, crop=arguments.crop or "adm",
            batch_size=arguments.batch_size, progress=lambda event: show(bar, event),
        )  # fmt: skip
    if arguments.json:
        print(json.dumps(printable_tree(found.as_tree()), indent=2))
        return 0
    table = Table(box=None, pad_edge=False)
    for heading in ("probe", "accuracy", "C", "classes"):
        table.add_column(heading, justify="left" if heading == "probe" else "right")
    for name, result in found.linear.items():
        table.add_row(
            f"linear, {name}", f"{result.accuracy:.2%}", f"{result.strength:g}",
            str(result.num_classes),
        )  # fmt: skip
        if not result.converged:
            stderr.print(f"warning: the linear probe of {name} had not converged")
    if found.knn is not None:
        table.add_row(f"{found.k} nearest neighbours", f"{found.knn:.2%}", "", "")
    for text in found.warnings:
        stderr.print(f"warning: {printable(text)}", soft_wrap=True)
    for text in found.skipped:
        stderr.print(f"skipped: {printable(text)}", soft_wrap=True)
    stdout.print(table)
    line = (
        f"{found.encoder}, mean of {found.width} channels over tokens, in {found.precision}: "
        f"learned from {images_of(found.training)}, measured on {images_of(found.testing)}"
    )
    stdout.print(printable(line), soft_wrap=True)
    return 0
