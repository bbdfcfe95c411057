"""What a study's report says in words and numbers, whether as HTML or as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import frozen

from rpiae.studies.comparing import (
    PairedDifference,
    ProtocolDifference,
    best_rows,
    paired,
    shared_protocol,
)
from rpiae.studies.configs import ComparisonConfig
from rpiae.studies.results import (
    DONE,
    FAILED,
    LOWER,
    RUNNING,
    WAITING,
    Column,
    RowResults,
    StudyResults,
)
from rpiae.studies.statistics import number

NOTHING = "–"


@frozen(kw_only=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what it says.
        arrow: which way is better, behind it.
        best: whether it is the best of its column.
        notes: what is said below, smaller.
        warning: said below too, in the colour of warnings.
    """

    text: str
    arrow: str = ""
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
    body = [line for comparison in results.comparisons for line in _compared(results, comparison)]
    return Table(
        head=_cells("comparison", "metric", "by seed", "mean ± spread", "n", "first is better"),
        body=tuple(body),
        caption="Differences between runs of the same seed, of the seeds that both rows have; "
        "spread is the sample standard deviation of the differences.",
        num_texts=1,
    )


def shared_table(results: StudyResults) -> Table:
    """The fields of the protocol in which all evaluated runs agree."""
    return Table(
        head=_cells("field", "value"),
        body=tuple(_cells(*line) for line in shared_protocol(results).items()),
        caption="What all evaluated runs have in common.",
        num_texts=1,
    )


def differing_table(differing: Sequence[ProtocolDifference]) -> Table:
    """The fields of the protocol in which they differ."""
    return Table(
        head=_cells("field", "value", "in"),
        body=tuple(_cells(d.field, *line) for d in differing for line in d.held_by()),
        caption="Where the protocols differ.",
        num_texts=2,
    )


def row_state(row: RowResults) -> str:
    """What is missing of a row: seeds that failed, run, wait, or were not evaluated."""
    seeds = {
        state: [run.seed for run in row.runs if run.state == state]
        for state in (FAILED, WAITING, RUNNING)
    }
    seeds["not evaluated"] = [r.seed for r in row.runs if r.state == DONE and r.metrics is None]
    said = [
        f"{k}: seed{'s' * (len(s) > 1)} {', '.join(map(str, s))}" for k, s in seeds.items() if s
    ]
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
    runs_of: dict[str, list[str]] = {}
    for row, run in results.runs:
        for warning in run.warnings:
            runs_of.setdefault(warning, []).append(f"{row.name} (seed {run.seed})")
    evaluated = sum(run.metrics is not None for _, run in results.runs)
    return {
        text: "all runs" if len(names) == evaluated > 1 else ", ".join(names)
        for text, names in runs_of.items()
    }


def _cells(*texts: str) -> tuple[Cell, ...]:
    return tuple(Cell(text=text) for text in texts)


def _compared(results: StudyResults, comparison: ComparisonConfig) -> Iterator[tuple[Cell, ...]]:
    """A comparison's lines, one for each metric."""
    first, second = results.row(comparison.first), results.row(comparison.second)
    if first is None or second is None:
        missing = comparison.first if first is None else comparison.second
        name = Cell(text=comparison.name, warning=f"no row is named {missing}")
        yield (name, *[Cell(text=NOTHING)] * 5)
        return
    name = Cell(text=comparison.name, notes=(f"{comparison.first} − {comparison.second}",))
    for metric in comparison.metrics or tuple(c.metric for c in results.columns):
        yield (name, *_compared_by(results.column(metric), paired(first, second, metric)))


def _compared_by(column: Column, difference: PairedDifference) -> tuple[Cell, ...]:
    statistics = difference.statistics
    each = " / ".join(number(v, column.digits, signed=True) for v in statistics.values)
    seeds = " / ".join(map(str, difference.by_seed))
    return (
        _column_head(column),
        Cell(
            text=each or NOTHING,
            notes=(f"{'seed' if statistics.n == 1 else 'seeds'} {seeds}",) if each else (),
            warning=difference.refused and f"not compared: {difference.refused}",
        ),
        *_cells(
            statistics.text(column.digits, signed=True),
            str(statistics.n),
            _in_favour(statistics.values, column),
        ),
    )


def _column_head(column: Column) -> Cell:
    """The title with its arrow; below, the extractor of a metric that has one, and the unit."""
    notes = (column.extractor, column.unit)
    return Cell(text=column.title, arrow=column.arrow, notes=tuple(filter(None, notes)))


def _value(row: RowResults, column: Column, best: Mapping[str, frozenset[str]]) -> Cell:
    statistics = row.statistics(column.metric)
    fewer = 0 < statistics.n < len(row.measured)
    return Cell(
        text=statistics.text(column.digits),
        best=row.name in best[column.metric],
        notes=(f"n = {statistics.n}",) if fewer else (),
    )


def _in_favour(differences: Sequence[float], column: Column) -> str:
    """In how many seeds the first row is better."""
    if not differences or not column.better:
        return NOTHING
    sign = -1 if column.better == LOWER else 1
    return f"{sum(sign * value > 0 for value in differences)} of {len(differences)}"


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
