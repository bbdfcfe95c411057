"""Studies as plain data: a base run, rows that differ from it, axes, seeds, and what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.config.fields import at_least, folder_name
from rpiae.core.config.tree import Tree, read_toml
from rpiae.evaluation.configs import EvaluationConfig


@frozen(kw_only=True)
class RowConfig:
    """One row of a study: runs that differ in their seed alone.

    Attributes:
        name: what it is called in tables.
        summary: one line.
        groups: the tables it stands in.
        set: path in the run's tree → value, such as ``"recipe.stages[0].noise"`` → 0.4.
        vary: path → values; the row stands for every combination of them.
        seeds: instead of the study's.
    """

    name: str
    summary: str = ""
    groups: tuple[str, ...] = ("main",)
    set: dict[str, Any] = field(factory=dict)
    vary: dict[str, tuple[Any, ...]] = field(factory=dict)
    seeds: tuple[int, ...] | None = None


@frozen(kw_only=True)
class ColumnConfig:
    """A column of the report's tables.

    Attributes:
        metric: name of the number in a run's evaluation.
        title, unit: of the column's head.
        better: which way is better; nothing is printed bold where empty.
        digits: behind the decimal point.
    """

    metric: str
    title: str = ""
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    digits: int = at_least(0, default=2)


@frozen(kw_only=True)
class ComparisonConfig:
    """Two rows whose runs are compared seed by seed.

    Attributes:
        name: what it is called.
        first, second: names of rows; differences are first − second.
        metrics: of which numbers.
    """

    name: str
    first: str
    second: str
    metrics: tuple[str, ...]


@frozen(kw_only=True)
class FrontierConfig:
    """A scatter plot of all rows; the rows that no other one beats in both are joined.

    Attributes:
        x, y: metrics; more is better.
    """

    x: str
    y: str


@frozen(kw_only=True)
class StudyConfig:
    """A study.

    Attributes:
        name, summary: what it is called, and what it asks.
        base: the tree of a run, as in a config file of ``rpiae build``; keys can also be paths.
        recipes: recipes of the study's own, by the name that rows use.
        seeds: of every row's runs; where not given, there is one run with the seed of its tree, or 0.
        vary: path → values; every row stands for every combination of them.
        without: losses that are left out of every stage of every run.
        rows: the rows; where there are none, there is one without a name for the axes alone.
        evaluation: what every finished run is measured with; PSNR and SSIM of the images that it
            held out where nothing is said.
        groups: title of each table.
        columns: of the tables; every number where there are none.
        comparisons: pairs of rows.
        frontier: the scatter plot.
    """

    name: str = folder_name()
    summary: str = ""
    base: dict[str, Any] = field(factory=dict)
    recipes: dict[str, dict[str, Any]] = field(factory=dict)
    seeds: tuple[int, ...] | None = None
    vary: dict[str, tuple[Any, ...]] = field(factory=dict)
    without: tuple[str, ...] = ()
    rows: tuple[RowConfig, ...] = ()
    evaluation: EvaluationConfig = field(factory=EvaluationConfig)
    groups: dict[str, str] = field(factory=dict)
    columns: tuple[ColumnConfig, ...] = ()
    comparisons: tuple[ComparisonConfig, ...] = ()
    frontier: FrontierConfig | None = None


def read_study(path: Path) -> StudyConfig:
    """A study from its TOML file.

    Raises:
        UsageError: if it cannot be read.
        ConfigError: with every problem and its path.
    """
    return parse_study(read_toml(path), source=str(path))


def parse_study(tree: Tree, *, source: str) -> StudyConfig:
    """A study from its tree.

    Raises:
        ConfigError: with every problem and its path.
    """
    return parse(tree, StudyConfig, source=source, converter=make_converter())
