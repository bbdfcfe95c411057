"""Batches on the device that uses them, copied there ahead of time.

Training, evaluation, encoding and fitting read their images through this one place. Bytes stay bytes
until they are there: a quarter of what floats would take in memory, between processes and on the bus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator

import torch
from torch import Tensor

from rpiae.core.model.contracts import Batch
from rpiae.core.runtime.devices import sent


class Feed:
    """Batches on a device, in their order; images as floats in [0, 1].

    On a card the next batch is on its way, from pinned memory and on a stream of its own, before the
    one in front of it is handed out. What goes wrong with it is raised in its turn. Elsewhere batches
    are handed on one by one.

    Args:
        batches: on CPU.
        device: where to.
        share: of every batch; see ``Batch``.

    Attributes:
        waited: seconds that the last batch was waited for.
    """

    def __init__(
        self, batches: Iterable[Batch], device: torch.device, *, share: float = 1.0
    ) -> None:
        self._source = iter(batches)
        self._share = share
        if device.type == "cuda":
            self._batches = _ahead(self._source, _SideStream(device))
        else:
            self._batches = (_moved(batch, lambda t: t.to(device)) for batch in self._source)
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        batch = next(self._batches)
        batch = batch._replace(inputs=as_floats(batch.inputs), share=self._share)
        self.waited = time.perf_counter() - started
        return batch

    def close(self) -> None:
        """Let go of the batches that are not wanted any more, and of the processes that load them."""
        for batches in (self._batches, self._source):
            if isinstance(batches, Generator):
                batches.close()


def as_floats(images: Tensor) -> Tensor:
    """Bytes as floats in [0, 1], the same ones on every device; all else as it is."""
    if images.dtype != torch.uint8:
        return images
    # A card multiplies by the inverse of a number, and divides by a tensor.
    return images.to(torch.float32).div_(torch.full((), 255.0, device=images.device))


class _SideStream:
    """Copies to a card beside what it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    def send(self, tensor: Tensor) -> Tensor:
        """A tensor that is on its way."""
        with torch.cuda.stream(self._stream):
            return sent(tensor, self._device)

    def receive(self, tensor: Tensor) -> Tensor:
        """The same tensor, for what the card computes from now on."""
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._stream)
        tensor.record_stream(computing)
        return tensor


def _moved(batch: Batch, move: Callable[[Tensor], Tensor]) -> Batch:
    labels = None if batch.labels is None else move(batch.labels)
    return batch._replace(inputs=move(batch.inputs), labels=labels)


def _ahead(batches: Iterator[Batch], stream: _SideStream) -> Iterator[Batch]:
    """Batches of which the next one is always on its way."""
    upcoming = _sent(batches, stream)
    while isinstance(upcoming, Batch):
        batch = _moved(upcoming, stream.receive)
        upcoming = _sent(batches, stream)
        yield batch
    if not isinstance(upcoming, StopIteration):
        raise upcoming


def _sent(batches: Iterator[Batch], stream: _SideStream) -> Batch | Exception:
    """The next batch, on its way; or what was raised instead, which is kept for its turn."""
    try:
        return _moved(next(batches), stream.send)
    except Exception as error:
        return error
