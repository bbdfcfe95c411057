"""Options that several verbs have: each is declared once, and read once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from rpiae.core.config.tree import Tree, read_toml
from rpiae.core.runtime.names import shown
from rpiae.data.configs import LEAST_RATE, MOST_RATE

if TYPE_CHECKING:
    from rpiae.core.model.resolve import ResolvedRun

#: What ``run_options`` declares of a run's own fields, besides ``--set``.
RUN_FIELDS = (
    "encoder", "bridge", "decoder", "recipe", "data", "seed", "device", "precision", "compile",
)  # fmt: skip


def nonempty(word: str) -> str:
    """Any text but an empty one; the type of an option."""
    if not word:
        raise argparse.ArgumentTypeError("it is empty")
    return word


def whole(word: str) -> int:
    """A whole number that may not be long enough to keep anybody busy; the type of an option."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", word):
        raise argparse.ArgumentTypeError(f"expected a whole number, got {shown(word)}")
    return int(word)


def positive(word: str) -> int:
    """A whole number from 1 on; the type of an option."""
    if (number := whole(word)) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least 1, got {shown(word)}"
        )
    return number


def rate(word: str) -> Fraction:
    """Frames per second, such as 25, 29.97 or 30000/1001; the type of an option."""
    number = Fraction(0)
    # No exponents: writing out 1e30000000 keeps a machine busy for hours.
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}|/(?!0+$)[0-9]{1,9})?", word):
        number = Fraction(word)
    if not LEAST_RATE <= float(number) <= MOST_RATE:
        raise argparse.ArgumentTypeError(
            f"expected frames per second from {LEAST_RATE:g} to {MOST_RATE:g}, such as 25, 29.97 or "
            f"30000/1001, got {shown(word)}"
        )
    return number


def names(listed: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def run_options(parser: argparse.ArgumentParser) -> None:
    """What a run is: its parts, recipe, data and changes; ``resolved_run`` reads it."""
    for field, example in (
        ("encoder", "tiny, dinov2-b, timm:MODEL"),
        ("bridge", "vb64, identity"),
        ("decoder", "vit-t … vit-xl"),
        ("recipe", "quick, rpiae, rae"),
        ("data", "sample, folder:PATH, parquet:PATH"),
    ):
        parser.add_argument(
            f"--{field}", metavar="NAME", type=nonempty, help=f"for example {example}"
        )
    setting_options(parser, "recipe.stages[0].noise=0.4")


def setting_options(parser: argparse.ArgumentParser, example: str) -> None:
    """A config file, single changes, and how a run is computed, of all that train.

    Args:
        example: of what ``--set`` sets.
    """
    parser.add_argument(
        "--config", metavar="FILE", type=nonempty, help="a TOML file; options override it"
    )
    set_option(parser, f"set one field, such as {example}; repeatable")
    parser.add_argument(
        "--without", action="append", default=[], metavar="LOSSES",
        help="leave losses out of every stage, comma-separated",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole)
    parser.add_argument("--device", metavar="NAME", type=nonempty, help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"])
    parser.add_argument(
        "--compile", action="store_true", default=None,
        help="compile the blocks (torch.compile): a minute at the start, then faster steps",
    )  # fmt: skip


def start_options(parser: argparse.ArgumentParser) -> None:
    """Another run whose weights a run starts from; ``resolved_run`` reads it."""
    parser.add_argument(
        "--init", metavar="FOLDER", type=nonempty, help="start from a run's tokenizer"
    )
    parser.add_argument(
        "--parts", metavar="ROLES", type=nonempty,
        help="with --init: whose weights are taken over, such as encoder,decoder (default: all)",
    )  # fmt: skip


def resolved_run(arguments: argparse.Namespace, *also: str) -> ResolvedRun:
    """The checked run that the options describe; what is given is as of ``run_tree``.

    Raises:
        UsageError: with all that is wrong about it.
    """
    from rpiae import runs

    return runs.resolve(
        run_tree(arguments, *also), overrides=tuple(arguments.overrides),
        without=left_out(arguments), source=str(arguments.config or "the command line"),
    )  # fmt: skip


def run_tree(arguments: argparse.Namespace, *also: str, fields: Sequence[str] = RUN_FIELDS) -> Tree:
    """The run that ``--config`` and the options describe; an option goes before the file.

    Args:
        arguments: with all that ``run_options`` declares, or ``fields`` and ``--config``.
        also: further options that are fields of a run, such as ``"out"``.
        fields: options that are.

    Raises:
        UsageError: if the file cannot be read.
    """
    tree = read_toml(Path(arguments.config)) if arguments.config else {}
    for field in (*fields, *also):
        value = getattr(arguments, field)
        if value is not None:
            tree[field] = value
    if getattr(arguments, "parts", None):
        tree["init_parts"] = list(names(arguments.parts))
    return tree


def left_out(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The losses that ``--without`` names."""
    return tuple(name for listed in arguments.without for name in names(listed))


def set_option(parser: argparse.ArgumentParser, text: str) -> None:
    """``--set PATH=VALUE``, kept as the list ``overrides``."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides", help=text
    )


def processes_option(parser: argparse.ArgumentParser) -> None:
    """``--processes`` of a verb that ``launch`` can start several times."""
    parser.add_argument(
        "--processes", type=positive, default=1, metavar="N",
        help="processes on this machine, one per GPU; accelerate launch starts more",
    )  # fmt: skip


def device_options(parser: argparse.ArgumentParser) -> None:
    """Where a tokenizer is computed, and how many images at a time."""
    parser.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="per forward pass; no effect on results"
    )


def computing_options(parser: argparse.ArgumentParser) -> None:
    """Where a tokenizer is computed, and in which numbers."""
    device_options(parser)
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32",
        help="what is computed in (default: fp32)",
    )  # fmt: skip


def crop_options(parser: argparse.ArgumentParser) -> None:
    """How images are brought to one size."""
    parser.add_argument(
        "--image-size", type=positive, metavar="N",
        help="side of the centre crop (default: of the training crops)",
    )  # fmt: skip
    parser.add_argument(
        "--resize", type=positive, metavar="N",
        help="short side of every image before the crop (default of adm: --image-size)",
    )  # fmt: skip
    parser.add_argument(
        "--crop", choices=["adm", "centre"],
        help="adm, as published numbers on ImageNet: every image is resized, box filter then "
        "bicubic, then cropped; centre: as a run crops what it holds out (default: adm)",
    )  # fmt: skip


def dataset_options(parser: argparse.ArgumentParser) -> None:
    """A tokenizer and a dataset that all of goes through it."""
    parser.add_argument(
        "run", help="a run's or tokenizer's folder, or user/name[@revision] of the hub"
    )
    parser.add_argument("data", type=nonempty, help="for example folder:PATH, parquet:PATH, sample")
    crop_options(parser)
    parser.add_argument("--workers", type=whole, metavar="N", help="processes that load images")
    set_option(parser, "set one field of the dataset, such as data.column=img; repeatable")
    parser.add_argument("--seed", type=whole, default=0, help="of --posterior sample (default: 0)")
    computing_options(parser)


def measuring_options(parser: argparse.ArgumentParser, *, fields: str) -> None:
    """What is measured on and learned from, and how.

    Args:
        fields: examples of what ``--set`` sets.
    """
    parser.add_argument(
        "--images", type=positive, metavar="N", help="measure on N, always the same"
    )
    parser.add_argument(
        "--train-images", type=positive, metavar="N", help="learn from N, always the same"
    )
    crop_options(parser)
    set_option(parser, f"set one field of a dataset, by {fields}; repeatable")
    device_options(parser)
    parser.add_argument(
        "--precision", choices=["auto", "fp32", "bf16"],
        help="what the tokenizer is computed in; auto: bf16 where it is faster (default: fp32)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")
