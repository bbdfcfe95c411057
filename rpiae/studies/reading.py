"""A study's results, read from the folder that ``rpiae ablate`` leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

from attrs import frozen

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.files import open_regular
from rpiae.core.names import shown
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.records import measured_as, printable_tree
from rpiae.studies.results import (
    DONE,
    FORMAT,
    HIGHER,
    LOWER,
    STATES,
    STUDY_FILE,
    Column,
    Comparison,
    Frontier,
    Points,
    RowResults,
    RunResults,
    StudyResults,
    usual_column,
)

T = TypeVar("T")


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
        columns = tuple(usual_column(metric, rows) for metric in occurring)
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
    evaluations = [each.data for each in evaluation.each("evaluations")]
    chosen = measured_as(evaluations, measured_with)
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
    usual = usual_column(metric, rows)
    return Column(
        metric=metric,
        title=column.get("title", str, "") or usual.title,
        unit=column.get("unit", str, ""),
        better=better,
        digits=max(0, column.get("digits", int, usual.digits)),
    )


def _read_comparison(comparison: _Fields) -> Comparison:
    first, second = comparison.get("first", str), comparison.get("second", str)
    return Comparison(
        name=comparison.get("name", str, "") or f"{first} against {second}",
        first=first,
        second=second,
        metrics=comparison.texts("metrics"),
    )
