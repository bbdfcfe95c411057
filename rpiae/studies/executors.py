"""Where the processes of a study run: on this machine, or wherever submitit takes them.

On this machine they are started here, since those of submitit's local executor outlive the study's
process, have a second to save when they are cancelled, all start at once, and are dealt no GPUs or
processors.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Protocol

from rpiae.core.errors import MissingExtraError, RunError, UsageError
from rpiae.data.loading import usable_cpus
from rpiae.studies.jobs import STOPPED

#: Seconds that a process which was told to stop has, to finish its step and save.
GRACE = 120.0


class Running(Protocol):
    """A job at work."""

    def outcome(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it is at work."""

    def stop(self) -> None:
        """Ask it to save its state and end."""


class Executor(Protocol):
    """Starts jobs.

    Attributes:
        slots: how many run at a time.
    """

    slots: int

    def start(self, job: Path, log: Path, slot: int) -> Running:
        """Start a job whose output goes to a file."""


class LocalExecutor:
    """Processes on this machine, which end with this one.

    The processors are divided between them; where there are GPUs, so are these.

    Args:
        slots: how many run at a time.
    """

    def __init__(self, slots: int) -> None:
        import torch

        self.slots = slots
        self._threads = max(1, usable_cpus() // slots)
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        numbers = [str(number) for number in range(torch.cuda.device_count())]
        self._devices = [name for name in listed.split(",") if name] or numbers

    def start(self, job: Path, log: Path, slot: int) -> Running:
        """Start a job."""
        environment = {"OMP_NUM_THREADS": str(self._threads), **os.environ}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        with _log(log) as file:
            process = subprocess.Popen(
                [*_command(job), "--with-parent"], stdin=subprocess.PIPE, stdout=file, stderr=file,
                env=environment, start_new_session=True,
            )  # fmt: skip
        return _LocalProcess(process)


class _LocalProcess:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._stopped_at: float | None = None

    def outcome(self) -> int | None:
        code = self._process.poll()
        late = self._stopped_at is not None and time.monotonic() - self._stopped_at > GRACE
        if code is None and late:
            self._process.kill()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def stop(self) -> None:
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self._process.send_signal(signal.SIGTERM)


class SubmititExecutor:
    """Jobs of submitit: a Slurm cluster's, or for trying things this machine's.

    Args:
        folder: where submitit keeps its files.
        slots: how many jobs are submitted at a time.
        cluster: ``slurm``, ``local`` or ``auto``, submitit's names.
        parameters: of every job, such as ``{"slurm_partition": "gpu", "timeout_min": 600}``.

    Raises:
        MissingExtraError: if submitit is not installed.
        UsageError: if it knows no such cluster or parameter.
    """

    def __init__(
        self, folder: Path, slots: int, *, cluster: str = "auto", parameters: dict[str, Any]
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise MissingExtraError(
                'the executor submitit needs submitit, which is not installed: pip install "rpiae[submitit]"'
            ) from None
        self.slots = slots
        try:
            self._executor = submitit.AutoExecutor(
                folder=folder, cluster=None if cluster == "auto" else cluster
            )
            self._executor.update_parameters(
                **{"timeout_min": 24 * 60, "name": "rpiae"} | parameters
            )
        except (ValueError, RuntimeError, NameError, TypeError) as error:
            raise UsageError(
                f"submitit cannot use cluster {cluster!r} with these parameters: "
                f"{str(error).partition(chr(10))[0]}"
            ) from None

    def start(self, job: Path, log: Path, slot: int) -> Running:
        """Submit a job."""
        return _SubmititJob(
            self._executor.submit(_in_process, str(job.resolve()), os.getcwd(), str(log.resolve()))
        )


class _SubmititJob:
    def __init__(self, job: Any) -> None:
        self._job = job
        self._stopped = False

    def outcome(self) -> int | None:
        if not self._job.done():
            return None
        if self._stopped:
            return STOPPED
        error = self._job.exception()
        return int(self._job.result()) if error is None else 1

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._job.cancel()


def _in_process(job: str, folder: str, log: str) -> int:
    """Run a job in a process of its own, in the folder that paths are relative to.

    Whatever signal ends this process is passed on as the one that saves the run's state.
    """
    with _log(Path(log)) as file:
        process = subprocess.Popen(
            _command(Path(job)), cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip

    def pass_on(*_: object) -> None:
        process.send_signal(signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return process.wait()


def _log(path: Path) -> IO[bytes]:
    """A log to append to.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def _command(job: Path) -> list[str]:
    return [sys.executable, "-m", "rpiae.studies", str(job)]
