"""``rpiae report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rpiae.cli.options import nonempty
from rpiae.cli.screen import stdout


def options(parser: argparse.ArgumentParser) -> None:
    """A study, and where its page goes."""
    parser.add_argument("study", metavar="FOLDER", help="a study's folder")
    parser.add_argument(
        "--out", metavar="FOLDER", type=nonempty, help="where to (default: the study's folder)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write a study's page and tables."""
    from rpiae.studies.report import write_report

    written = write_report(
        Path(arguments.study), out=Path(arguments.out) if arguments.out else None
    )
    for path in written:
        stdout.print(f"{path} ({path.stat().st_size / 1e6:.2f} MB)", soft_wrap=True)
    return 0
