"""Several processes of one command on this machine, through torch's launcher."""

from __future__ import annotations

import os
import sys

from rpiae.cli.screen import stderr


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "RANK" in os.environ


def speaks() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def launch(processes: int, *, go_on: str = "rpiae build --resume FOLDER") -> int:
    """Run this command again in several processes, and wait for them.

    Where one ends without its work done, the others are told to end too.

    Args:
        processes: how many.
        go_on: how to go on where one was killed, for the message.

    Returns:
        The exit code: that of the first process that failed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=f"rpiae-{os.getpid()}",
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=0,
        monitor_interval=0.2,
    )  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    try:
        elastic_launch(config, sys.executable)("-m", "rpiae", *sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            stderr.print(
                f"process {rank} was ended by signal {-failure.exitcode}; go on with {go_on}"
            )
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0
