"""Processes that load images, and what comes back from them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rpiae.core.errors import DataError

T = TypeVar("T")


def default_workers() -> int:
    """One process per CPU that this one may use, at most 4."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return min(4, len(affinity(0)) if affinity else os.cpu_count() or 1)


def live_with_parent(_: int) -> None:
    """Have a loading process end with the training process, and not before."""
    # Ctrl-C reaches the workers too, and the training process still finishes its step with them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One that outlived a killed run would hold what it inherited: the lock on the run's folder.
    # Torch's own watch looks every five seconds, and misses a parent that ended before it began.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def loader(dataset: Any, *, workers: int, **options: Any) -> DataLoader[Any]:
    """A loader whose processes live with this one and that leaves the global generator alone.

    Args:
        dataset: what is loaded.
        workers: loading processes; 0 loads in this process.
        options: further arguments of ``DataLoader``.
    """
    return DataLoader(
        dataset,
        num_workers=workers,
        worker_init_fn=live_with_parent,
        # Without one, the loader draws from, and so advances, the global generator.
        generator=torch.Generator(),
        **options,
    )


def loaded(source: Iterable[T]) -> Iterator[T]:
    """Everything a loader gives.

    Raises:
        DataError: if a loading process ends.
    """
    batches = iter(source)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            # A worker that dies takes its cause with it; what torch says is all there is.
            raise DataError(
                f"a process that loads images ended ({str(error).partition(chr(10))[0]}): "
                "often the machine ran out of memory. Lower data.workers (0 loads in the "
                "training process)"
            ) from None
        yield batch


def unit(pixels: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]."""
    return pixels.to(torch.float32).div_(255)
