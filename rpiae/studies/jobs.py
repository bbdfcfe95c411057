"""One run of a study, in a process of its own: train it or go on with it, then evaluate it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from attrs import frozen
from filelock import FileLock, Timeout

from rpiae import runs
from rpiae.core.config.convert import make_converter, parse
from rpiae.core.config.tree import unparse
from rpiae.core.errors import CheckpointError, DataError, RpiaeError, RunError, UsageError
from rpiae.core.registry.importing import import_modules, imported
from rpiae.core.runtime.files import read_json, write_text
from rpiae.core.runtime.locks import LOCK_FILE
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training import events
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.saved import evaluate_saved
from rpiae.evaluation.subjects import is_evaluated
from rpiae.runs.changes import differences
from rpiae.runs.stages import StageStore, run_address
from rpiae.studies.planning import PlannedRun

STAGES_FOLDER = "stages"
JOBS_FOLDER = "jobs"

#: Exit code of a job that was told to stop and saved its state.
STOPPED = 130

#: Exit code of a job whose config or data are wrong: trying again would not help.
WRONG = 2

#: Seconds that a job waits for the process of a killed study to leave a run's folder.
PATIENCE = 120.0


@frozen(kw_only=True)
class Job:
    """What the process of a run is told.

    Attributes:
        config: the run's tree.
        address: the run's, see ``PlannedRun``.
        stages: folder of finished stages.
        wanted: addresses of stages worth keeping.
        evaluation: what the run is measured with.
        imports: modules that the study was started with.
    """

    config: dict[str, Any]
    address: str
    stages: str
    wanted: tuple[str, ...]
    evaluation: EvaluationConfig
    imports: tuple[str, ...] = ()


def write_job(
    run: PlannedRun, out: Path, *, wanted: Iterable[str], evaluation: EvaluationConfig
) -> Path:
    """Write down what the process of a run is to do; the file's path.

    Raises:
        RunError: if it cannot be written.
    """
    job = Job(
        config=unparse(run.resolved.config), address=run.address, stages=str(out / STAGES_FOLDER),
        wanted=tuple(sorted(wanted)), evaluation=evaluation, imports=imported(),
    )  # fmt: skip
    path = out / JOBS_FOLDER / f"{run.folder.name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    write_text(path, json.dumps(unparse(job), indent=1))
    return path


def is_trained(folder: Path) -> bool:
    """Whether a run came to its end."""
    return (folder / runs.SUMMARY_FILE).is_file()


def is_as_planned(folder: Path, address: str) -> bool:
    """Whether a finished run was trained, from end to end, with what its row says."""
    try:
        summary = read_json(folder / runs.SUMMARY_FILE)
    except CheckpointError:
        return False
    return isinstance(summary, dict) and summary.get("address", address) == address


def is_done(folder: Path, evaluation: EvaluationConfig) -> bool:
    """Whether nothing is left to do for a run."""
    return is_trained(folder) and is_evaluated(folder, evaluation)


def perform(path: Path) -> int:
    """Do what a job says; the exit code.

    What happens goes to stdout, a line each; an error's one line to stderr.
    """
    try:
        job = parse(read_json(path), Job, source=str(path), converter=make_converter())
    except RpiaeError as error:
        print(f"rpiae: {error}", file=sys.stderr)
        return WRONG
    folder = Path(job.config["out"])
    try:
        import_modules(job.imports)
        begun = (folder / runs.CONFIG_FILE).is_file()
        if begun:
            _check_unchanged(job)
        if not is_trained(folder):
            _await(folder)
            store = StageStore(Path(job.stages), wanted=job.wanted)
            happened = (
                runs.resume(folder, stages=store) if begun else runs.run(job.config, stages=store)
            )
            for event in happened:
                if text := _line(event):
                    print(text, flush=True)
                if isinstance(event, events.Interrupted):
                    return STOPPED
        if not is_as_planned(folder, job.address):
            raise _changed(job, "it was gone on with under other settings for a while")
        if not is_evaluated(folder, job.evaluation):
            device = job.config.get("device", "auto")
            runtime = Runtime(device=device, precision=job.evaluation.precision)
            evaluate_saved(folder, job.evaluation, runtime=runtime)
            print("evaluated", flush=True)
    except Timeout:
        print(f"rpiae: another process is still at work in {folder}", file=sys.stderr)
        return 1
    except DataError as error:
        print(f"rpiae: {error}", file=sys.stderr)
        return WRONG
    except RpiaeError as error:
        print(f"rpiae: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _check_unchanged(job: Job) -> None:
    """Refuse a run that is no longer the one of its row: somebody may have gone on with it.

    Raises:
        UsageError: if it is not.
    """
    folder = Path(job.config["out"])
    now, _ = runs.resumed_config(folder)
    if run_address(now.config) == job.address:
        return
    changes = [c for c in differences(job.config, unparse(now.config)) if c.path != "out"]
    raise _changed(job, "now it has " + (" · ".join(map(str, changes)) or "other data or weights"))


def _changed(job: Job, how: str) -> UsageError:
    return UsageError(
        f"{job.config['out']} is no longer the run of its row: {how}. Change it back with rpiae build "
        "--resume, or move the folder away to have the row trained anew"
    )


def follow_parent() -> None:
    """Stop, as at a signal, when the process at the other end of stdin has ended, however that was."""

    def follow() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()


def _await(folder: Path) -> None:
    """Wait until the run's folder is free."""
    if folder.is_dir():
        FileLock(folder / LOCK_FILE, timeout=PATIENCE).acquire().lock.release()


def _line(event: events.Event) -> str:
    if isinstance(event, events.StepDone):
        if event.step % max(1, event.steps // 10):
            return ""
        terms = " ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
        return f"{event.stage} {event.step}/{event.steps}: {terms} · {event.images_per_second:.3g} images/s"
    if isinstance(event, events.Evaluated):
        return f"{event.stage} {event.step}: held-out PSNR {event.metrics['psnr']:.2f} dB"
    if isinstance(event, events.StageEnded):
        return f"{event.stage}: {event.steps} steps done"
    return event.text if isinstance(event, events.Notice) else ""
