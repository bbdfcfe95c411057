"""A study from config to finished runs, as a generator of events."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from rpiae.core.config.identity import unpinned
from rpiae.core.config.tree import unparse
from rpiae.core.model.fetching import fetch_all
from rpiae.core.runtime.files import write_text
from rpiae.core.runtime.locks import hold
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.signals import StopSignal
from rpiae.evaluation.saved import check_evaluation
from rpiae.runs.stages import StageStore
from rpiae.studies.configs import StudyConfig
from rpiae.studies.executors import Executor, Running
from rpiae.studies.jobs import (
    STAGES_FOLDER,
    STOPPED,
    WRONG,
    is_as_planned,
    is_done,
    is_trained,
    write_job,
)
from rpiae.studies.planning import (
    PlannedRow,
    PlannedRun,
    plan_study,
    shared_stages,
    study_loading,
)
from rpiae.studies.results import DONE, FAILED, FORMAT, RUNNING, STUDY_FILE, WAITING

LOGS_FOLDER = "logs"

#: How often a run that crashed is started before it counts as failed.
ATTEMPTS = 2

#: Exit codes of a run that was told to stop.
STOPS = (STOPPED, -signal.SIGTERM)

#: Seconds between looks at the running jobs.
INTERVAL = 0.5


@frozen(kw_only=True)
class StudyEvent:
    """Base of a study's events."""


@frozen(kw_only=True)
class StudyPlanned(StudyEvent):
    """What there is to do.

    Attributes:
        rows: the rows.
        done: runs of which nothing is left to do.
        total: all runs.
    """

    rows: tuple[PlannedRow, ...]
    done: int
    total: int


@frozen(kw_only=True)
class JobStarted(StudyEvent):
    """A run's process was started, for the ``attempt``-th time."""

    run: PlannedRun
    attempt: int


@frozen(kw_only=True)
class JobEnded(StudyEvent):
    """A run's process ended.

    Attributes:
        run: the run.
        state: ``done``; ``crashed``, to be tried again; ``failed``; or ``stopped``.
        error: the last line it said, where it failed.
        done, total: runs.
        seconds: since the process was started.
    """

    run: PlannedRun
    state: str
    error: str
    done: int
    total: int
    seconds: float


@frozen(kw_only=True)
class StudyEnded(StudyEvent):
    """Nothing is left to start.

    Attributes:
        done, failed, total: runs.
        stopped: whether a signal ended it before all was done.
    """

    done: int
    failed: int
    total: int
    stopped: bool


@define(kw_only=True)
class _Job:
    """A run as the study sees it."""

    run: PlannedRun
    attempts: int = 0
    state: str = WAITING
    error: str = ""
    running: Running | None = None
    slot: int = 0
    started: float = 0.0

    @property
    def log(self) -> Path:
        return self.run.folder.parents[1] / LOGS_FOLDER / f"{self.run.folder.name}.log"


@define(kw_only=True)
class _Study:
    config: StudyConfig
    out: Path
    rows: tuple[PlannedRow, ...]
    command: str
    jobs: list[_Job] = field(factory=list)

    def write(self) -> None:
        """Write down the study as it stands; what the report is made from."""
        facts = {"format": FORMAT, "command": self.command, "rows": self._rows()}
        tree = unparse(self.config) | facts
        write_text(self.out / STUDY_FILE, json.dumps(tree, indent=1))

    def _rows(self) -> list[dict[str, Any]]:
        states = {id(job.run): job for job in self.jobs}
        return [
            {
                "name": row.name,
                "summary": row.summary,
                "groups": list(row.groups),
                "runs": [self._run(states[id(run)]) for run in row.runs],
            }
            for row in self.rows
        ]

    def _run(self, job: _Job) -> dict[str, Any]:
        config = shlex.quote(str(job.run.folder / "config.toml"))
        return {
            "seed": job.run.seed,
            "folder": str(job.run.folder.relative_to(self.out)),
            "address": job.run.address,
            "command": f"rpiae build --config {config} --out FOLDER",
            "state": job.state,
            "error": job.error,
        }


def run_study(
    study: StudyConfig, out: Path, executor: Executor, *, command: str = ""
) -> Iterator[StudyEvent]:
    """Train and evaluate all runs of a study that are not done yet.

    Runs that begin with the same stages share them: while one trains such a stage, the others wait
    for it. A run whose process crashed goes on from its checkpoint once; what fails again, and what
    a config or data error ends, is reported, and the other runs go on.

    Args:
        study: the study.
        out: its folder.
        executor: starts the processes.
        command: what was typed, for the report.

    Yields:
        ``StudyPlanned``, ``JobStarted`` and ``JobEnded`` by turns, ``StudyEnded``.

    Raises:
        ConfigError: if a run does not resolve.
        UsageError: if another process is at work on the study, or its runs could not be measured.
        DataError: if there are no such images to measure on.
    """
    rows = plan_study(study, out)
    fetch_all(study_loading(study, rows), command="rpiae fetch --study STUDY.toml")
    if any(unpinned(run.resolved.config) for row in rows for run in row.runs):
        rows = plan_study(study, out)  # by now it may be known what was fetched
    check_evaluation(study.evaluation, rows[0].runs[0].resolved.tokenizer)
    with hold(out, worker="rpiae ablate"):
        jobs = [_Job(run=run) for row in rows for run in row.runs]
        for job in jobs:
            if _is_done(job.run, study):
                job.state = DONE
        state = _Study(config=study, out=out, rows=rows, command=command, jobs=jobs)
        state.write()
        done = sum(job.state == DONE for job in jobs)
        yield StudyPlanned(rows=rows, done=done, total=len(jobs))
        wanted = shared_stages(rows)
        store = StageStore(out / STAGES_FOLDER)
        with StopSignal() as stop:
            while True:
                if stop.received:
                    for job in jobs:
                        if job.running is not None:
                            job.running.stop()
                yield from _ended(state)
                if not stop.received:
                    yield from _started(state, executor, store, wanted)
                if not any(job.running for job in jobs):
                    break
                time.sleep(INTERVAL)
        yield StudyEnded(
            done=sum(job.state == DONE for job in jobs),
            failed=sum(job.state == FAILED for job in jobs),
            total=len(jobs),
            stopped=bool(stop.received),
        )


def _started(
    state: _Study, executor: Executor, store: StageStore, wanted: frozenset[str]
) -> Iterator[StudyEvent]:
    """Start what can be started."""
    for job in state.jobs:
        running = [other for other in state.jobs if other.running is not None]
        if len(running) >= executor.slots:
            return
        if job.state != WAITING or _blocked(job, running, store):
            continue
        job.attempts += 1
        job.slot = min(set(range(executor.slots)) - {other.slot for other in running})
        path = write_job(job.run, state.out, wanted=wanted, evaluation=state.config.evaluation)
        job.running = executor.start(path, job.log, job.slot)
        job.state, job.started = RUNNING, time.monotonic()
        state.write()
        yield JobStarted(run=job.run, attempt=job.attempts)


def _is_done(run: PlannedRun, study: StudyConfig) -> bool:
    return is_done(run.folder, study.evaluation) and is_as_planned(run.folder, run.address)


def _blocked(job: _Job, running: Sequence[_Job], store: StageStore) -> bool:
    """Whether a running job is training a stage that this one needs."""
    if is_trained(job.run.folder):
        return False
    at_work = {a for other in running if not is_trained(other.run.folder) for a in other.run.stages}
    return any(a in at_work and not store.holds(a) for a in job.run.stages)


def _ended(state: _Study) -> Iterator[StudyEvent]:
    """Take note of what ended."""
    for job in state.jobs:
        code = job.running.outcome() if job.running is not None else None
        if code is None:
            continue
        job.running = None
        if code == 0 and _is_done(job.run, state.config):
            job.state, job.error = DONE, ""
        elif code in STOPS:
            job.state = WAITING
        else:
            job.error = _last_line(job.log, code)
            again = job.attempts < ATTEMPTS and code != WRONG
            job.state = WAITING if again else FAILED
        said = job.state
        if job.state == WAITING:
            said = "stopped" if code in STOPS else "crashed"
        state.write()
        yield JobEnded(
            run=job.run, state=said, error=job.error,
            done=sum(other.state == DONE for other in state.jobs), total=len(state.jobs),
            seconds=time.monotonic() - job.started,
        )  # fmt: skip


def _last_line(log: Path, code: int) -> str:
    """Why a process failed, in a line."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}; {log} has what it said"
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return printable(lines[-1]).removeprefix("rpiae: ") if lines else f"exit code {code}"
