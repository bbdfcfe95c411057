"""The embedded default of ``rpiae diffuse`` on the terminal: step by step, and what was read."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping

from attrs import evolve
from rich.table import Table

from rpiae.cli import encode, sample
from rpiae.cli.following import TOKENIZER, Telling, follow, print_plan
from rpiae.cli.generating import GENERATOR
from rpiae.cli.launch import INTERRUPTED, this_command
from rpiae.cli.screen import stderr, stdout
from rpiae.core.runtime.names import printable
from rpiae.runs.demonstration import GUIDANCE, Read, Step
from rpiae.runs.planning import Plan

#: What the example of sampling asks for.
SAMPLED = ("--classes", "0-9", "--out", "digits.png")


def print_first_plan(plan: Plan) -> None:
    """The plan of the first step, and what comes after it."""
    print_plan(plan)
    stdout.print(
        "then: latents of the scans, a generator on them (flow-quick), samples of every digit with and "
        f"without guidance {GUIDANCE:g}, and what a support vector machine reads in them",
        soft_wrap=True,
    )


def follow_steps(steps: Iterator[Step]) -> int:
    """Render the steps; returns the exit code."""
    tell: Mapping[str, Callable[[Step], int]] = {
        "tokenizer": lambda step: follow(step.events, _again(TOKENIZER)),
        "latents": _encoded,
        "generator": lambda step: follow(step.events, _again(GENERATOR)),
        "samples": _sampled,
        "reading": _read,
    }
    try:
        for step in steps:
            if step.kept:
                stderr.print(f"{step.name}: {step.folder} is there already", soft_wrap=True)
            elif code := tell[step.name](step):
                return code
    except KeyboardInterrupt:
        stderr.print(f"interrupted; go on with\n  {this_command()}", soft_wrap=True)
        return INTERRUPTED
    return 0


def _again(telling: Telling) -> Telling:
    """How a run is told that the same command goes on with."""
    return evolve(telling, go_on=lambda _: this_command())


def _encoded(step: Step) -> int:
    if index := encode.told(step.events):
        stderr.print(f"{step.folder}: latents of {index['count']} images", soft_wrap=True)
    return 0


def _sampled(step: Step) -> int:
    sample.told(step.events)
    stderr.print(f"{step.folder}: samples", soft_wrap=True)
    return 0


def _read(step: Step) -> int:
    for event in step.events:
        if isinstance(event, Read):
            _print_read(event, step)
    return 0


def _print_read(read: Read, step: Step) -> None:
    table = Table(
        title="what a support vector machine, fitted to the scans, reads rightly",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    table.add_column("images")
    table.add_column("read rightly", justify="right")
    for what, share in (
        (f"{read.count} samples, guidance {read.guidance:g}", read.guided),
        (f"{read.count} samples, no guidance", read.unguided),
        ("held-out scans", read.scans),
        ("their reconstructions", read.reconstructions),
    ):
        table.add_row(what, f"{share:.1%}")
    stdout.print(table)
    run = printable(str(step.folder))
    stdout.print(
        f"\npicture {printable(str(read.picture))}: unguided on the left, guided on the right\n"
        "sample from it:\n  "
        + shlex.join(["rpiae", "sample", run, *SAMPLED, "--guidance", f"{read.guidance:g}"]),
        soft_wrap=True,
    )
