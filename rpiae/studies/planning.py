"""From a study to its runs: rows and axes expanded, every run resolved, nothing trained."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from attrs import evolve, frozen

from rpiae import runs
from rpiae.core.config.identity import pinned
from rpiae.core.config.parts import EncoderConfig, LossConfig, MetricConfig
from rpiae.core.config.tree import Tree, parse_override
from rpiae.core.errors import ConfigError, UsageError, did_you_mean
from rpiae.core.model.fetching import Loading
from rpiae.core.model.resolve import ResolvedRun, part_config
from rpiae.data.fingerprint import data_fingerprint
from rpiae.runs.planning import make_plan
from rpiae.runs.stages import run_address, stage_address
from rpiae.studies.configs import RowConfig, StudyConfig

RUNS_FOLDER = "runs"

#: Part of a run's address in the name of its folder, and letters and bytes of its row's name.
SHOWN = 8
MOST_LETTERS = 80
MOST_BYTES = 160

#: Runs of a study at most; planning takes some hundredths of a second for each.
MOST_RUNS = 1000


@frozen(kw_only=True)
class PlannedRun:
    """A run of a study.

    Attributes:
        row: name of its row.
        seed: its seed.
        resolved: the run; its ``out`` lies in the study's folder.
        address: sha256 of all that its result depends on.
        stages: address of every stage's end.
    """

    row: str
    seed: int
    resolved: ResolvedRun
    address: str
    stages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return Path(self.resolved.config.out)


@frozen(kw_only=True)
class PlannedRow:
    """A row of a study with its runs."""

    name: str
    summary: str
    groups: tuple[str, ...]
    runs: tuple[PlannedRun, ...]


def plan_study(study: StudyConfig, out: Path) -> tuple[PlannedRow, ...]:
    """All rows of a study.

    Args:
        study: the study.
        out: its folder; runs lie in ``runs/``.

    Raises:
        ConfigError: with the problems of every run that does not resolve, or of the study itself.
        DataError: if its data are not there.
    """
    problems = _malformed(study)
    if problems:
        raise ConfigError(f"study {study.name!r}", problems)
    data_fingerprint.cache_clear()
    rows: list[PlannedRow] = []
    for row in _expanded_rows(study):
        try:
            rows.append(_planned(study, row, out))
        except ConfigError as error:
            problems += [f"row {row.name!r}: {problem}" for problem in error.problems]
        except UsageError as error:
            problems.append(f"row {row.name!r}: {error}")
    names = [row.name for row in rows]
    if not problems:
        folders = [run.folder for row in rows for run in row.runs]
        twice = sorted({folder.name for folder in folders if folders.count(folder) > 1})
        problems += [f"two runs are {name}: give rows other names, seeds once" for name in twice]
        problems += [
            f"rows: two are called {name!r}" for name in sorted(set(names)) if names.count(name) > 1
        ]
        problems += [
            f"comparisons[{i}]: no row named {name!r}.{did_you_mean(name, names)}"
            for i, comparison in enumerate(study.comparisons)
            for name in (comparison.first, comparison.second)
            if name not in names
        ]
    if problems:
        raise ConfigError(f"study {study.name!r}", problems)
    return tuple(rows)


def _malformed(study: StudyConfig) -> list[str]:
    """What is wrong with a study before any of its runs is looked at."""
    tables = [("base", study.base), ("vary", study.vary)]
    for i, row in enumerate(study.rows):
        tables += [(f"rows[{i}].set", row.set), (f"rows[{i}].vary", row.vary)]
    problems = [
        f"{table}.{path}: {problem}"
        for table, values in tables
        for path in values
        if (problem := _problem_of(path))
    ]
    problems += [
        f"{table}.{path}: no values"
        for table, values in tables
        if table.endswith("vary")
        for path, listed in values.items()
        if not listed
    ]
    if not problems:
        number = sum(_num_runs(study, row) for row in study.rows or (RowConfig(name=""),))
        if number > MOST_RUNS:
            problems.append(
                f"it has {number:,} runs, and at most {MOST_RUNS:,} are planned at once: take fewer "
                "values or seeds, or make several studies of it"
            )
    return problems


def _problem_of(path: str) -> str:
    """What is wrong with a path in a run's tree, or nothing."""
    try:
        steps, _ = parse_override(f"{path}=0")
    except UsageError:
        return "it is not a path such as bridge or recipe.stages[0].noise"
    if not isinstance(steps[0], str):
        return "a run's tree begins with names: write a path such as recipe.stages[0].noise"
    if steps == ["out"]:
        return "where runs are written is the study's own: leave it out, and name --out"
    return ""


def _num_runs(study: StudyConfig, row: RowConfig) -> int:
    axes = study.vary | row.vary
    seeds = row.seeds if row.seeds is not None else study.seeds
    number = 1 if seeds is None else len(seeds)
    for values in axes.values():
        number *= len(values)
    return number


def _expanded_rows(study: StudyConfig) -> Iterator[RowConfig]:
    """Rows with no axes left: a row for every combination of values."""
    for row in study.rows or (RowConfig(name=""),):
        axes = study.vary | row.vary
        for combination in itertools.product(*axes.values()):
            chosen = dict(zip(axes, combination, strict=True))
            label = ", ".join(f"{_short(path)}={_plain(v)}" for path, v in chosen.items())
            name = f"{row.name} [{label}]" if row.name and label else row.name or label
            yield evolve(row, name=name or study.name, set=row.set | chosen, vary={})


def _planned(study: StudyConfig, row: RowConfig, out: Path) -> PlannedRow:
    planned = []
    for seed in _seeds(study, row):
        tree: Tree = {}
        overrides = []
        for path, value in [*study.base.items(), *row.set.items()]:
            steps, _ = parse_override(f"{path}=0")
            if len(steps) == 1:
                tree[str(steps[0])] = copy.deepcopy(value)
            else:
                overrides.append(f"{path}={_toml(value)}")
        recipe = tree.get("recipe")
        if isinstance(recipe, str) and recipe in study.recipes:
            tree["recipe"] = {"name": recipe, **copy.deepcopy(study.recipes[recipe])}
        tree["seed"] = seed
        tree.setdefault("precision", "fp32")
        resolved = runs.resolve(
            tree, overrides=tuple(overrides), without=study.without, source=f"row {row.name!r}"
        )
        runs.check_startable(resolved)
        planned.append(_in_folder(row, resolved, out))
    make_plan(resolved)  # what is wrong with its stages is so with every seed
    return PlannedRow(name=row.name, summary=row.summary, groups=row.groups, runs=tuple(planned))


def _seeds(study: StudyConfig, row: RowConfig) -> tuple[Any, ...]:
    """The seeds of a row's runs: listed, or the one that is a field of them.

    Raises:
        UsageError: if there are none, or both say it.
    """
    listed = row.seeds if row.seeds is not None else study.seeds
    if "seed" in row.set:
        if listed is not None:
            raise UsageError("its seed is set or varied, and seeds are listed too: leave out one")
        return (row.set["seed"],)
    if listed is None:
        return (study.base.get("seed", 0),)
    if row.seeds is None and "seed" in study.base:
        raise UsageError("base.seed is given, and seeds are listed too: leave out one")
    if not listed:
        raise UsageError("it has no seeds")
    return listed


def _in_folder(row: RowConfig, resolved: ResolvedRun, out: Path) -> PlannedRun:
    config = pinned(resolved.config)
    if config.precision == "auto":
        raise UsageError(
            "precision is auto, which would let the machine decide what is compared: set "
            'base.precision = "fp32" or "bf16"'
        )
    address = run_address(config)
    folder = out / RUNS_FOLDER / f"{file_name(row.name)}-seed{config.seed}-{address[:SHOWN]}"
    config = evolve(config, out=str(folder))
    return PlannedRun(
        row=row.name,
        seed=config.seed,
        resolved=evolve(resolved, config=config),
        address=address,
        stages=tuple(stage_address(config, i) for i in range(len(config.recipe.stages))),
    )


def file_name(name: str) -> str:
    """A name as part of a file's name: never a path, hidden, or too long."""
    plain = "".join(c if c.isalnum() or c in "._=-" else "-" for c in name)[:MOST_LETTERS]
    return plain.encode()[:MOST_BYTES].decode(errors="ignore").lstrip(".") or "-"


def study_loading(study: StudyConfig, rows: tuple[PlannedRow, ...]) -> list[Loading]:
    """The parts of all runs, and of the evaluation, that load something.

    Raises:
        UsageError: if a metric is unknown.
    """
    of_runs = {id(p): p for row in rows for run in row.runs for p in runs.loading(run.resolved)}
    distinct: list[Loading] = []
    for part in (*of_runs.values(), *(part_config("metrics", m) for m in study.evaluation.metrics)):
        assert isinstance(part, (EncoderConfig, LossConfig, MetricConfig))
        if part not in distinct:
            distinct.append(part)
    return distinct


def shared_stages(rows: tuple[PlannedRow, ...]) -> frozenset[str]:
    """Addresses of stages that are worth keeping: those that several runs begin with, and those that
    a run added later could begin with, which are all but the last of every run."""
    planned = [run for row in rows for run in row.runs]
    addresses = [address for run in planned for address in run.stages]
    several = {address for address in addresses if addresses.count(address) > 1}
    return frozenset(several | {address for run in planned for address in run.stages[:-1]})


def _short(path: str) -> str:
    """The last word of a path."""
    return str([step for step in parse_override(f"{path}=0")[0] if isinstance(step, str)][-1])


def _plain(value: Any) -> str:
    """A value in a row's name: a part by its name and what else is set of it."""
    if isinstance(value, Mapping):
        rest = [f"{key}={_plain(inner)}" for key, inner in value.items() if key != "name"]
        return " ".join([str(value.get("name", "")), *rest]).strip()
    return str(value)


def _toml(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    tree: Tree = {"value": value}
    return tomli_w.dumps(tree).partition("=")[2].strip()
