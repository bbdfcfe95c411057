"""``rpiae export``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rpiae.cli.options import nonempty, positive
from rpiae.cli.screen import stdout


def options(parser: argparse.ArgumentParser) -> None:
    """A tokenizer or latents, a format, and what is left open about it."""
    parser.add_argument(
        "source", help="a run's or tokenizer's folder; for webdataset and datasets, one of latents"
    )
    parser.add_argument(
        "--to", required=True, metavar="FORMAT",
        help="reference, diffusers, torch-export or onnx; of latents, webdataset or datasets",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", type=nonempty, help="a new folder"
    )
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument(
        "--size", nargs=2, type=positive, metavar=("H", "W"),
        help="of the images, in pixels (default: of the training crops)",
    )  # fmt: skip
    sides.add_argument(
        "--dynamic", action="store_true",
        help="torch-export, onnx: sides vary, in multiples of a latent position's pixels",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16", "fp16"],
        help="torch-export, onnx: what is computed in (default: fp32)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder, and say what is in it."""
    from rpiae.interop.exporting import export_model

    given: dict[str, Any] = {
        "size": tuple(arguments.size) if arguments.size else None,
        "dynamic": arguments.dynamic or None, "dtype": arguments.dtype,
    }  # fmt: skip
    exported = export_model(
        arguments.source, to=arguments.to, out=arguments.out,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    if arguments.json:
        report = {"folder": str(exported.folder), "to": arguments.to, "told": exported.told}
        print(json.dumps(report, indent=2))
        return 0
    stdout.print(f"wrote {exported.folder}", soft_wrap=True)
    for sentence in exported.told:
        stdout.print(sentence, soft_wrap=True)
    return 0
