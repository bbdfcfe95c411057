"""``rpiae ablate``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve
from rich.table import Table

from rpiae.cli.options import left_out, names, nonempty, positive, run_options, run_tree
from rpiae.cli.progress import Bar
from rpiae.cli.screen import duration, stderr, stdout
from rpiae.core.config.tree import Tree, parse_override
from rpiae.core.errors import UsageError

if TYPE_CHECKING:
    from rpiae.studies.configs import StudyConfig
    from rpiae.studies.executors import Executor
    from rpiae.studies.planning import PlannedRow


def options(parser: argparse.ArgumentParser) -> None:
    """A study: its base, its axes, what is measured, and who runs it."""
    parser.add_argument(
        "study", nargs="?", metavar="STUDY.TOML", help="a study; options change its base"
    )
    run_options(parser)
    parser.add_argument(
        "--vary", action="append", default=[], metavar="PATH=A,B,…",
        help="an axis, such as bridge=vb8,vb16 or recipe.stages[0].noise=0,0.4; repeatable",
    )  # fmt: skip
    parser.add_argument("--seeds", type=positive, metavar="N", help="seeds 0 to N − 1 of every run")
    parser.add_argument(
        "--eval-data", metavar="DATA", type=nonempty, help="what finished runs are measured on"
    )
    parser.add_argument(
        "--eval-train", metavar="DATA", type=nonempty, help="what probes and neighbours learn from"
    )
    parser.add_argument(
        "--metrics", metavar="NAMES", type=nonempty,
        help="comma-separated (default: the study's, else psnr,ssim)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", type=nonempty, help="the study's folder (default: runs/NAME)"
    )
    parser.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="runs at a time (default: 1)"
    )
    parser.add_argument(
        "--executor", choices=["local", "submitit"], default="local",
        help="processes of this machine, or jobs of submitit",
    )  # fmt: skip
    parser.add_argument(
        "--cluster", default="auto", metavar="NAME", help="with submitit: auto, slurm or local"
    )
    parser.add_argument(
        "--job", action="append", default=[], metavar="NAME=VALUE",
        help="with submitit: a parameter of every job, such as slurm_partition=gpu; repeatable",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the runs and stop")
    parser.add_argument("--json", action="store_true", help="with --dry-run")


def run(arguments: argparse.Namespace) -> int:
    """Run a study, or what is left of it."""
    from rpiae.studies import studies
    from rpiae.studies.planning import file_name, plan_study

    study = _study(arguments)
    out = Path(arguments.out or Path("runs") / file_name(study.name))
    if arguments.dry_run:
        rows = plan_study(study, out)
        if arguments.json:
            print(json.dumps([_row(row) for row in rows], indent=2))
        else:
            stdout.print(_table(rows))
        return 0
    executor = _executor(arguments, out)
    command = shlex.join(["rpiae", *sys.argv[1:]])
    began = time.monotonic()
    ended = None
    with Bar("ablate") as bar:
        for event in studies.run_study(study, out, executor, command=command):
            if isinstance(event, studies.StudyPlanned):
                bar.say(f"{event.total} runs in {out}, {event.done} of them done already")
            elif isinstance(event, studies.JobStarted):
                again = f", attempt {event.attempt}" if event.attempt > 1 else ""
                bar.say(f"started {event.run.folder.name}{again}")
            elif isinstance(event, studies.JobEnded):
                text = f"{event.state} {event.run.folder.name} after {duration(event.seconds)}"
                bar.say(f"{text}: {event.error}" if event.error else text)
                bar.show(event.done, event.total, f"{duration(time.monotonic() - began)} so far")
            elif isinstance(event, studies.StudyEnded):
                ended = event
    assert ended is not None
    stdout.print(
        f"{ended.done} of {ended.total} runs done, {ended.failed} failed; "
        f"logs in {out / studies.LOGS_FOLDER}",
        soft_wrap=True,
    )
    if ended.stopped:
        stderr.print(f"interrupted; go on with:\n  {command}", soft_wrap=True)
        return 130
    if ended.failed:
        return 1
    stdout.print(f"rpiae report {out}  makes the page", soft_wrap=True)
    return 0


def _study(arguments: argparse.Namespace) -> StudyConfig:
    """The study of the file, changed by the options; or one of the options alone."""
    from rpiae.studies.configs import StudyConfig, read_study

    if not arguments.study and not arguments.vary:
        raise UsageError("name a study's file, or axes with --vary, such as --vary bridge=vb8,vb16")
    study = read_study(Path(arguments.study)) if arguments.study else StudyConfig(name="ablation")
    base = study.base | _base(arguments)
    axes = [_axis(text) for text in arguments.vary]
    twice = sorted({path for path, _ in axes if [p for p, _ in axes].count(path) > 1})
    if twice:
        raise UsageError(f"--vary {twice[0]} is given twice: list all values in one")
    study = evolve(
        study, base=base, vary=study.vary | dict(axes),
        without=(*study.without, *left_out(arguments)),
    )  # fmt: skip
    study = _seeded(study, arguments)
    evaluation = {"data": arguments.eval_data, "training": arguments.eval_train}
    if arguments.metrics:
        evaluation["metrics"] = names(arguments.metrics)
    changed = {name: value for name, value in evaluation.items() if value}
    return evolve(study, evaluation=evolve(study.evaluation, **changed))


def _base(arguments: argparse.Namespace) -> Tree:
    """What the options say of every run; where they are written is the study's own."""
    tree = run_tree(arguments)
    if "out" in tree:
        stderr.print(
            f"{arguments.config}: its out is left out; a study's runs lie in its own folder",
            soft_wrap=True,
        )
        del tree["out"]
    return tree | dict(_override(text) for text in arguments.overrides)


def _seeded(study: StudyConfig, arguments: argparse.Namespace) -> StudyConfig:
    """The study with the seeds that the options name, which replace all others.

    Raises:
        UsageError: if two of them name seeds, or there are too many.
    """
    from rpiae.studies.planning import MOST_RUNS

    seeding = {
        "--seed": arguments.seed is not None,
        "--set seed": any(_override(text)[0] == "seed" for text in arguments.overrides),
        "--vary seed": any(_axis(text)[0] == "seed" for text in arguments.vary),
        "--seeds": arguments.seeds is not None,
    }
    named = [option for option, is_given in seeding.items() if is_given]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} both say which seeds runs have: give one of them")
    if not named or named == ["--vary seed"]:
        return study
    if arguments.seeds is None:
        seeds: tuple[Any, ...] = (study.base["seed"],)
    elif arguments.seeds > MOST_RUNS:
        raise UsageError(f"--seeds {arguments.seeds}: a study has at most {MOST_RUNS:,} runs")
    else:
        seeds = tuple(range(arguments.seeds))
    return evolve(
        study, seeds=seeds, base={k: v for k, v in study.base.items() if k != "seed"},
        rows=tuple(evolve(row, seeds=None) for row in study.rows),
    )  # fmt: skip


def _override(text: str) -> tuple[str, Any]:
    path, _, _ = text.partition("=")
    return path.strip(), parse_override(text)[1]


def _axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """``path=a,b`` as a path and values; what is not TOML is split at its commas."""
    path, equals, values = text.partition("=")
    try:
        listed = tuple(tomllib.loads(f"values = [{values}]")["values"])
    except tomllib.TOMLDecodeError:
        split = [value.strip() for value in values.split(",") if value.strip()]
        listed = tuple(parse_override(f"{path}={value}")[1] for value in split)
    if not equals or not listed:
        raise UsageError(f"--vary {text!r} is not of the form path=value,value")
    return path.strip(), listed


def _executor(arguments: argparse.Namespace, out: Path) -> Executor:
    from rpiae.studies.executors import LocalExecutor, SubmititExecutor

    if arguments.executor == "local":
        if arguments.job:
            raise UsageError("--job goes with --executor submitit")
        return LocalExecutor(arguments.processes)
    return SubmititExecutor(
        out / "submitit", arguments.processes, cluster=arguments.cluster,
        parameters=dict(_override(text) for text in arguments.job),
    )  # fmt: skip


def _row(row: PlannedRow) -> dict[str, Any]:
    return {
        "name": row.name, "summary": row.summary, "groups": list(row.groups),
        "runs": [
            {"seed": run.seed, "folder": str(run.folder), "address": run.address,
             "stages": list(run.stages)}
            for run in row.runs
        ],
    }  # fmt: skip


def _table(rows: tuple[PlannedRow, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("row", "tables", "seeds", "stages", "summary"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(
            row.name, ", ".join(row.groups), ", ".join(str(run.seed) for run in row.runs),
            " ".join(address[:6] for address in row.runs[0].stages), row.summary,
        )  # fmt: skip
    return table
