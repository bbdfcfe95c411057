"""A run on the terminal: its plan, how it goes, and what came of it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from rich.live import Live
from rich.table import Table

from rpiae.cli.launch import INTERRUPTED, speaks
from rpiae.cli.screen import count, duration, progress_bar, stderr, stdout
from rpiae.core.runtime.files import plain_name
from rpiae.core.runtime.memory import amount
from rpiae.core.runtime.names import printable
from rpiae.core.training import events
from rpiae.runs.planning import Plan


def print_plan(plan: Plan) -> None:
    """The plan as tables on stdout."""
    stdout.print(_parts(plan))
    side = plan.image_size
    shown = f"images {side}×{side}"
    if plan.frames is not None:
        shown = f"clips of {plan.frames} frames {side}×{side}"
    stdout.print(
        f"\n{count(plan.parameters)} parameters · {shown} · "
        f"latent {'×'.join(map(str, plan.latent))} · {plan.compression:.3g} image values per latent value"
    )
    if plan.step_frames > 1:
        stdout.print(
            f"time: {plan.token_frames} {'frame' if plan.token_frames == 1 else 'frames'} per token, "
            f"{plan.step_frames} per latent step"
        )
    stdout.print()
    stdout.print(_stages(plan))
    stdout.print()
    for line in _other_lines(plan):
        stdout.print(line)
    stdout.print()


def _parts(plan: Plan) -> Table:
    table = Table(title="model", title_justify="left", box=None, pad_edge=False)
    for heading in ("role", "part", "parameters", "chosen by"):
        table.add_column(heading, overflow="fold")
    for part in plan.parts:
        numbers = count(part.parameters)
        if len(part.children) > 1 and part.role == "bridge":
            numbers += f" ({' + '.join(count(n) for n in part.children.values())})"
        table.add_row(part.role, part.label, numbers, part.origin)
    return table


def _stages(plan: Plan) -> Table:
    table = Table(
        title=f"stages of recipe {plan.recipe} ({plan.recipe_origin})",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for heading in ("stage", "trains", "frozen", "path", "terms", "length", "batch"):
        table.add_column(heading, overflow="fold")
    for stage in plan.stages:
        if stage.skipped:
            table.add_row(stage.name, "skipped: nothing to train", "", "", "", "", "")
            continue
        roles = stage.report.roles
        table.add_row(
            stage.name,
            ", ".join(f"{r} {count(n.trained)}" for r, n in roles.items() if n.trained),
            ", ".join(r for r, n in roles.items() if n.frozen and not n.trained),
            stage.path + (f", noise ≤ {stage.noise:g}" if stage.noise else ""),
            " + ".join(stage.terms),
            stage.length
            + (f", {stage.image_share:.0%} of single frames" if stage.image_share else ""),
            str(stage.batch_size),
        )
    return table


def _other_lines(plan: Plan) -> list[str]:
    """What is said below the tables."""
    data = f"{plan.data} ({plan.data_origin})" if plan.data else "none yet: name some with --data"
    if plan.num_images is not None:
        data += f", {plan.num_images} {_seen(plan.frames)} to train on"
    lines = [f"data {data}", f"device {plan.device}, precision {plan.precision}"]
    lines += [f"loads {text}" for text in plan.loads]
    if plan.start:
        lines.append(f"starts with {plan.start}")
    lines.append(f"memory {amount(plan.memory.total)} at the least, and activations on top")
    if plan.out:
        lines.append(f"out {plan.out}")
    lines += [f"licence of {text}" for text in plan.licences]
    lines += [f"note: {text}" for text in plan.notices]
    if plan.missing_losses:
        lines.append(f"not in this version: {', '.join(plan.missing_losses)}")
    return lines


def _seen(frames: int | None) -> str:
    """What data are called, by the frames of a clip; None for images."""
    return "images" if frames is None else "clips"


@frozen(kw_only=True)
class Telling:
    """How a kind of run is told.

    Attributes:
        go_on: the command that goes on with a run in a folder.
        plan: prints a plan on stdout.
        seen: what the images of a plan are called.
        metrics: held-out metrics in words.
        summary: prints what came of a run on stdout.
    """

    go_on: Callable[[Path], str]
    plan: Callable[[Any], None]
    seen: Callable[[Any], str]
    metrics: Callable[[Mapping[str, float]], str]
    summary: Callable[[events.RunEnded], None]


def follow(run: Iterator[events.Event], telling: Telling | None = None) -> int:
    """Render a run's events; returns the exit code.

    Args:
        run: the events.
        telling: how; as of a tokenizer's run where it is not given.
    """
    telling = telling or TOKENIZER
    view = _View(telling)
    with view:
        for event in run:
            if isinstance(event, events.Interrupted):
                view.close()
                if speaks():
                    stderr.print(
                        f"{event.signal}: the state is saved. Go on with:\n"
                        f"  {telling.go_on(event.path)}",
                        soft_wrap=True,
                    )
                return INTERRUPTED
            if not speaks():
                continue
            view.show(event)
            if isinstance(event, events.RunEnded):
                view.close()
                telling.summary(event)
    return 0


def resuming(verb: str) -> Callable[[Path], str]:
    """The command of a verb that goes on with a run in a folder."""
    return lambda folder: shlex.join(["rpiae", verb, "--resume", printable(str(folder))])


class _View:
    """A live line per stage on a terminal; a plain line now and then elsewhere."""

    def __init__(self, telling: Telling) -> None:
        self._telling = telling
        self._live = Live(console=stderr, refresh_per_second=4, transient=False)
        self._progress = progress_bar()
        self._task: Any = None
        self._plain = not stderr.is_terminal
        self._open = False
        self._seen = "images"

    def __enter__(self) -> _View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the live display."""
        if self._open:
            self._live.stop()
            self._open = False

    def show(self, event: events.Event) -> None:
        """Render one event."""
        if isinstance(event, events.Planned):
            self._telling.plan(event.plan)
            self._seen = self._telling.seen(event.plan)
            sys.stdout.flush()
        elif isinstance(event, events.StageStarted):
            self._started(event)
        elif isinstance(event, events.StepDone):
            self._stepped(event)
        elif isinstance(event, events.StageSkipped):
            self._say(f"{event.stage}: skipped, {event.reason}")
        elif isinstance(event, events.Evaluated) and event.metrics:
            mark = ", the best so far" if event.best else ""
            held_out = self._telling.metrics(event.metrics)
            self._say(f"{event.stage} {event.step}: held-out {held_out}{mark}")
        elif isinstance(event, events.TakenBack):
            self._say(
                f"{event.stage} {event.step}: {event.reason}; taken back to step {event.to}, and on from "
                "there with other draws"
            )
        elif isinstance(event, events.ImagesSkipped):
            self._say(f"{event.total} {self._seen} skipped so far: {'; '.join(event.images)}")
        elif isinstance(event, events.Notice):
            self._say(event.text)

    def _started(self, event: events.StageStarted) -> None:
        self._task = self._progress.add_task(
            event.stage, total=event.steps, completed=event.step, status=""
        )
        if not self._plain and not self._open:
            self._live.update(self._progress)
            self._live.start()
            self._open = True

    def _stepped(self, event: events.StepDone) -> None:
        terms = " ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
        for name, row in event.others.items():
            if "accuracy" in row:
                terms += f" · {name} right {row['accuracy']:.0%}"
        status = (
            f"{terms} · {event.images_per_second:.3g} {self._seen}/s · "
            f"{duration(event.remaining_seconds)} left"
        )
        if not self._plain:
            self._progress.update(self._task, completed=event.step, status=status)
        elif event.step == 1 or event.step % max(1, event.steps // 10) == 0:
            stderr.print(f"{event.stage} {event.step}/{event.steps}: {status}", soft_wrap=True)

    def _say(self, text: str) -> None:
        stderr.print(text, soft_wrap=True)


def _metrics(metrics: Any) -> str:
    similarity = f"SSIM {metrics['ssim']:.3f}, " if "ssim" in metrics else ""
    return f"PSNR {metrics['psnr']:.2f} dB, {similarity}drift {metrics['drift']:.3f}"


def _print_summary(event: events.RunEnded) -> None:
    summary = event.summary
    seen = _seen(summary.get("frames"))
    shown = "photograph" if seen == "images" else "clip"
    table = Table(
        title=f"held-out {shown}s (EMA weights, reloaded in a new process)",
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for heading in (shown, "PSNR dB", "SSIM", "mean colour dB", "linear code dB"):
        table.add_column(heading, justify="left" if heading == shown else "right")
    rows = list(summary["photographs"].items())
    for name, row in rows[:8]:
        table.add_row(name, *_row(row))
    if len(rows) > 8:
        table.add_row(f"… and {len(rows) - 8} more", "", "", "", "")
    table.add_row("mean", *_row(summary))
    stdout.print(table)
    stdout.print(f"\n{summary['verdict']}")
    folder = str(event.folder)
    trained = [stage["name"] for stage in summary["stages"] if "skipped" not in stage]
    best = f"best evaluated {folder}/best/{plain_name(trained[-1])} · " if trained else ""
    stdout.print(
        f"drift from the pivot {summary['drift']:.3f} · trained on {summary['num_images']} {seen} in "
        f"{duration(summary['seconds'])} at {summary['images_per_second']:.3g} {seen}/s\n"
        f"tokenizer {folder}/tokenizer · {best}"
        f"pictures {folder}/samples · curves {folder}/curves.png, tensorboard --logdir {folder}",
        soft_wrap=True,
    )


def _row(values: Any) -> list[str]:
    similarity = f"{values['ssim']:.3f}" if "ssim" in values else "–"
    first, *others = (f"{values[name]:.2f}" for name in ("psnr", "psnr_mean_colour", "psnr_pca"))
    return [first, similarity, *others]


TOKENIZER = Telling(
    go_on=resuming("build"), plan=print_plan, seen=lambda plan: _seen(plan.frames), metrics=_metrics,
    summary=_print_summary,
)  # fmt: skip
