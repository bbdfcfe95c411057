"""What a study measured, read from the folder that ``rpiae ablate`` leaves behind.

A study has rows (one per configuration), a row has runs (one per seed). Runs that failed or have yet
to start are part of the results: they have a state and no metrics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

from attrs import field, frozen

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.runtime.files import open_regular
from rpiae.core.runtime.names import shown
from rpiae.evaluation.protocol import EVALUATION_FILE, number_protocol, protocol_differences
from rpiae.evaluation.records import measured_as, printable_tree

STUDY_FILE = "study.json"
FORMAT = 1
DONE, FAILED, WAITING, RUNNING = "done", "failed", "waiting", "running"
STATES = (DONE, RUNNING, WAITING, FAILED)
HIGHER, LOWER = "higher", "lower"
ARROWS = {HIGHER: "↑", LOWER: "↓"}

#: Seeds from which on a spread is given; of fewer, the values are.
SEEDS_FOR_SPREAD = 3
MINUS = "\N{MINUS SIGN}"

Points = tuple[tuple[int, float], ...]
T = TypeVar("T")


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with so many decimal places, a true minus sign and no negative zero."""
    sign = "+" if signed and round(value, digits) != 0 else ""
    return f"{value:{sign}z.{digits}f}".replace("-", MINUS)


@frozen(kw_only=True)
class Summary:
    """Statistics of one metric over the seeds of a row.

    Attributes:
        values: one per seed, in the metric's unit.
    """

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Their mean; NaN without a seed."""
        return sum(self.values) / self.n if self.values else math.nan

    @property
    def spread(self) -> float | None:
        """The sample standard deviation (divided by n − 1); None for fewer than three seeds."""
        if self.n < SEEDS_FOR_SPREAD:
            return None
        mean = self.mean
        return math.sqrt(sum((value - mean) ** 2 for value in self.values) / (self.n - 1))

    def text(self, digits: int, *, signed: bool = False) -> str:
        """``31.2`` of one seed, ``31.2 / 31.4`` of two, ``31.20 ± 0.12`` of more.

        Args:
            digits: decimal places.
            signed: whether positive numbers have a sign too.
        """
        if self.spread is None:
            return " / ".join(number(value, digits, signed=signed) for value in self.values) or "–"
        return f"{number(self.mean, digits, signed=signed)} ± {number(self.spread, digits)}"


@frozen(kw_only=True)
class RunResults:
    """One run: a configuration and a seed.

    Attributes:
        seed: its seed.
        folder: where it is.
        command: what repeats it.
        state: ``done``, ``failed``, ``waiting`` or ``running``.
        error: why it failed.
        metrics: by name; None if it is not done or was not evaluated.
        protocol: how the metrics were measured.
        warnings: what the evaluation warned of.
        config: its resolved config, TOML; empty if it has not started.
        curves: held-out PSNR (dB) by stage: (step of the whole run, value).
        seconds: of training; None where it is not known.
        image_passes: images that went through training; None where it is not known.
    """

    seed: int
    folder: Path
    command: str = ""
    state: str = DONE
    error: str = ""
    metrics: Mapping[str, float] | None = None
    protocol: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    config: str = ""
    curves: Mapping[str, Points] = field(factory=dict)
    seconds: float | None = None
    image_passes: float | None = None

    @property
    def pictures(self) -> Path:
        """The strip of held-out reconstructions, which may be missing."""
        return self.folder / "pictures" / "held-out.png"


@frozen(kw_only=True)
class RowResults:
    """One configuration with all its seeds."""

    name: str
    summary: str = ""
    groups: tuple[str, ...] = ()
    runs: tuple[RunResults, ...] = ()

    @property
    def measured(self) -> tuple[RunResults, ...]:
        """The runs that have metrics."""
        return tuple(run for run in self.runs if run.metrics is not None)

    def by_seed(self, metric: str) -> dict[int, float]:
        """A metric's value by seed, where it was measured."""
        return {r.seed: r.metrics[metric] for r in self.runs if r.metrics and metric in r.metrics}

    def statistics(self, metric: str) -> Summary:
        """A metric over the row's seeds."""
        return Summary(values=tuple(self.by_seed(metric).values()))


@frozen(kw_only=True)
class Column:
    """A metric of the tables.

    Attributes:
        metric: its name in ``evaluation.json``.
        title: what the header says.
        unit: of its values, if they have one.
        better: ``higher``, ``lower``, or empty where neither is.
        digits: decimal places.
    """

    metric: str
    title: str
    unit: str = ""
    better: str = ""
    digits: int = 2

    @property
    def arrow(self) -> str:
        """Which way is better: ↑, ↓ or nothing."""
        return ARROWS.get(self.better, "")

    @property
    def extractor(self) -> str:
        """``[tiny]`` of a metric such as ``rfd[tiny]``, unless the title says it; else nothing."""
        _, bracket, argument = self.metric.partition("[")
        return "" if bracket + argument in self.title else bracket + argument

    @property
    def label(self) -> str:
        """Title and extractor on one line."""
        return f"{self.title} {self.extractor}".rstrip()


@frozen(kw_only=True)
class Comparison:
    """Two rows to compare seed by seed, by the given metrics (all columns if none)."""

    name: str
    first: str
    second: str
    metrics: tuple[str, ...] = ()


@frozen(kw_only=True)
class Frontier:
    """The two metrics of the trade-off."""

    x: str
    y: str


@frozen(kw_only=True)
class PairedDifference:
    """First row minus second row, seed by seed.

    Attributes:
        metric: of which.
        by_seed: the difference by seed, of the seeds that both rows have, ascending.
        refused: why the two are not compared; empty where they are.
    """

    metric: str
    by_seed: Mapping[int, float]
    refused: str = ""

    @property
    def summary(self) -> Summary:
        """Statistics of the differences."""
        return Summary(values=tuple(self.by_seed.values()))

    @property
    def n(self) -> int:
        """How many seeds both rows have."""
        return self.summary.n

    @property
    def mean(self) -> float:
        """Mean difference; NaN without a common seed."""
        return self.summary.mean

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the differences; None for fewer than three seeds."""
        return self.summary.spread


@frozen(kw_only=True)
class ProtocolDifference:
    """A field of the protocol in which runs differ.

    Attributes:
        field: its path, such as ``images.count``.
        values: value → who has it (row, or row and seed where a row's seeds differ), the most
            frequent first.
    """

    field: str
    values: Mapping[str, tuple[str, ...]]


@frozen(kw_only=True)
class StudyResults:
    """A study: what it asks, and what every run of it measured.

    Attributes:
        folder: the study's folder.
        columns: of the tables; every metric that occurs where the study names none.
        groups: group → title of its table, in the order of the tables.
    """

    folder: Path
    name: str
    summary: str = ""
    command: str = ""
    rows: tuple[RowResults, ...] = ()
    columns: tuple[Column, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    frontier: Frontier | None = None
    groups: Mapping[str, str] = field(factory=dict)

    @property
    def originals(self) -> Path:
        """The strip of held-out originals, beside the first run's reconstructions; may be missing."""
        found = [run.pictures.with_name("originals.png") for _, run in self.runs]
        return next((path for path in found if path.is_file()), self.folder / "originals.png")

    @property
    def runs(self) -> Iterator[tuple[RowResults, RunResults]]:
        """Every run, with its row."""
        return ((row, run) for row in self.rows for run in row.runs)

    def row(self, name: str) -> RowResults | None:
        """The row of that name."""
        return next((row for row in self.rows if row.name == name), None)

    def column(self, metric: str) -> Column:
        """A metric's column; one made up from what was measured if the study names none."""
        for column in self.columns:
            if column.metric == metric:
                return column
        return _column_of(metric, self.rows)

    def count(self, state: str) -> int:
        """How many runs are in a state."""
        return sum(run.state == state for _, run in self.runs)

    def tables(self) -> list[tuple[str, tuple[RowResults, ...]]]:
        """Title and rows of each group that has rows; named groups first, in their order."""
        found = [group for row in self.rows for group in row.groups or ("",)]
        keys = dict.fromkeys([*self.groups, *found])
        members = {
            key: tuple(row for row in self.rows if key in (row.groups or ("",))) for key in keys
        }
        return [(self.groups.get(k) or k or "Results", rows) for k, rows in members.items() if rows]


def paired(first: RowResults, second: RowResults, metric: str) -> PairedDifference:
    """First minus second, of the seeds that both rows have.

    Numbers that were measured differently are not subtracted.
    """
    refused = measured_differently((first, second), metric)
    if refused:
        return PairedDifference(metric=metric, by_seed={}, refused=refused)
    ours, theirs = first.by_seed(metric), second.by_seed(metric)
    common = sorted(ours.keys() & theirs.keys())
    return PairedDifference(metric=metric, by_seed={s: ours[s] - theirs[s] for s in common})


def measured_differently(rows: Sequence[RowResults], metric: str) -> str:
    """Why a number of some rows cannot be compared; empty where it can."""
    protocols = [
        number_protocol(run.protocol, metric)
        for row in rows
        for run in row.measured
        if run.protocol is not None and metric in (run.metrics or {})
    ]
    found = [text for other in protocols[1:] for text in protocol_differences(protocols[0], other)]
    return "; ".join(dict.fromkeys(found))


def best_rows(rows: Sequence[RowResults], column: Column) -> frozenset[str]:
    """Names of the rows with the best mean, ties included.

    None if the column has no better way, if fewer than two rows have a number (one is not the best),
    or if they were measured differently.
    Means that are written alike are alike: they are compared at the column's decimal places.
    """
    means = {row.name: row.statistics(column.metric).mean for row in rows}
    means = {k: round(v, column.digits) for k, v in means.items() if not math.isnan(v)}
    if len(means) < 2 or not column.better or measured_differently(rows, column.metric):
        return frozenset()
    best = (max if column.better == HIGHER else min)(means.values())
    return frozenset(name for name, mean in means.items() if mean == best)


def flat(protocol: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested protocol as dotted path → text."""
    fields: dict[str, str] = {}
    for key, value in protocol.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            fields |= flat(value, f"{path}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            fields[path] = text
    return fields


def shared_protocol(results: StudyResults) -> dict[str, str]:
    """The fields in which all evaluated runs agree: path → text."""
    protocols = [flat(run.protocol) for _, run in results.runs if run.protocol is not None]
    first = protocols[0] if protocols else {}
    return {k: v for k, v in first.items() if all(p.get(k) == v for p in protocols)}


def _of_a_missing_metric(path: str, run: RunResults) -> bool:
    """Whether a field is about a metric that a run has not got."""
    prefix, _, rest = path.partition(".")
    known = run.metrics or {}
    return prefix == "metrics" and not any(rest.startswith(f"{name}.") for name in known)


def differing_fields(results: StudyResults) -> tuple[ProtocolDifference, ...]:
    """The fields of the protocol in which evaluated runs differ.

    A metric that a run has not got, such as drift from a pivot where there is none, is no difference.
    """
    protocols = [(row, run, flat(run.protocol)) for row, run in results.runs if run.protocol]
    paths = dict.fromkeys(path for _, _, protocol in protocols for path in protocol)
    differences = []
    for path in paths:
        found = [
            (row, run, protocol.get(path, "not given"))
            for row, run, protocol in protocols
            if not _of_a_missing_metric(path, run)
        ]
        if len({value for _, _, value in found}) < 2:
            continue
        of_row: dict[str, set[str]] = {}
        for row, _, value in found:
            of_row.setdefault(row.name, set()).add(value)
        holders: dict[str, list[str]] = {}
        for row, run, value in found:
            alone = len(of_row[row.name]) > 1
            holder = f"{row.name} (seed {run.seed})" if alone else row.name
            names = holders.setdefault(value, [])
            if holder not in names:
                names.append(holder)
        ordered = sorted(holders.items(), key=lambda item: -len(item[1]))
        values = {value: tuple(names) for value, names in ordered}
        differences.append(ProtocolDifference(field=path, values=values))
    return tuple(differences)


def read_results(folder: Path) -> StudyResults:
    """Read a study's folder, finished or not.

    Raises:
        UsageError: if the folder holds no study.
        CheckpointError: if a file in it is damaged.
    """
    path = folder / STUDY_FILE
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no study: it has no {STUDY_FILE}. "
            f"Make one with: rpiae ablate STUDY.toml --out {folder}"
        )
    study = _read(path)
    assert study is not None
    version = study.get("format", int)
    if version != FORMAT:
        raise CheckpointError(f"{path} is of format {version}; this rpiae reads format {FORMAT}")
    rows = tuple(_read_row(row, folder, study.data.get("evaluation")) for row in study.each("rows"))
    columns = tuple(_read_column(column, rows) for column in study.each("columns"))
    if not columns:
        occurring = dict.fromkeys(m for row in rows for r in row.measured for m in r.metrics or ())
        columns = tuple(_column_of(metric, rows) for metric in occurring)
    frontier = study.inner("frontier")
    return StudyResults(
        folder=folder,
        name=study.get("name", str),
        summary=study.get("summary", str, ""),
        command=study.get("command", str, ""),
        rows=rows,
        columns=columns,
        comparisons=tuple(_read_comparison(entry) for entry in study.each("comparisons")),
        frontier=None
        if frontier is None
        else Frontier(x=frontier.get("x", str), y=frontier.get("y", str)),
        groups=study.mapping("groups", str),
    )


@frozen
class _Fields:
    """An object of a JSON file; a field of the wrong kind is a damaged file.

    Attributes:
        path: the file.
        at: where in the file, for messages.
        data: the object.
    """

    path: Path
    at: str
    data: Mapping[str, Any]

    def get(self, name: str, kind: type[T], default: T | None = None) -> T:
        """A field of a kind; without a default, it has to be there."""
        value: Any = self.data.get(name)
        if value is None and default is not None:
            return default
        if not _is(value, kind):
            raise self._damaged(name, value, kind)
        return cast(T, value)

    def each(self, name: str) -> Iterator[_Fields]:
        """The objects of a list; none if it is missing."""
        for index, value in enumerate(self.get(name, list, [])):
            if not isinstance(value, dict):
                raise self._damaged(f"{name}[{index}]", value, dict)
            yield _Fields(self.path, f"{self.at}{name}[{index}].", value)

    def inner(self, name: str) -> _Fields | None:
        """An object, if it is there and not empty."""
        value = self.get(name, dict, {})
        return _Fields(self.path, f"{self.at}{name}.", value) if value else None

    def mapping(self, name: str, kind: type[T]) -> dict[str, T]:
        """An object whose values are of one kind; null is left out."""
        inner = self.inner(name)
        if inner is None:
            return {}
        return {key: inner.get(key, kind) for key, value in inner.data.items() if value is not None}

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; empty if it is missing."""
        values = self.get(name, list, [])
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self._damaged(f"{name}[{index}]", value, str)
        return tuple(values)

    def _damaged(self, name: str, value: Any, kind: type) -> CheckpointError:
        expected = {float: "a number", int: "a whole number", str: "a string", list: "a list"}
        what = "missing" if value is None else f"{value!r:.60}"
        return CheckpointError(
            f"{self.path} is damaged: {self.at}{name} is {what}, "
            f"expected {expected.get(kind, 'an object')}"
        )


def _is(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a kind; true is no number, and every whole number is one."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _read(path: Path) -> _Fields | None:
    """The object in a JSON file, if there is such a file."""
    try:
        with open_regular(path) as file:
            data = json.loads(file.read().decode("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged: it holds no object")
    return _Fields(path, "", data)


def _read_row(row: _Fields, folder: Path, measured_with: Any) -> RowResults:
    return RowResults(
        name=row.get("name", str),
        summary=row.get("summary", str, ""),
        groups=row.texts("groups"),
        runs=tuple(_read_run(run, folder, measured_with) for run in row.each("runs")),
    )


def _read_run(run: _Fields, study: Path, measured_with: Any) -> RunResults:
    folder = study / _inside(run)
    state = run.get("state", str)
    if state not in STATES:
        raise CheckpointError(
            f"{run.path} is damaged: {run.at}state is {state!r}, expected {', '.join(STATES)}"
        )
    # An evaluation of a run that is not done is one of an earlier attempt.
    evaluation = _read(folder / EVALUATION_FILE) if state == DONE else None
    if evaluation and measured_with:
        evaluation = _of_the_study(evaluation, measured_with)
    summary = _read(folder / "summary.json") if state == DONE else None
    warnings = evaluation.texts("warnings") if evaluation else ()
    if (
        evaluation
        and measured_with
        and evaluation.data.get("config", measured_with) != printable_tree(measured_with)
    ):
        # Somebody measured the run again, on other images or with other metrics.
        warnings = ("measured otherwise than the study says since: rpiae ablate measures it again",)
        evaluation = None
    protocol = evaluation and evaluation.inner("protocol")
    seconds, image_passes = _training(summary)
    return RunResults(
        seed=run.get("seed", int),
        folder=folder,
        command=run.get("command", str, ""),
        state=state,
        error=run.get("error", str, ""),
        metrics=None if evaluation is None else _metrics(evaluation),
        protocol=protocol.data if protocol else None,
        warnings=warnings,
        config=_text(folder / "config.toml"),
        curves=_read_curves(folder / "events.jsonl"),
        seconds=seconds,
        image_passes=image_passes,
    )


def _inside(run: _Fields) -> str:
    """A run's folder below its study's: a study that somebody sends names no other places."""
    name = run.get("folder", str)
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise CheckpointError(
            f"{run.path} is damaged: {run.at}folder is {shown(name)}, expected one below the study's"
        )
    return name


def _of_the_study(evaluation: _Fields, measured_with: Any) -> _Fields:
    """The evaluation that the study asks for, of all that its file holds; else the newest."""
    found = [each.data for each in evaluation.each("evaluations")]
    chosen = measured_as(found, measured_with)
    return evaluation if chosen is None else _Fields(evaluation.path, "", chosen)


def _metrics(evaluation: _Fields) -> dict[str, float]:
    """Metrics that were measured: a NaN was not."""
    measured = evaluation.mapping("metrics", float)
    return {name: float(value) for name, value in measured.items() if not math.isnan(value)}


def _training(summary: _Fields | None) -> tuple[float | None, float | None]:
    """Seconds and image passes of all stages that trained, where the summary says so."""
    stages = [] if summary is None else list(summary.each("stages"))
    trained = [stage for stage in stages if "seconds" in stage.data]
    if not trained:
        return None, None
    seconds = [stage.get("seconds", float) for stage in trained]
    if not all("images_per_second" in stage.data for stage in trained):
        return sum(seconds), None
    rates = [stage.get("images_per_second", float) for stage in trained]
    return sum(seconds), sum(s * rate for s, rate in zip(seconds, rates, strict=True))


def _text(path: Path) -> str:
    """A file's text, or nothing if it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _read_curves(path: Path) -> dict[str, Points]:
    """Held-out PSNR by stage, the stages one after the other as in ``curves.png``.

    A line that was cut off when the run was killed is passed over.
    """
    first_step: dict[str, int] = {}
    curves: dict[str, dict[int, float]] = {}
    offset = 0
    for line in _text(path).splitlines():
        if '"StepDone"' in line:
            continue
        try:
            row = json.loads(line)
            event = row["event"]
            if event == "StageStarted":
                first_step.setdefault(row["stage"], offset)
            elif event == "Evaluated" and math.isfinite(row["metrics"]["psnr"]):
                step = first_step[row["stage"]] + row["step"]
                curves.setdefault(row["stage"], {})[step] = float(row["metrics"]["psnr"])
            elif event == "StageEnded":
                offset = first_step[row["stage"]] + row["steps"]
        except (ValueError, KeyError, TypeError):
            continue
    return {stage: tuple(sorted(points.items())) for stage, points in curves.items()}


def _read_column(column: _Fields, rows: Sequence[RowResults]) -> Column:
    metric = column.get("metric", str)
    better = column.get("better", str, "")
    if better not in (HIGHER, LOWER, ""):
        raise CheckpointError(
            f"{column.path} is damaged: {column.at}better is {better!r}, "
            "expected 'higher', 'lower' or ''"
        )
    usual = _column_of(metric, rows)
    return Column(
        metric=metric,
        title=column.get("title", str, "") or usual.title,
        unit=column.get("unit", str, ""),
        better=better,
        digits=max(0, column.get("digits", int, usual.digits)),
    )


def _column_of(metric: str, rows: Sequence[RowResults]) -> Column:
    """A column for a metric that the study says nothing about: about four significant digits."""
    largest = max((abs(v) for row in rows for v in row.by_seed(metric).values()), default=0.0)
    digits = 1 if largest >= 100 else 2 if largest >= 10 else 3
    return Column(metric=metric, title=metric.partition("[")[0], digits=digits)


def _read_comparison(comparison: _Fields) -> Comparison:
    first, second = comparison.get("first", str), comparison.get("second", str)
    return Comparison(
        name=comparison.get("name", str, "") or f"{first} against {second}",
        first=first,
        second=second,
        metrics=comparison.texts("metrics"),
    )
