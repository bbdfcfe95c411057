"""Processes that load images, and what comes back from them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from rpiae.core.errors import DataError
from rpiae.core.model.contracts import Batch
from rpiae.core.runtime.processes import ended_loader, loader_ended
from rpiae.core.runtime.signals import SAME, STOP_SIGNALS

T = TypeVar("T")


def usable_cpus() -> int:
    """CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def default_workers() -> int:
    """One process per CPU that this one may use, at most 4."""
    return min(4, usable_cpus())


def chosen_workers(given: int | None) -> int:
    """How many processes load images: as given, or ``default_workers``."""
    return default_workers() if given is None else given


def live_with_parent(_: int) -> None:
    """Have a loading process end with the training process, and not before."""
    # What asks a process group to end (Ctrl-C, scancel, systemd) reaches the workers too, and the
    # training process still finishes its step with them.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A later one ends a worker that hangs: torch sends it when it has waited long enough.
    signal.signal(signal.SIGTERM, _PassFirst())
    _let_through(STOP_SIGNALS)
    # One that outlived a killed run would hold what it inherited: the lock on the run's folder.
    # Torch's own watch looks every five seconds, and misses a parent that ended before it began.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _PassFirst:
    """Handles a signal by passing it over the first time, and again where it is the same one."""

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first > SAME:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _let_through(signals: Iterable[signal.Signals]) -> None:
    if hasattr(signal, "pthread_sigmask"):  # not on every system
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


@contextlib.contextmanager
def _signals_waiting() -> Iterator[None]:
    """Signals wait, and for the processes started here until they answer them themselves."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
        DataError: if loading processes cannot be started, or one ends.
    """
    try:
        with _signals_waiting():
            batches = iter(source)
    except OSError as error:
        raise DataError(
            f"processes that load images cannot be started: {error.strerror or error}. "
            "data.workers = 0 loads in the training process"
        ) from None
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if told := ended_loader(error):
                raise DataError(told) from None
            raise
        except (ConnectionError, EOFError) as error:  # it ended while it handed a batch over
            raise DataError(loader_ended(str(error) or type(error).__name__)) from None
        yield batch


def handed_over(tensor: Tensor) -> Tensor:
    """What a loading process can hand over: in shared memory, or as a copy where it is full.

    Torch would move it there while it sends it, where an error is lost and the training process
    waits for ever. Containers often have 64 MB of shared memory. A copy is an array of NumPy's, which
    ``received`` makes a tensor again.
    """
    if get_worker_info() is None:
        return tensor
    try:
        tensor.share_memory_()  # type: ignore[no-untyped-call]  # torch's
    except RuntimeError:
        return cast(Tensor, tensor.numpy())
    return tensor


def loaded_one_by_one(items: Any, *, workers: int) -> Iterator[Any]:
    """Every item of a list, as it is; see ``loaded``.

    Args:
        items: has a length, and gives items by their number.
        workers: loading processes, at most.
    """
    workers = min(workers, len(items))
    return loaded(loader(items, workers=workers, batch_size=None, collate_fn=as_it_is))


def as_it_is(item: T) -> T:
    """What needs no collating."""
    return item


def loaded_batches(
    view: Any,
    requests: Any,
    *,
    collate: Callable[[list[Any]], Batch | str],
    workers: int,
) -> Iterator[Batch]:
    """Batches of what a view shows on request, as tensors however they were handed over.

    Args:
        view: gives a record for a request.
        requests: lists of requests, one per batch; how many there are is known.
        collate: makes a batch of records, or a text that says why there is none.
        workers: loading processes, at most.

    Raises:
        DataError: if there is no batch; see also ``loaded``.
    """
    workers = min(workers, len(requests))
    found = loaded(loader(view, workers=workers, batch_sampler=requests, collate_fn=collate))
    return (received(batch) for batch in found)


def received(batch: Batch | str) -> Batch:
    """A batch out of a loading process.

    Raises:
        DataError: if it is a text, which says why there is none.
    """
    if isinstance(batch, str):
        raise DataError(batch)
    labels = None if batch.labels is None else torch.as_tensor(batch.labels)
    return batch._replace(inputs=torch.as_tensor(batch.inputs), labels=labels)


class Reports:
    """What is told once, however often it is met."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def fresh(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Those of some texts that were not told before."""
        fresh = tuple(dict.fromkeys(text for text in texts if text not in self._told))
        self._told.update(fresh)
        return fresh
