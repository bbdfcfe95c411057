"""``rpiae import``."""

from __future__ import annotations

import argparse
import json
import math

from rpiae.cli.options import nonempty, positive
from rpiae.cli.screen import count, stdout


def options(parser: argparse.ArgumentParser) -> None:
    """A file of the reference, and what it belongs to."""
    parser.add_argument(
        "file", help="a generator of the reference: a checkpoint such as ep-0000800.pt"
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="FOLDER", type=nonempty,
        help="the tokenizer, or its run, whose latents it was trained on",
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", type=nonempty, help="the generator's folder"
    )
    parser.add_argument(
        "--weights-key", default="", metavar="KEY",
        help="take other weights than the averaged ones, such as model",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
    open_ones = parser.add_argument_group("what the shapes of a file may leave open")
    open_ones.add_argument("--heads", type=positive, metavar="N", help="attention heads")
    open_ones.add_argument(
        "--head-depth", type=positive, metavar="N", help="blocks of the wide head"
    )
    open_ones.add_argument(
        "--classes", type=positive, metavar="N",
        help="classes, where the table of labels has no row for none of them",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Read the file, write the folder, and say what it is."""
    from rpiae.core.model.generator_folders import save_generator
    from rpiae.interop.importing import import_generator
    from rpiae.interop.lightningdit import Untold

    told = Untold(
        num_heads=arguments.heads, head_depth=arguments.head_depth, num_classes=arguments.classes
    )
    model = import_generator(
        arguments.file, tokenizer=arguments.tokenizer, weights_key=arguments.weights_key, told=told
    )
    folder = save_generator(model, arguments.out)
    parameters = sum(math.prod(p.shape) for p in model.parameters())
    facts = model.facts
    if arguments.json:
        report = {
            "generator": str(folder), "parameters": parameters, "latent": list(facts.shape),
            "num_classes": facts.num_classes, "tokenizer": facts.tokenizer,
            "tokenizer_sha256": facts.tokenizer_sha256, "shift": model.shift,
        }  # fmt: skip
        print(json.dumps(report, indent=2))
        return 0
    shape = "×".join(map(str, facts.shape))
    stdout.print(
        f"wrote {folder}: {count(parameters)} parameters, latents {shape} of the tokenizer in "
        f"{facts.tokenizer}, {facts.num_classes} classes, shift of time {model.shift:.3g}",
        soft_wrap=True,
    )
    return 0
