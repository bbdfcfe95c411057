"""The report of a study: one page of HTML that needs nothing else, and the same in Markdown.

Both are made from the same tables. A study that is not finished has a report too: what failed, runs
or waits is said in its row.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen
from PIL import Image, UnidentifiedImageError

from rpiae.core.errors import RunError, UsageError
from rpiae.core.files import write_text
from rpiae.studies.comparing import (
    ProtocolDifference,
    best_rows,
    differing_fields,
    paired,
    shared_protocol,
)
from rpiae.studies.figures import Axis, Line, Point, curves_figure, frontier_figure
from rpiae.studies.reading import read_results
from rpiae.studies.results import (
    ARROWS,
    DONE,
    FAILED,
    HIGHER,
    LOWER,
    RUNNING,
    STATES,
    WAITING,
    Column,
    RowResults,
    RunResults,
    StudyResults,
)
from rpiae.studies.statistics import number

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"

#: Bytes of pictures that a page takes as they are; beyond, they are made smaller, which is said.
PICTURE_BYTES = 1_500_000
SMALLER_WIDTH = 960
SMALLER_QUALITY = 85
#: Small pictures are shown at twice their size as long as they are no wider than this, in pixels.
SHOWN_WIDTH = 900

#: Tables of more columns are set narrower.
WIDE = 8
NOTHING = "–"
#: Nothing is fetched and nothing runs, whatever the names in a study are.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@frozen(kw_only=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        best: whether it is the best of its column.
        notes: what is said below, smaller.
        warning: said below too, in the colour of warnings.
    """

    text: str
    best: bool = False
    notes: tuple[str, ...] = ()
    warning: str = ""


@frozen(kw_only=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
        num_texts: how many columns after the first are text, and aligned left.
    """

    head: tuple[Cell, ...]
    body: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    num_texts: int = 0


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


# What both say


def results_table(results: StudyResults, rows: Sequence[RowResults]) -> Table:
    """One group's rows by the study's columns, the best of each column marked."""
    best = {column.metric: best_rows(rows, column) for column in results.columns}
    head = [Cell(text="configuration"), Cell(text="seeds")]
    head += [_column_head(column) for column in results.columns]
    body = []
    for row in rows:
        measured = len(row.measured)
        count = str(measured) if measured == len(row.runs) else f"{measured} of {len(row.runs)}"
        name = Cell(
            text=row.name,
            notes=(row.summary,) if row.summary else (),
            warning=row_state(row),
        )
        body.append((name, Cell(text=count), *(_value(row, c, best) for c in results.columns)))
    marked = any(column.better for column in results.columns)
    return Table(
        head=tuple(head),
        body=tuple(body),
        caption="Mean ± sample standard deviation over seeds; of one or two seeds, the values."
        + (" Bold: the best mean of the column, as written; ties are all bold." if marked else ""),
    )


def differences_table(results: StudyResults) -> Table:
    """The study's comparisons: first row minus second, seed by seed."""
    body = []
    for comparison in results.comparisons:
        first, second = results.row(comparison.first), results.row(comparison.second)
        name = Cell(text=comparison.name, notes=(f"{comparison.first} − {comparison.second}",))
        if first is None or second is None:
            missing = comparison.first if first is None else comparison.second
            name = Cell(text=comparison.name, warning=f"no row is named {missing}")
            body.append((name, *[Cell(text=NOTHING)] * 5))
            continue
        for metric in comparison.metrics or tuple(c.metric for c in results.columns):
            column = results.column(metric)
            difference = paired(first, second, metric)
            seeds = ("seed " if difference.statistics.n == 1 else "seeds ") + " / ".join(
                map(str, difference.by_seed)
            )
            each = " / ".join(
                number(v, column.digits, signed=True) for v in difference.by_seed.values()
            )
            body.append(
                (
                    name,
                    _column_head(column),
                    Cell(
                        text=each or NOTHING,
                        notes=(seeds,) if each else (),
                        warning=difference.refused and f"not compared: {difference.refused}",
                    ),
                    Cell(text=difference.statistics.text(column.digits, signed=True)),
                    Cell(text=str(difference.statistics.n)),
                    Cell(text=_in_favour(difference.by_seed.values(), column)),
                )
            )
    heads = ("comparison", "metric", "by seed", "mean ± spread", "n", "first is better")
    return Table(
        head=tuple(Cell(text=text) for text in heads),
        body=tuple(body),
        caption="Differences between runs of the same seed, of the seeds that both rows have; "
        "spread is the sample standard deviation of the differences.",
        num_texts=1,
    )


def row_state(row: RowResults) -> str:
    """What is missing of a row: seeds that failed, run, wait, or were not evaluated."""
    parts = [(state, [r.seed for r in row.runs if r.state == state]) for state in STATES[::-1]]
    parts = [(state, seeds) for state, seeds in parts if state != DONE]
    blank = [run.seed for run in row.runs if run.state == DONE and run.metrics is None]
    parts.append(("not evaluated", blank))
    said = [f"{what}: seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for what, s in parts if s]
    return " · ".join(said) if row.runs else "no runs"


def facts(results: StudyResults) -> list[tuple[str, str]]:
    """What was run, as (number, of what)."""
    total = sum(1 for _ in results.runs)
    said = [(f"{results.count(DONE)} of {total}", "runs done")]
    for state, words in ((FAILED, "failed"), (RUNNING, "running"), (WAITING, "waiting")):
        if results.count(state):
            said.append((str(results.count(state)), words))
    said.append((str(len(results.rows)), "configurations"))
    done = [run for _, run in results.runs if run.state == DONE]
    for values, words, text in (
        ([run.seconds for run in done], "training, a shared stage with each run", _duration),
        ([run.image_passes for run in done], "image passes, likewise", _amount),
    ):
        known = [value for value in values if value is not None]
        if known:
            partly = "" if len(known) == len(done) else f" ({len(known)} of {len(done)} runs say)"
            said.append((text(sum(known)), words + partly))
    return said


def warnings_of(results: StudyResults) -> dict[str, str]:
    """Every warning of an evaluation, once → which runs it is of."""
    found: dict[str, list[str]] = {}
    for row, run in results.runs:
        for warning in run.warnings:
            found.setdefault(warning, []).append(f"{row.name} (seed {run.seed})")
    evaluated = sum(run.metrics is not None for _, run in results.runs)
    return {
        text: "all runs" if len(names) == evaluated > 1 else ", ".join(names)
        for text, names in found.items()
    }


def failures(results: StudyResults) -> list[tuple[RowResults, RunResults]]:
    """The runs that failed."""
    return [(row, run) for row, run in results.runs if run.state == FAILED]


def _column_head(column: Column) -> Cell:
    """The title with its arrow; below, the extractor of a metric that has one, and the unit."""
    notes = (column.extractor, column.unit)
    return Cell(
        text=f"{column.title} {column.arrow}".rstrip(), notes=tuple(note for note in notes if note)
    )


def _value(row: RowResults, column: Column, best: Mapping[str, frozenset[str]]) -> Cell:
    statistics = row.statistics(column.metric)
    fewer = 0 < statistics.n < len(row.measured)
    return Cell(
        text=statistics.text(column.digits),
        best=row.name in best[column.metric],
        notes=(f"n = {statistics.n}",) if fewer else (),
    )


def _in_favour(differences: Iterable[float], column: Column) -> str:
    """In how many seeds the first row is better."""
    values = list(differences)
    if not values or not column.better:
        return NOTHING
    sign = -1 if column.better == LOWER else 1
    return f"{sum(sign * value > 0 for value in values)} of {len(values)}"


def _holders(difference: ProtocolDifference) -> Iterator[tuple[str, str]]:
    """Each value with who has it; a clear majority is called the others."""
    counts = sorted(map(len, difference.values.values()), reverse=True)
    for value, names in difference.values.items():
        most = len(names) == counts[0] > max(3, counts[1])
        yield value, f"the {len(names)} others" if most else ", ".join(names)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _amount(count: float) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:,.0f}"


# HTML


@frozen(kw_only=True)
class _Section:
    """A part of the page; one without content is left out."""

    anchor: str
    title: str
    content: str


@frozen(kw_only=True)
class _Picture:
    """A picture as a data URI.

    Attributes:
        width, height: as stored, in pixels.
    """

    uri: str
    width: int
    height: int


@frozen(kw_only=True)
class _Strips:
    """The pictures of the page, and what is to be said of them."""

    pictures: Mapping[Path, _Picture] = field(factory=dict)
    problems: Mapping[Path, str] = field(factory=dict)
    smaller: bool = False


def html_report(results: StudyResults) -> str:
    """The whole page."""
    differences = differing_fields(results)
    sections = [
        _Section(anchor="run", title="What was run", content=_what_was_run(results)),
        _Section(anchor="results", title="Results", content=_results(results)),
        _Section(anchor="comparisons", title="Paired differences", content=_comparisons(results)),
        _Section(anchor="frontier", title="Frontier", content=_frontier(results)),
        _Section(anchor="pictures", title="Held-out images", content=_pictures(results)),
        _Section(anchor="curves", title="Curves", content=_curves(results)),
        _Section(anchor="protocol", title="Protocol", content=_protocol(results, differences)),
        _Section(anchor="warnings", title="Warnings", content=_warnings(results)),
        _Section(anchor="failures", title="Failures", content=_failures(results)),
        _Section(anchor="commands", title="Commands", content=_commands(results)),
    ]
    sections = [section for section in sections if section.content]
    links = "".join(f'<a href="#{s.anchor}">{s.title}</a>' for s in sections)
    style = importlib.resources.files("rpiae.studies") / "template" / "report.css"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_text(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(results.name)} · ablation study</title>",
        f"<style>\n{style.read_text('utf-8')}</style>\n</head>\n<body>",
        f"<header>\n<h1>{_text(results.name)}</h1>",
        f'<p class="lead">{_text(results.summary)}</p>' if results.summary else "",
        f"<nav>{links}</nav>\n</header>\n<main>",
        _alerts(results, differences),
        *(f'<section id="{s.anchor}">\n<h2>{s.title}</h2>\n{s.content}\n</section>' for s in sections),
        "</main>\n<footer>Written by <code>rpiae</code> from <code>study.json</code> and the runs' "
        "own files.</footer>\n</body>\n</html>\n",
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def _alerts(results: StudyResults, differences: Sequence[ProtocolDifference]) -> str:
    """What a reader has to know before the numbers."""
    said = []
    open_runs = {state: results.count(state) for state in (RUNNING, WAITING)}
    if any(open_runs.values()):
        counts = " and ".join(f"{n} {state}" for state, n in open_runs.items() if n)
        said.append(_alert("The study is not finished:", f"{counts}. The numbers are of the rest."))
    failed = failures(results)
    if failed:
        names = ", ".join(f"{row.name} (seed {run.seed})" for row, run in failed)
        count = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
        said.append(_alert(f"{count} failed:", names, link="failures"))
    if differences:
        items = "".join(
            f"<li><code>{_text(d.field)}</code>: "
            + "; ".join(f"{_text(value)} in {_text(names)}" for value, names in _holders(d))
            + "</li>"
            for d in differences
        )
        said.append(
            '<div class="alert" role="note"><strong>Not all runs were measured alike</strong>, so '
            f"their numbers do not compare. The protocols differ in:<ul>{items}</ul></div>"
        )
    return "\n".join(said)


def _alert(title: str, text: str, link: str = "") -> str:
    more = f' <a href="#{link}">Why</a>' if link else ""
    return (
        f'<div class="alert" role="note"><strong>{_text(title)}</strong> {_text(text)}{more}</div>'
    )


def _what_was_run(results: StudyResults) -> str:
    items = "".join(
        f"<li><b>{_text(n)}</b> <span>{_text(of)}</span></li>" for n, of in facts(results)
    )
    command = f"<pre><code>{_text(results.command)}</code></pre>" if results.command else ""
    return f'<ul class="facts">{items}</ul>\n{command}'


def _results(results: StudyResults) -> str:
    parts = []
    for title, rows in results.tables():
        parts.append(f"<h3>{_text(title)}</h3>\n{_html_table(results_table(results, rows), title)}")
    return "\n".join(parts) or "<p>The study has no rows.</p>"


def _comparisons(results: StudyResults) -> str:
    if not results.comparisons:
        return ""
    return _html_table(differences_table(results), "Paired differences")


def _frontier(results: StudyResults) -> str:
    if results.frontier is None:
        return ""
    x, y = results.column(results.frontier.x), results.column(results.frontier.y)
    points, blank = [], []
    for row in results.rows:
        across, up = row.statistics(x.metric), row.statistics(y.metric)
        if not (across.n and up.n and _finite(across.mean) and _finite(up.mean)):
            blank.append(row.name)
            continue
        points.append(
            Point(
                label=row.name, x=across.mean, y=up.mean, x_spread=across.spread, y_spread=up.spread
            )
        )
    if not points:
        return f"<p>No row has both {_text(x.label)} and {_text(y.label)} yet.</p>"
    figure = frontier_figure(points, _axis(x), _axis(y))
    caption = (
        f"{y.label} against {x.label}, means over seeds; bars are ± the sample standard deviation "
        "where there are three seeds or more. Joined: the configurations that no other beats in "
        "both." + (f" Without a number: {', '.join(blank)}." if blank else "")
    )
    return _figure(figure, caption)


def _axis(column: Column) -> Axis:
    unit = f" ({column.unit})" if column.unit else ""
    return Axis(
        label=f"{column.label}{unit} {column.arrow}".rstrip(),
        higher_is_better=(column.better or HIGHER) == HIGHER,
    )


def _curves(results: StudyResults) -> str:
    figures = []
    tables = results.tables()
    for title, rows in tables:
        lines = []
        for row in rows:
            run = _first(row, [r for r in row.runs if r.state != WAITING and r.curves])
            if run is not None:
                parts = tuple(
                    tuple((float(step), value) for step, value in points)
                    for points in run.curves.values()
                )
                lines.append(Line(label=_label(row, run), parts=parts))
        if lines:
            heading = f"<h3>{_text(title)}</h3>\n" if len(tables) > 1 else ""
            caption = "Held-out PSNR while training, the first seed of each row; a line breaks where a stage ends."
            figure = curves_figure(lines, "optimiser step", "held-out PSNR (dB)")
            figures.append(heading + _figure(figure, caption))
    return "\n".join(figures)


def _first(row: RowResults, runs: Sequence[RunResults]) -> RunResults | None:
    """Of the runs, the one with the lowest seed."""
    return min(runs, key=lambda run: run.seed, default=None)


def _label(row: RowResults, run: RunResults) -> str:
    """The row's name; with the seed if it is not the row's first."""
    lowest = min(other.seed for other in row.runs)
    return row.name if run.seed == lowest else f"{row.name} (seed {run.seed})"


def _pictures(results: StudyResults) -> str:
    """The same held-out images of every row, one strip below the other."""
    shown: list[tuple[str, RowResults | None, Path | None]] = []
    if results.originals.is_file():
        shown.append(("originals", None, results.originals))
    for row in results.rows:
        run = _first(row, [r for r in row.runs if r.state == DONE and r.pictures.is_file()])
        if run is None:
            shown.append((row.name, row, None))
        else:
            shown.append((_label(row, run), row, run.pictures))
    strips = _embed([path for _, _, path in shown if path is not None])
    if not strips.pictures and not strips.problems:
        return ""
    lines = []
    for label, owner, path in shown:
        picture = strips.pictures.get(path) if path else None
        if picture is None:
            reason = strips.problems.get(path, "") if path else "no pictures"
            content = f'<small class="state">{_text(reason)}</small>'
        else:
            what = "The held-out originals" if owner is None else f"Reconstructions by {label}"
            double = 2 if picture.width * 2 <= SHOWN_WIDTH else 1
            content = (
                f'<img src="{picture.uri}" alt="{_text(what)}" width="{picture.width * double}" '
                f'height="{picture.height * double}">'
            )
        name = f"<em>{label}</em>" if owner is None else _text(label)
        lines.append(f'<tr><th scope="row">{name}</th><td>{content}</td></tr>')
    smaller = " They are made smaller here; the runs' folders have them as they are."
    caption = "The same held-out images in every line: the originals, then what each configuration makes of them (its first seed)."
    return (
        '<div class="scroll" role="region" tabindex="0" aria-label="Held-out images">'
        f'<table class="strips"><caption><span>{caption}{smaller if strips.smaller else ""}</span></caption>'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def _embed(paths: Sequence[Path]) -> _Strips:
    """Pictures as data URIs: as they are, or smaller if they are more than a page should hold."""
    stored: dict[Path, tuple[bytes, str, int, int]] = {}
    problems = {}
    for path in paths:
        try:
            content = path.read_bytes()
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
                picture.load()
                kind = (picture.format or "").lower()
                stored[path] = content, kind, picture.width, picture.height
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            problems[path] = f"{path.name} is damaged"
    smaller = sum(len(content) for content, *_ in stored.values()) > PICTURE_BYTES
    if smaller:
        stored = {path: _smaller(content) for path, (content, *_) in stored.items()}
    pictures = {
        path: _Picture(
            uri=f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
            width=width,
            height=height,
        )
        for path, (content, kind, width, height) in stored.items()
    }
    return _Strips(pictures=pictures, problems=problems, smaller=smaller)


def _smaller(content: bytes) -> tuple[bytes, str, int, int]:
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        small = picture.convert("RGB")
    if small.width > SMALLER_WIDTH:
        height = max(1, round(small.height * SMALLER_WIDTH / small.width))
        small = small.resize((SMALLER_WIDTH, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=SMALLER_QUALITY, optimize=True)
    return file.getvalue(), "jpeg", small.width, small.height


def _protocol(results: StudyResults, differences: Sequence[ProtocolDifference]) -> str:
    shared = shared_protocol(results)
    if not shared and not differences:
        return ""
    parts = []
    if differences:
        lines = [(d.field, value, names) for d in differences for value, names in _holders(d)]
        table = _text_table(("field", "value", "in"), lines, "Where the protocols differ.")
        parts.append(_html_table(table, "Where the protocols differ"))
    if shared:
        caption = "What all evaluated runs have in common."
        table = _text_table(("field", "value"), list(shared.items()), caption)
        parts.append(_html_table(table, "Protocol"))
    return "\n".join(parts)


def _warnings(results: StudyResults) -> str:
    items = "".join(
        f"<li>{_text(text)} <small>{_text(names)}</small></li>"
        for text, names in warnings_of(results).items()
    )
    return f"<ul>{items}</ul>" if items else ""


def _failures(results: StudyResults) -> str:
    return "\n".join(
        f"<h3>{_text(row.name)} (seed {run.seed})</h3>\n"
        f"<pre>{_text(run.error or 'no message')}</pre>"
        for row, run in failures(results)
    )


def _commands(results: StudyResults) -> str:
    parts = []
    for row in results.rows:
        commands = "".join(
            f"<p>Seed {run.seed}, {run.state}:</p>"
            f"<pre><code>{_text(run.command or 'no command is recorded')}</code></pre>"
            for run in row.runs
        )
        run = _first(row, [r for r in row.runs if r.config])
        config = (
            f"<details><summary>Resolved config (seed {run.seed})</summary>"
            f"<pre><code>{_text(run.config)}</code></pre></details>"
            if run
            else ""
        )
        parts.append(f"<details><summary>{_text(row.name)}</summary>{commands}{config}</details>")
    return "\n".join(parts)


def _text_table(heads: Sequence[str], lines: Sequence[Sequence[str]], caption: str) -> Table:
    return Table(
        head=tuple(Cell(text=text) for text in heads),
        body=tuple(tuple(Cell(text=text) for text in line) for line in lines),
        caption=caption,
        num_texts=len(heads) - 1,
    )


def _html_table(table: Table, title: str) -> str:
    """A table that scrolls sideways on its own where the page is narrow."""
    kinds = [' class="text"' if 0 < i <= table.num_texts else "" for i in range(len(table.head))]
    heads = "".join(
        f'<th scope="col"{kind}>{_html_cell(cell)}</th>'
        for cell, kind in zip(table.head, kinds, strict=True)
    )
    lines = []
    for first, *rest in table.body:
        cells = "".join(
            f"<td{kind}>{_html_cell(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row">{_html_cell(first)}</th>{cells}</tr>')
    wide = ' class="wide"' if len(table.head) > WIDE else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(title)}"><table{wide}>'
        f"<caption><span>{_text(table.caption)}</span></caption>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def _html_cell(cell: Cell) -> str:
    text, mark, spread = _text(cell.text).partition(" ± ")
    for arrow in ARROWS.values():
        text = text.replace(f" {arrow}", f"&nbsp;{arrow}")
    if spread:
        text += f' <span class="spread">{mark.strip()} {spread}</span>'
    if cell.best:
        text = f"<strong>{text}</strong>"
    notes = "".join(f"<small>{_text(note)}</small>" for note in cell.notes)
    warning = f'<small class="state">{_text(cell.warning)}</small>' if cell.warning else ""
    return text + notes + warning


def _figure(figure: str, caption: str) -> str:
    return f'<figure><div class="scroll">{figure}</div><figcaption>{_text(caption)}</figcaption></figure>'


def _finite(value: float) -> bool:
    return value - value == 0


def _text(text: str) -> str:
    """Text for HTML."""
    return html.escape(_clean(text))


def _clean(text: str) -> str:
    """Text without the characters that no page or file may hold."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


# Markdown


def markdown_report(results: StudyResults) -> str:
    """The same tables for GitHub."""
    differences = differing_fields(results)
    blocks = [f"# {_plain(results.name)}", _plain(results.summary), "## What was run"]
    blocks.append("\n".join(f"- **{_plain(n)}** {_plain(of)}" for n, of in facts(results)))
    blocks.append(_fence(results.command))
    blocks.append("## Results")
    tables = results.tables()
    for title, rows in tables:
        blocks += [f"### {_plain(title)}", *_markdown_table(results_table(results, rows))]
    if not tables:
        blocks.append("The study has no rows.")
    if results.comparisons:
        blocks += ["## Paired differences", *_markdown_table(differences_table(results))]
    if differences:
        blocks += ["## Protocol", "**Not all runs were measured alike**; the protocols differ in:"]
        blocks.append(
            "\n".join(
                f"- {_plain(d.field)}: "
                + "; ".join(f"{_plain(value)} in {_plain(names)}" for value, names in _holders(d))
                for d in differences
            )
        )
    shared = shared_protocol(results)
    if shared:
        blocks += [] if differences else ["## Protocol"]
        blocks.append("\n".join(f"- {_plain(path)}: {_plain(v)}" for path, v in shared.items()))
    warnings = warnings_of(results)
    if warnings:
        items = (f"- {_plain(text)} ({_plain(names)})" for text, names in warnings.items())
        blocks += ["## Warnings", "\n".join(items)]
    failed = failures(results)
    if failed:
        blocks.append("## Failures")
    for row, run in failed:
        blocks += [f"{_plain(row.name)} (seed {run.seed}):", _fence(run.error or "no message")]
    blocks.append("## Commands")
    for row in results.rows:
        commands = "\n".join(run.command for run in row.runs if run.command)
        blocks += [_plain(row.name), _fence(commands or "no command is recorded")]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _markdown_table(table: Table) -> list[str]:
    """The table, and its caption."""
    kinds = [":--" if i <= table.num_texts else "--:" for i in range(len(table.head))]
    lines = [[_markdown_cell(cell) for cell in table.head], kinds]
    lines += [[_markdown_cell(cell) for cell in row] for row in table.body]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return [text, f"*{_plain(table.caption)}*" if table.caption else ""]


def _markdown_cell(cell: Cell) -> str:
    text = _inline(cell.text)
    if cell.best:
        text = f"**{text}**"
    notes = "; ".join(_inline(note) for note in (*cell.notes, cell.warning) if note)
    return f"{text} ({notes})" if notes else text


def _plain(text: str) -> str:
    """Text on one line of its own: nothing in it makes a heading, a list or a link's address."""
    return _LEADING.sub(r"\1\\\2", _inline(text))


def _inline(text: str) -> str:
    """Text within a line, with nothing in it that Markdown or HTML would take for its own: emphasis,
    code, cells, links (and what GitHub makes one of by itself), tags, formulas."""
    text = _ACTIVE.sub(r"\\\g<0>", _clean(" ".join(text.split())))
    return html.escape(text, quote=False)


#: Characters that begin something within a line of Markdown, and what GitHub makes links of.
_ACTIVE = re.compile(r"[\\`*_|~!$@#]|\](?=[\[(:])|:(?=//)|(?<=www)\.", re.IGNORECASE)

#: What makes a heading, a list or a line at the beginning of a line.
_LEADING = re.compile(r"^(\d*)([-+=]+(?=\s|$)|[.)](?=\s|$)|\[)")


def _fence(text: str) -> str:
    """Text as it is; the fence is longer than any in it."""
    if not text:
        return ""
    text, fence = _clean(text), "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text.rstrip()}\n{fence}"
