"""``rpiae fetch``: what parts, a run or a study load, made available locally."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rpiae.cli.options import (
    RUN_FIELDS,
    names,
    nonempty,
    resolved_run,
    run_options,
    start_options,
)
from rpiae.cli.screen import stdout
from rpiae.core.config.parts import CriticConfig, EncoderConfig, LossConfig, MetricConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.resolve import part_config
from rpiae.core.registry.registry import normalised, registry

if TYPE_CHECKING:
    from rpiae.core.model.fetching import Loading


def options(parser: argparse.ArgumentParser) -> None:
    """Parts by their names, a study, or a run by its options."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="an encoder, loss, critic or metric"
    )
    parser.add_argument(
        "--study",
        metavar="FILE",
        type=nonempty,
        help="a study's file: what its runs and metrics load",
    )
    parser.add_argument(
        "--metrics", metavar="NAMES", type=nonempty, help="of an evaluation, comma-separated"
    )
    start_options(parser)
    run_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Have all that is named in the local caches, and say where."""
    from rpiae.core.model.fetching import fetch_all

    parts = [_named(name) for name in arguments.names]
    if arguments.metrics:
        parts += [_metric(name) for name in names(arguments.metrics)]
    if arguments.study:
        parts += _of_study(Path(arguments.study))
    if _describes_run(arguments):
        parts += _of_run(arguments)
    if not (parts or arguments.study or _describes_run(arguments)):
        raise UsageError(
            "name parts, such as rpiae fetch dinov2-b lpips, or a run by its options, such as "
            "--config run.toml or --encoder dinov2-b --recipe rpiae"
        )
    loaded = fetch_all(parts, command=shlex.join(["rpiae", *sys.argv[1:]]))
    for each in loaded:
        assert each.path is not None
        size = each.path.stat().st_size / 1e6
        stdout.print(f"{each.what}: {each.path} ({size:.1f} MB)", soft_wrap=True)
    if not loaded:
        stdout.print("nothing to fetch")
    return 0


def _describes_run(arguments: argparse.Namespace) -> bool:
    describing = (*RUN_FIELDS, "init", "config", "overrides", "without")
    return any(getattr(arguments, name) not in (None, []) for name in describing)


def _of_run(arguments: argparse.Namespace) -> list[Loading]:
    """What the run of the options loads when it begins."""
    from rpiae import runs

    return runs.loading(resolved_run(arguments, "init"))


def _of_study(path: Path) -> list[Loading]:
    """What all runs of a study load, and its evaluation."""
    from rpiae.studies.configs import read_study
    from rpiae.studies.planning import plan_study, study_loading

    study = read_study(path)
    return study_loading(study, plan_study(study, Path("runs") / "study"))


def _metric(name: str) -> Loading:
    config = part_config("metrics", name)
    assert isinstance(config, MetricConfig)
    return config


def _named(name: str) -> Loading:
    """The part of that name, of the first family that has it."""
    head = normalised(name.partition(":")[0])
    for family in ("losses", "critics", "metrics"):
        known = registry(family)
        if head in {*known.names(), *(p.name for p in known.presets())}:
            config = part_config(family, name)
            break
    else:
        config = part_config("encoders", name)
    assert isinstance(config, (EncoderConfig, LossConfig, CriticConfig, MetricConfig))
    return config
