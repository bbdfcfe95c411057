"""A study's results, read from the folder that ``rpiae ablate`` leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

import attrs
from attrs import evolve, field, frozen

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.errors import CheckpointError, ConfigError, UsageError
from rpiae.core.runtime.files import open_regular, read_json
from rpiae.core.runtime.names import shown
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.records import measured_as, printable_tree
from rpiae.studies.configs import ComparisonConfig, FrontierConfig
from rpiae.studies.results import (
    DONE,
    FORMAT,
    STUDY_FILE,
    Column,
    Points,
    RowResults,
    RunResults,
    StudyResults,
    usual_column,
)

T = TypeVar("T", bound=attrs.AttrsInstance)


@frozen(kw_only=True)
class _Run:
    """A run in ``study.json``."""

    seed: int
    folder: str
    state: Literal["done", "running", "waiting", "failed"]
    address: str = ""
    command: str = ""
    error: str = ""


@frozen(kw_only=True)
class _Row:
    """A row in ``study.json``."""

    name: str
    summary: str = ""
    groups: tuple[str, ...] = ()
    runs: tuple[_Run, ...] = ()


@frozen(kw_only=True)
class _Column:
    """A column in ``study.json``; without a title or digits, it has the usual ones."""

    metric: str
    title: str = ""
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    digits: int | None = None


@frozen(kw_only=True)
class _Study:
    """What a report needs of ``study.json``.

    Attributes:
        evaluation: what the study measures its runs with.
    """

    name: str
    summary: str = ""
    command: str = ""
    rows: tuple[_Row, ...] = ()
    columns: tuple[_Column, ...] = ()
    comparisons: tuple[ComparisonConfig, ...] = ()
    frontier: FrontierConfig | None = None
    groups: dict[str, str] = field(factory=dict)
    evaluation: Any = None


@frozen(kw_only=True)
class _Evaluation:
    """What a report needs of a run's ``evaluation.json``, or of one of the evaluations in it.

    A metric without a number was not measured.
    """

    metrics: dict[str, float | None] = field(factory=dict)
    protocol: dict[str, Any] = field(factory=dict)
    warnings: tuple[str, ...] = ()


@frozen(kw_only=True)
class _Stage:
    """A stage in a run's ``summary.json``; one that was skipped took no time."""

    seconds: float | None = None
    images_per_second: float | None = None


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
    tree = _tree(path)
    if tree.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is of format {shown(tree.get('format'))}; this rpiae reads format {FORMAT}"
        )
    study = _parse(path, tree, _Study)
    rows = tuple(
        RowResults(
            name=row.name,
            summary=row.summary,
            groups=row.groups,
            runs=tuple(_run_results(run, folder, study.evaluation) for run in row.runs),
        )
        for row in study.rows
    )
    columns = tuple(_column(column, rows) for column in study.columns)
    if not columns:
        occurring = dict.fromkeys(m for row in rows for r in row.measured for m in r.metrics or ())
        columns = tuple(usual_column(metric, rows) for metric in occurring)
    return StudyResults(
        folder=folder,
        name=study.name,
        summary=study.summary,
        command=study.command,
        rows=rows,
        columns=columns,
        comparisons=study.comparisons,
        frontier=study.frontier,
        groups=study.groups,
    )


def _tree(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is damaged: it holds no object")
    return tree


def _objects(path: Path, tree: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The objects in a list of a file; none where there is no such list."""
    objects = tree.get(name, [])
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise CheckpointError(f"{path} is damaged: {name} is no list of objects")
    return objects


def _parse(path: Path, tree: Mapping[str, Any], cls: type[T]) -> T:
    """What is needed of a file's object; a field of the wrong kind is a damaged file."""
    needed = {name: tree[name] for name in attrs.fields_dict(cls) if name in tree}
    try:
        return parse(needed, cls, source=str(path), converter=make_converter())
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged: {' · '.join(error.problems)}") from None


def _column(column: _Column, rows: tuple[RowResults, ...]) -> Column:
    usual = usual_column(column.metric, rows)
    return evolve(
        usual,
        title=column.title or usual.title,
        unit=column.unit,
        better=column.better,
        digits=usual.digits if column.digits is None else max(0, column.digits),
    )


def _run_results(run: _Run, study: Path, measured_with: Any) -> RunResults:
    folder = study / _inside(run.folder, study)
    results = RunResults(
        seed=run.seed,
        folder=folder,
        command=run.command,
        state=run.state,
        error=run.error,
        config=_text(folder / "config.toml"),
        curves=_read_curves(folder / "events.jsonl"),
    )
    # What lies in the folder of a run that is not done is of an earlier attempt.
    return _measured(_trained(results), measured_with) if run.state == DONE else results


def _inside(name: str, study: Path) -> str:
    """A run's folder below its study's: a study that somebody sends names no other places."""
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise CheckpointError(
            f"{study / STUDY_FILE} is damaged: a run's folder is {shown(name)}, "
            "expected one below the study's"
        )
    return name


def _measured(run: RunResults, measured_with: Any) -> RunResults:
    """The run with the evaluation that the study asks for, of all that its file holds."""
    path = run.folder / EVALUATION_FILE
    if not path.exists():
        return run
    tree = _tree(path)
    if measured_with:
        tree = dict(measured_as(_objects(path, tree, "evaluations"), measured_with) or tree)
        if tree.get("config", measured_with) != printable_tree(measured_with):
            # Somebody measured the run again, on other images or with other metrics.
            warning = "measured otherwise than the study says since: rpiae ablate measures it again"
            return evolve(run, warnings=(warning,))
    if isinstance(numbers := tree.get("metrics"), dict):
        # A NaN was not measured.
        tree["metrics"] = {name: value for name, value in numbers.items() if value == value}
    evaluation = _parse(path, tree, _Evaluation)
    return evolve(
        run,
        metrics={k: v for k, v in evaluation.metrics.items() if v is not None},
        protocol=evaluation.protocol or None,
        warnings=evaluation.warnings,
    )


def _trained(run: RunResults) -> RunResults:
    """The run with its seconds and image passes, where its summary says them."""
    path = run.folder / "summary.json"
    if not path.exists():
        return run
    stages = [_parse(path, stage, _Stage) for stage in _objects(path, _tree(path), "stages")]
    times = [(s.seconds, s.images_per_second) for s in stages if s.seconds is not None]
    passes = [seconds * rate for seconds, rate in times if rate is not None]
    return evolve(
        run,
        seconds=sum(seconds for seconds, _ in times) if times else None,
        image_passes=sum(passes) if times and len(passes) == len(times) else None,
    )


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
