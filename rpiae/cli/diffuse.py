"""``rpiae diffuse``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rpiae.cli.launch import launch, launched
from rpiae.cli.options import (
    left_out,
    nonempty,
    processes_option,
    run_tree,
    setting_options,
    whole,
)
from rpiae.core.config.tree import Tree
from rpiae.core.errors import UsageError

#: Options that are fields of a generator's run.
FIELDS = (
    "generator", "recipe", "latents", "data", "tokenizer", "held_out", "seed", "device", "precision",
    "compile", "init",
)  # fmt: skip

#: Options by the names that they are kept under, where these differ.
WORDS = {"held_out": "--held-out", "overrides": "--set"}

#: What is said of several processes that were ended.
GO_ON = "rpiae diffuse --resume FOLDER"


def options(parser: argparse.ArgumentParser) -> None:
    """What is learned from, by what and how, and where it goes."""
    parser.add_argument(
        "latents", nargs="?", metavar="LATENTS", type=nonempty,
        help="a folder that rpiae encode wrote; without it, and without --data, an example from "
        "nothing: handwritten digits, in minutes",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="NAME", type=nonempty,
        help="images that --tokenizer encodes on the way, for example folder:PATH",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", type=nonempty,
        help="a tokenizer's folder or its run's (default: that of the latents)",
    )  # fmt: skip
    for field, example in (("generator", "dit-t … dit-xl"), ("recipe", "flow-quick, lightningdit")):
        parser.add_argument(
            f"--{field}", metavar="NAME", type=nonempty, help=f"for example {example}"
        )
    parser.add_argument(
        "--held-out", type=whole, metavar="N", help="latents that are measured on, not trained on"
    )
    setting_options(parser, "generator.patch=2")
    parser.add_argument(
        "--out", metavar="FOLDER", type=nonempty, help="the run's folder (default: runs/…)"
    )
    parser.add_argument(
        "--init", metavar="FOLDER", type=nonempty, help="start from a run's generator"
    )
    parser.add_argument("--resume", metavar="FOLDER", type=nonempty, help="go on with a run")
    processes_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def run(arguments: argparse.Namespace) -> int:
    """Plan, and unless it is a dry run, train."""
    from rpiae.cli.following import follow
    from rpiae.cli.generating import GENERATOR, print_generator_plan
    from rpiae.runs import generating

    if arguments.resume:
        return _resume(arguments)
    if not (arguments.latents or arguments.data or arguments.config):
        return _demonstrate(arguments)
    resolved = generating.resolve_generator(
        _tree(arguments, "out"), overrides=tuple(arguments.overrides), without=left_out(arguments),
        source=str(arguments.config or "the command line"),
    )  # fmt: skip
    if arguments.dry_run:
        print_generator_plan(generating.plan_generator(resolved))
        return 0
    if arguments.processes > 1 and not launched():
        generating.plan_generator(resolved)
        return launch(arguments.processes, go_on=GO_ON)
    return follow(generating.run_generator(resolved), GENERATOR)


def _resume(arguments: argparse.Namespace) -> int:
    """Go on with a run, with what may be changed about it."""
    from rpiae.cli.following import follow
    from rpiae.cli.generating import GENERATOR, print_generator_plan
    from rpiae.runs import generating

    refused = [f"--{name}" for name in ("out", "init", "without") if getattr(arguments, name)]
    if refused:
        raise UsageError(
            f"--resume goes on with the run in {arguments.resume}; leave out {', '.join(refused)}. "
            "To start another run from its weights, use --init"
        )
    changes, overrides = _tree(arguments), tuple(arguments.overrides)
    several = arguments.processes > 1 and not launched()
    if arguments.dry_run or several:
        resolved, _ = generating.resumed_generator(
            Path(arguments.resume), changes=changes, overrides=overrides
        )
        if several and not arguments.dry_run:
            return launch(arguments.processes, go_on=GO_ON)
        print_generator_plan(generating.plan_generator(resolved))
        return 0
    happened = generating.resume_generator(arguments.resume, changes=changes, overrides=overrides)
    return follow(happened, GENERATOR)


def _demonstrate(arguments: argparse.Namespace) -> int:
    """The embedded default, where nothing is said to learn from."""
    from rpiae.cli.demonstrating import follow_steps, print_first_plan
    from rpiae.runs.demonstration import OUT, demonstrate, first_plan

    names = (
        "tokenizer", "generator", "recipe", "held_out", "init", "compile", "overrides", "without",
    )  # fmt: skip
    given = [WORDS.get(name, f"--{name}") for name in names if getattr(arguments, name)]
    if arguments.processes > 1:
        given.append("--processes")
    if given:
        raise UsageError(
            f"nothing is named that {', '.join(given)} could go with: train on a folder that rpiae "
            "encode wrote (rpiae diffuse FOLDER), or on images that are encoded on the way (--data "
            "folder:PATH --tokenizer RUN). Without any of them, the example of digits is trained"
        )
    asked = {"seed": arguments.seed, "device": arguments.device, "precision": arguments.precision}
    values = {name: value for name, value in asked.items() if value is not None}
    if arguments.dry_run:
        print_first_plan(first_plan(**values))
        return 0
    return follow_steps(demonstrate(arguments.out or OUT, **values))


def _tree(arguments: argparse.Namespace, *also: str) -> Tree:
    """The run that ``--config`` and the options describe."""
    return run_tree(arguments, *also, fields=FIELDS)
