"""``rpiae build``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rpiae.cli.launch import launch, launched
from rpiae.cli.options import (
    nonempty,
    processes_option,
    resolved_run,
    run_options,
    run_tree,
    start_options,
)
from rpiae.core.errors import UsageError


def options(parser: argparse.ArgumentParser) -> None:
    """A run, what it starts from or goes on with, and where it goes."""
    run_options(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", type=nonempty, help="the run's folder (default: runs/…)"
    )
    start_options(parser)
    parser.add_argument("--resume", metavar="FOLDER", type=nonempty, help="go on with a run")
    processes_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def run(arguments: argparse.Namespace) -> int:
    """Plan, and unless it is a dry run, train and evaluate."""
    from rpiae import runs
    from rpiae.cli.following import follow, print_plan
    from rpiae.core.model.fetching import fetch_all

    if arguments.resume:
        return _resume(arguments)
    resolved = resolved_run(arguments, "out", "init")
    if arguments.dry_run:
        print_plan(runs.plan(resolved))
        return 0
    try:
        runs.check_startable(resolved)
    except UsageError:
        print_plan(runs.plan(resolved))
        raise
    if not launched():
        fetch_all(runs.loading(resolved), command=_fetch_command(arguments))
    if arguments.processes > 1 and not launched():
        return launch(arguments.processes)
    return follow(runs.run(resolved))


def _fetch_command(arguments: argparse.Namespace) -> str:
    """What gets all weights that a run of these options loads."""
    words = []
    for name in ("config", "encoder", "bridge", "decoder", "recipe", "data", "init", "parts"):
        if value := getattr(arguments, name, None):
            words += [f"--{name}", value]
    for text in arguments.overrides:
        words += ["--set", text]
    for text in arguments.without:
        words += ["--without", text]
    return shlex.join(["rpiae", "fetch", *words])


def _resume(arguments: argparse.Namespace) -> int:
    """Go on with a run, with what may be changed about it."""
    from rpiae import runs
    from rpiae.cli.following import follow, print_plan

    names = ("out", "init", "parts", "without")
    refused = [f"--{name}" for name in names if getattr(arguments, name)]
    if refused:
        raise UsageError(
            f"--resume goes on with the run in {arguments.resume}; leave out {', '.join(refused)}. "
            "To start another run from its weights, use --init"
        )
    changes, overrides = run_tree(arguments), tuple(arguments.overrides)
    resolved, _ = runs.resumed_config(Path(arguments.resume), changes=changes, overrides=overrides)
    if arguments.dry_run:
        print_plan(runs.plan(resolved))
        return 0
    if arguments.processes > 1 and not launched():
        return launch(arguments.processes)
    return follow(runs.resume(arguments.resume, changes=changes, overrides=overrides))
