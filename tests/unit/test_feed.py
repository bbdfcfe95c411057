"""Batches on their way to a device, and what they are split into."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rpiae.core.errors import DataError
from rpiae.core.model.contracts import Batch, StageSteps
from rpiae.core.training import feed as feed_module
from rpiae.core.training.feed import Feed, as_floats
from rpiae.data.synthetic import SyntheticImages

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def batch(number: int, size: int = 2) -> Batch:
    inputs = torch.full((size, 3, 2, 2), number, dtype=torch.uint8)
    samples = tuple(range(size * number, size * (number + 1)))
    return Batch(inputs, samples, labels=torch.arange(size))


class Journal:
    """Batches that write down what happens to them; the last one fails, if it is to."""

    def __init__(self, number: int, *, fails: bool = False) -> None:
        self.happened: list[str] = []
        self._number = number
        self._fails = fails

    def batches(self) -> Iterator[Batch]:
        try:
            for number in range(self._number):
                self.happened.append(f"load {number}")
                yield batch(number)
            if self._fails:
                raise DataError("no image can be used")
        finally:
            self.happened.append("closed")


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Three batches and a failure; a stand-in for a card's stream of copies writes there too."""
    journal = Journal(3, fails=True)

    class Stream:
        def __init__(self, device: torch.device) -> None:
            assert device == CUDA

        def send(self, tensor: Tensor) -> Tensor:
            if tensor.dtype == torch.uint8:  # labels are sent along
                journal.happened.append(f"send {int(tensor[0, 0, 0, 0])}")
            return tensor.clone()

        def receive(self, tensor: Tensor) -> Tensor:
            if tensor.dtype == torch.uint8:
                journal.happened.append(f"receive {int(tensor[0, 0, 0, 0])}")
            return tensor

    monkeypatch.setattr(feed_module, "_SideStream", Stream)
    return journal


def test_bytes_become_the_same_floats_as_ever() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_floats(every), every.to(torch.float32).div_(255))
    latents = torch.randn(3, dtype=torch.float16)
    assert as_floats(latents) is latents


def test_on_the_processor_nothing_is_read_ahead() -> None:
    journal = Journal(2)
    feed = Feed(journal.batches(), CPU, share=0.5)
    first = next(feed)
    assert journal.happened == ["load 0"]
    assert first.inputs.dtype == torch.float32
    assert first.share == 0.5
    assert feed.waited > 0
    feed.close()
    assert journal.happened == ["load 0", "closed"]


def test_on_a_card_the_next_batch_is_on_its_way(journal: Journal) -> None:
    feed = Feed(journal.batches(), CUDA)
    first = next(feed)
    assert journal.happened == ["load 0", "send 0", "receive 0", "load 1", "send 1"]
    assert torch.equal(first.inputs, as_floats(batch(0).inputs))
    assert first.samples == (0, 1)
    feed.close()
    assert journal.happened[-1] == "closed"


def test_on_a_card_a_failure_is_raised_after_the_batches_before_it(journal: Journal) -> None:
    feed = Feed(journal.batches(), CUDA)
    assert [next(feed).samples[0] for _ in range(3)] == [0, 2, 4]
    with pytest.raises(DataError, match="no image can be used"):
        next(feed)
    with pytest.raises(StopIteration):
        next(feed)


@pytest.mark.parametrize(("size", "parts"), [(5, 1), (5, 2), (4, 2), (3, 5), (1, 1)])
def test_the_parts_of_a_batch_are_the_batch(size: int, parts: int) -> None:
    whole = batch(1, size)._replace(share=1.25, skipped=("a",), notices=("b",))
    found = whole.split(parts)
    assert len(found) == min(parts, -(-size // -(-size // parts)))
    assert torch.equal(torch.cat([part.inputs for part in found]), whole.inputs)
    assert sum((part.samples for part in found), ()) == whole.samples
    assert torch.equal(torch.cat([p.labels for p in found if p.labels is not None]), whole.labels)
    assert sum(part.share for part in found) == pytest.approx(1.25)
    assert all(part.share == pytest.approx(1.25 * len(part.samples) / size) for part in found)
    assert not any(part.skipped or part.notices for part in found)


def test_shares_make_the_mean_of_processes_that_of_the_step() -> None:
    """Means over parts, weighted and averaged over processes, are the mean over all samples."""
    data, means = SyntheticImages(4, count=16), []
    for rank in range(3):
        steps = StageSteps(
            seed=0, stage="s", batch_size=10, start=1, steps=2, rank=rank, num_processes=3
        )
        (own,) = Feed(data.batches(steps), CPU, share=steps.share)
        means.append(sum(part.share * part.inputs.mean() for part in own.split(2)))
    wanted = data.images[[sample % 16 for sample in range(10, 20)]].mean()
    torch.testing.assert_close(torch.stack(means).mean(), wanted)


@pytest.mark.parametrize(("batch_size", "processes"), [(4, 1), (6, 3), (7, 3), (2, 2)])
def test_processes_share_every_step(batch_size: int, processes: int) -> None:
    shares = [
        StageSteps(
            seed=0, stage="s", batch_size=batch_size, start=3, steps=8, rank=rank,
            num_processes=processes,
        )
        for rank in range(processes)
    ]  # fmt: skip
    assert {len(share) for share in shares} == {5}
    for step, of_step in enumerate(zip(*shares, strict=True), start=3):
        together = [sample for samples in of_step for sample in samples]
        assert together == list(range(step * batch_size, (step + 1) * batch_size))
        sizes = [len(samples) for samples in of_step]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)
    assert sum(share.share for share in shares) == pytest.approx(processes)
