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
from rpiae.core.config import Tree, parse_override
from rpiae.core.errors import ConfigError, UsageError, did_you_mean
from rpiae.core.plan import make_plan
from rpiae.core.resolve import ResolvedRun
from rpiae.stages import run_address, stage_address
from rpiae.studies.configs import RowConfig, StudyConfig

RUNS_FOLDER = "runs"

#: Part of a run's address in the name of its folder, and letters of its row's name.
SHOWN = 8
MOST_LETTERS = 80


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
    problems: list[str] = []
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


def _expanded_rows(study: StudyConfig) -> Iterator[RowConfig]:
    """Rows with no axes left: a row for every combination of values."""
    for row in study.rows or (RowConfig(name=""),):
        axes = study.vary | row.vary
        empty = [f"vary.{name}: no values" for name, values in axes.items() if not values]
        if empty:
            raise ConfigError(f"study {study.name!r}", empty)
        for combination in itertools.product(*axes.values()):
            chosen = dict(zip(axes, combination, strict=True))
            label = ", ".join(f"{_short(path)}={_plain(v)}" for path, v in chosen.items())
            name = f"{row.name} [{label}]" if row.name and label else row.name or label
            yield evolve(row, name=name or study.name, set=row.set | chosen, vary={})


def _planned(study: StudyConfig, row: RowConfig, out: Path) -> PlannedRow:
    planned = []
    seeds = row.seeds if row.seeds is not None else study.seeds
    if not seeds:
        raise UsageError("it has no seeds")
    for seed in seeds:
        tree: Tree = {}
        overrides = []
        for path, value in [*study.base.items(), *row.set.items()]:
            steps, _ = parse_override(f"{path}=0")
            if len(steps) == 1:
                tree[path] = copy.deepcopy(value)
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
        planned.append(_in_folder(row, seed, resolved, out))
    make_plan(resolved)  # what is wrong with its stages is so with every seed
    return PlannedRow(name=row.name, summary=row.summary, groups=row.groups, runs=tuple(planned))


def _in_folder(row: RowConfig, seed: int, resolved: ResolvedRun, out: Path) -> PlannedRun:
    config = resolved.config
    if config.precision == "auto":
        raise UsageError(
            "precision is auto, which would let the machine decide what is compared: set "
            'base.precision = "fp32" or "bf16"'
        )
    address = run_address(config)
    stem = "".join(c if c.isalnum() or c in "._=-" else "-" for c in row.name)[:MOST_LETTERS]
    folder = out / RUNS_FOLDER / f"{stem}-seed{seed}-{address[:SHOWN]}"
    config = evolve(config, out=str(folder))
    return PlannedRun(
        row=row.name,
        seed=seed,
        resolved=evolve(resolved, config=config),
        address=address,
        stages=tuple(stage_address(config, i) for i in range(len(config.recipe.stages))),
    )


def shared_stages(rows: tuple[PlannedRow, ...]) -> frozenset[str]:
    """Addresses of stages that are worth keeping: those that several runs begin with, and those that
    a run added later could begin with, which are all but the last of every run."""
    planned = [run for row in rows for run in row.runs]
    found = [address for run in planned for address in run.stages]
    several = {address for address in found if found.count(address) > 1}
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
