"""Several processes of one command on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from rpiae.core.runtime.signals import STOP_SIGNALS

#: Exit code of a command that was told to end.
INTERRUPTED = 130

#: Seconds that the others have to end where one has failed.
GRACE = 30.0

#: Seconds between two looks at the processes.
INTERVAL = 0.1

#: Tells a process the pipe whose end is that of the one that started it.
_LIFELINE = "RPIAE_LIFELINE"


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ


def speaks() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def this_command() -> str:
    """This command as it is typed."""
    return shlex.join(["rpiae", *sys.argv[1:]])


def launch(processes: int, *, go_on: str = "rpiae build --resume FOLDER") -> int:
    """Run this command again in several processes, and wait for them.

    A signal that asks this process to end is passed on, and they are waited for: they save what they
    have. Where one ends without its work done, the others are told to end too. They also end with
    this process, however that ends.

    Args:
        processes: how many.
        go_on: how to go on where one was killed, for the message.

    Returns:
        The exit code: that of the first process that failed; 130 where a signal came.
    """
    from rpiae.cli.screen import stderr

    read, write = os.pipe()
    os.set_inheritable(read, True)
    shared = os.environ | {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), _LIFELINE: str(read),
    }  # fmt: skip
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    group: list[subprocess.Popen[bytes]] = []
    with _Passing(group) as passing:
        for rank in range(processes):
            if passing.received:
                break
            group.append(
                subprocess.Popen(
                    [sys.executable, "-m", "rpiae", *sys.argv[1:]],
                    env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, pass_fds=(read,),
                )
            )  # fmt: skip
        os.close(read)
        first = _first_failure(group)
        if first is not None:
            _end(group)
        os.close(write)
    codes = [process.returncode for process in group]
    if passing.received or first is None:
        if passing.received and codes != [INTERRUPTED] * processes:  # else they have said it
            stderr.print(f"interrupted; go on with {go_on}", soft_wrap=True)
        return INTERRUPTED if passing.received else max(codes)
    code = codes[first]
    if code < 0:
        stderr.print(
            f"process {first} was ended by signal {-code}; go on with {go_on}", soft_wrap=True
        )
    return code if code > 0 else 1


def follow_launcher() -> None:
    """Have this process, if it is one of several, asked to end when its launcher is gone."""
    handle = os.environ.pop(_LIFELINE, "")
    if not handle.isdecimal():
        return

    def wait() -> None:
        os.read(int(handle), 1)  # returns when nobody holds the other end any more
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


class _Passing:
    """Passes signals that ask to end on to a group of processes; from the second one on, it kills.

    Attributes:
        received: how many came.
    """

    def __init__(self, group: Sequence[subprocess.Popen[bytes]]) -> None:
        self.received = 0
        self._group = group

    def __enter__(self) -> _Passing:
        ignored = (signal.SIG_IGN, None)
        wanted = [number for number in STOP_SIGNALS if signal.getsignal(number) not in ignored]
        self._previous = {number: signal.signal(number, self._pass) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _pass(self, number: int, _: FrameType | None) -> None:
        self.received += 1
        for process in self._group:
            process.send_signal(number if self.received <= 2 else signal.SIGKILL)


def _first_failure(group: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until one has failed or all are done; the one that failed.

    One that was interrupted has not: the others come to the same end, or save yet.
    """
    while True:
        codes = [process.poll() for process in group]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0, INTERRUPTED)]
        if failed:
            return failed[0]
        if None not in codes:
            return None
        time.sleep(INTERVAL)


def _end(group: Sequence[subprocess.Popen[bytes]]) -> None:
    """Have all end, those that do not listen too."""
    for process in group:
        process.terminate()
    deadline = time.monotonic() + GRACE
    while any(process.poll() is None for process in group):
        if time.monotonic() > deadline:
            for process in group:
                process.kill()
        time.sleep(INTERVAL)


def _free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
