"""What a study measured.

A study has rows (one per configuration), a row has runs (one per seed). Runs that failed or have yet
to start are part of the results: they have a state and no metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from rpiae.studies.configs import ComparisonConfig, FrontierConfig
from rpiae.studies.statistics import Statistics

STUDY_FILE = "study.json"
FORMAT = 1
DONE, FAILED, WAITING, RUNNING = "done", "failed", "waiting", "running"
STATES = (DONE, RUNNING, WAITING, FAILED)
HIGHER, LOWER = "higher", "lower"
ARROWS = {HIGHER: "↑", LOWER: "↓"}

Points = tuple[tuple[int, float], ...]


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

    def first(self, runs: Iterable[RunResults]) -> RunResults | None:
        """Of some of its runs, the one with the lowest seed."""
        return min(runs, key=lambda run: run.seed, default=None)

    def label(self, run: RunResults) -> str:
        """The row's name, with the run's seed where that is not the row's first."""
        lowest = min(other.seed for other in self.runs)
        return self.name if run.seed == lowest else f"{self.name} (seed {run.seed})"

    def by_seed(self, metric: str) -> dict[int, float]:
        """A metric's value by seed, where it was measured."""
        return {r.seed: r.metrics[metric] for r in self.runs if r.metrics and metric in r.metrics}

    def statistics(self, metric: str) -> Statistics:
        """A metric over the row's seeds."""
        return Statistics(values=tuple(self.by_seed(metric).values()))


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
    comparisons: tuple[ComparisonConfig, ...] = ()
    frontier: FrontierConfig | None = None
    groups: Mapping[str, str] = field(factory=dict)

    @property
    def originals(self) -> Path:
        """The strip of held-out originals, beside the first run's reconstructions; may be missing."""
        strips = (run.pictures.with_name("originals.png") for _, run in self.runs)
        return next((path for path in strips if path.is_file()), self.folder / "originals.png")

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
        return usual_column(metric, self.rows)

    def count(self, state: str) -> int:
        """How many runs are in a state."""
        return sum(run.state == state for _, run in self.runs)

    def tables(self) -> list[tuple[str, tuple[RowResults, ...]]]:
        """Title and rows of each group that has rows; named groups first, in their order."""
        named = [group for row in self.rows for group in row.groups or ("",)]
        keys = dict.fromkeys([*self.groups, *named])
        members = {
            key: tuple(row for row in self.rows if key in (row.groups or ("",))) for key in keys
        }
        return [(self.groups.get(k) or k or "Results", rows) for k, rows in members.items() if rows]


def usual_column(metric: str, rows: Sequence[RowResults]) -> Column:
    """A column for a metric that the study says nothing about: about four significant digits."""
    largest = max((abs(v) for row in rows for v in row.by_seed(metric).values()), default=0.0)
    digits = 1 if largest >= 100 else 2 if largest >= 10 else 3
    return Column(metric=metric, title=metric.partition("[")[0], digits=digits)
