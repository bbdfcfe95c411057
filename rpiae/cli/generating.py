"""A generator's run on the terminal: its plan, and what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from rich.table import Table

from rpiae.cli.following import Telling, resuming
from rpiae.cli.screen import count, duration, stdout
from rpiae.core.runtime.memory import amount
from rpiae.core.runtime.names import printable
from rpiae.core.training import events
from rpiae.runs.generating.planning import GeneratorPlan

#: Names of classes that a plan shows.
NAMED = 6


def print_generator_plan(plan: GeneratorPlan) -> None:
    """The plan as a table and lines on stdout."""
    stdout.print(
        f"generator {plan.label} ({plan.origin}) · {count(plan.parameters)} parameters · latent "
        f"{'×'.join(map(str, plan.latent))} · {_classes(plan.num_classes, plan.label_names)}"
    )
    stdout.print(f"flow: {plan.flow}\n")
    stdout.print(_stages(plan))
    stdout.print()
    for line in _other_lines(plan):
        stdout.print(line)
    stdout.print()


def _classes(number: int, names: Sequence[str]) -> str:
    """Classes by their number and first names."""
    if not number:
        return "no classes"
    shown = ", ".join(printable(name) for name in names[:NAMED])
    more = ", …" if len(names) > NAMED else ""
    return f"{number} classes" + (f" ({shown}{more})" if names else "")


def _stages(plan: GeneratorPlan) -> Table:
    table = Table(
        title=f"stages of recipe {plan.recipe} ({plan.recipe_origin})",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for heading in ("stage", "terms", "length", "batch"):
        table.add_column(heading, overflow="fold")
    for stage in plan.stages:
        length = f"{stage.steps} steps, {stage.epochs:.3g} epochs"
        table.add_row(stage.name, " + ".join(stage.terms), length, str(stage.batch_size))
    return table


def _other_lines(plan: GeneratorPlan) -> list[str]:
    """What is said below the table."""
    lines = [
        f"learns from {printable(plan.source)}, {plan.num_samples} images to train on",
        f"tokenizer {printable(plan.tokenizer)}",
        f"device {plan.device}, precision {plan.precision}",
    ]
    if plan.init:
        lines.append(f"starts with the weights of {printable(plan.init)}")
    lines.append(f"memory {amount(plan.memory.total)} at the least, and activations on top")
    if plan.out:
        lines.append(f"out {printable(plan.out)}")
    return lines + [f"note: {text}" for text in plan.notices]


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _print_summary(event: events.RunEnded) -> None:
    summary, folder = event.summary, str(event.folder)
    stdout.print(
        f"trained on {summary['num_samples']} images in {duration(summary['seconds'])}\n"
        f"generator {summary['generator']} · curves {folder}/curves.png, tensorboard --logdir {folder}\n"
        "sample from it:\n  "
        + shlex.join(["rpiae", "sample", printable(folder), "--out", "samples.png"]),
        soft_wrap=True,
    )


GENERATOR = Telling(
    go_on=resuming("diffuse"), plan=print_generator_plan, seen=lambda plan: "images", metrics=_metrics,
    summary=_print_summary,
)  # fmt: skip
