"""The report of a study: one page of HTML that needs nothing else, and the same in Markdown.

Both are templates (``templates/``) over the same tables. A study that is not finished has a report
too: what failed, runs or waits is said in its row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from rpiae.core.errors import RunError, UsageError
from rpiae.core.runtime.files import write_text
from rpiae.studies.comparing import differing_fields
from rpiae.studies.figures import Axis, Line, Point, curves_figure, frontier_figure
from rpiae.studies.reading import read_results
from rpiae.studies.results import (
    FAILED,
    HIGHER,
    RUNNING,
    WAITING,
    Column,
    RowResults,
    StudyResults,
)
from rpiae.studies.strips import read_strips
from rpiae.studies.tables import (
    differences_table,
    differing_table,
    facts,
    results_table,
    shared_table,
    warnings_of,
)
from rpiae.studies.templating import render

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


@frozen(kw_only=True)
class Figure:
    """A figure with its caption.

    Attributes:
        svg: an element; empty if there is nothing to draw, which the caption says.
    """

    svg: str = ""
    caption: str


def write_report(folder: Path, *, out: Path | None = None) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md`` of a study.

    Args:
        folder: the study's folder.
        out: the folder to write into; the study's own by default.

    Returns:
        The two files; each is replaced as a whole.

    Raises:
        UsageError: if the folder holds no study, or ``out`` is a file.
        CheckpointError: if a file of the study is damaged.
        RunError: if the report cannot be written.
    """
    results = read_results(folder)
    target = folder if out is None else out
    if target.exists() and not target.is_dir():
        raise UsageError(f"the report goes into a folder, and {target} is a file")
    pages = {HTML_FILE: html_report(results), MARKDOWN_FILE: markdown_report(results)}
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the report cannot be written to {target}: {error.strerror}") from None
    for name, text in pages.items():
        write_text(target / name, text)
    return target / HTML_FILE, target / MARKDOWN_FILE


def html_report(results: StudyResults) -> str:
    """The whole page."""
    strips, smaller = read_strips(results)
    pictured = {
        "frontier": _frontier(results), "curves": list(_curves(results)),
        "strips": strips, "smaller": smaller,
    }  # fmt: skip
    return render(HTML_FILE, _facts(results) | pictured)


def markdown_report(results: StudyResults) -> str:
    """The same tables for GitHub."""
    return render(MARKDOWN_FILE, _facts(results))


def _facts(results: StudyResults) -> dict[str, Any]:
    """What both say."""
    differing = differing_fields(results)
    open_runs = {state: results.count(state) for state in (RUNNING, WAITING)}
    return {
        "study": results,
        "open_runs": [f"{count} {state}" for state, count in open_runs.items() if count],
        "facts": facts(results),
        "tables": [(title, results_table(results, rows)) for title, rows in results.tables()],
        "differences": differences_table(results) if results.comparisons else None,
        "differing": differing,
        "differing_table": differing_table(differing),
        "shared_table": shared_table(results),
        "warnings": warnings_of(results),
        "failures": [(row, run) for row, run in results.runs if run.state == FAILED],
    }


def _frontier(results: StudyResults) -> Figure | None:
    if results.frontier is None:
        return None
    x, y = results.column(results.frontier.x), results.column(results.frontier.y)
    points = {row.name: _point(row, x, y) for row in results.rows}
    drawn = [point for point in points.values() if point is not None]
    if not drawn:
        return Figure(caption=f"No row has both {x.label} and {y.label} yet.")
    blank = [name for name, point in points.items() if point is None]
    return Figure(
        svg=frontier_figure("frontier-figure", drawn, _axis(x), _axis(y)),
        caption=f"{y.label} against {x.label}, means over seeds; bars are ± the sample standard "
        "deviation where there are three seeds or more. Joined: the configurations that no other "
        "beats in both." + (f" Without a number: {', '.join(blank)}." if blank else ""),
    )


def _point(row: RowResults, x: Column, y: Column) -> Point | None:
    across, up = row.statistics(x.metric), row.statistics(y.metric)
    if not (math.isfinite(across.mean) and math.isfinite(up.mean)):
        return None
    return Point(
        label=row.name, x=across.mean, y=up.mean, x_spread=across.spread, y_spread=up.spread
    )


def _axis(column: Column) -> Axis:
    unit = f" ({column.unit})" if column.unit else ""
    return Axis(
        label=f"{column.label}{unit} {column.arrow}".rstrip(),
        higher_is_better=(column.better or HIGHER) == HIGHER,
    )


def _curves(results: StudyResults) -> Iterator[tuple[str, Figure]]:
    """The title of each table whose rows have curves, with their figure."""
    for number, (title, rows) in enumerate(results.tables()):
        lines = []
        for row in rows:
            run = row.first(run for run in row.runs if run.state != WAITING and run.curves)
            if run is not None:
                lines.append(Line(label=row.label(run), segments=tuple(run.curves.values())))
        if lines:
            yield (
                title,
                Figure(
                    svg=curves_figure(
                        f"curves-{number}", lines, "optimiser step", "held-out PSNR (dB)"
                    ),
                    caption="Held-out PSNR while training, the first seed of each row; a line breaks "
                    "where a stage ends.",
                ),
            )
