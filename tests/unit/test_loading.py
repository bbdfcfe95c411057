"""Loading processes: shared memory, signals, other ways to start them, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from rpiae.core.errors import DataError
from rpiae.core.model.contracts import Batch, StageSteps
from rpiae.core.runtime.signals import SAME
from rpiae.data.datasets import FolderDataset
from rpiae.data.image_dataset import CropDataset
from rpiae.data.loading import handed_over, live_with_parent, loaded, loader, received


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(8):
        Image.fromarray(np.full((16, 16, 3), i, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def built(folder: Path, workers: int) -> FolderDataset:
    return FolderDataset(path=str(folder), image_size=16, workers=workers, held_out=1)


def batches(dataset: CropDataset, steps: int = 4) -> list[torch.Tensor]:
    drawn = dataset.batches(StageSteps(seed=0, stage="tune", batch_size=4, start=0, steps=steps))
    return [batch.inputs for batch in drawn]


def full(*_: object) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left")


def test_pixels_are_copied_where_shared_memory_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches(built(folder, workers=0))
    listed = list(built(folder, 0).every_image().batches([[0, 1], [2, 3]]))
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # of forked processes too
    handed = loader(_Handed(), workers=1, batch_size=None, collate_fn=handed_over)
    assert [type(batch) for batch in loaded(handed)] == [np.ndarray]
    for found, wanted in zip(batches(built(folder, workers=2)), expected, strict=True):
        assert torch.equal(found, wanted)
    images = built(folder, 2).every_image()
    for batch, wanted in zip(images.batches([[0, 1], [2, 3]]), listed, strict=True):
        assert torch.equal(batch.inputs, wanted.inputs)
        assert torch.equal(batch.labels, wanted.labels)
        assert batch.samples == wanted.samples


class _Handed(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(1, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts need root")
def test_a_real_small_shared_memory(folder: Path) -> None:
    code = (
        "import sys; from rpiae.core.model.contracts import StageSteps\n"
        "from rpiae.data.datasets import FolderDataset\n"
        "data = FolderDataset(path=sys.argv[1], image_size=512, resize=512, workers=2, held_out=1)\n"
        "steps = StageSteps(seed=0, stage='a', batch_size=8, start=0, steps=4)\n"
        "for b in data.batches(steps): print(b.inputs.shape)"
    )
    small = 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", small, "sh", sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this machine does not let its root mount")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("torch.Size([8, 3, 512, 512])") == 4


def test_a_signal_to_the_group_is_left_to_the_first_process(folder: Path) -> None:
    code = (
        "import os, signal, sys; from rpiae.core.runtime.signals import StopSignal\n"
        "from rpiae.core.model.contracts import StageSteps\n"
        "from rpiae.data.datasets import FolderDataset\n"
        "data = FolderDataset(path=sys.argv[1], image_size=16, workers=2, held_out=1)\n"
        "with StopSignal() as stop:\n"
        "    drawn = data.batches(StageSteps(seed=0, stage='a', batch_size=4, start=0, steps=50))\n"
        "    next(drawn)\n"
        "    os.killpg(0, signal.{0})\n"
        "    print(stop.received, sum(1 for _ in drawn))\n"
    )
    for name in ("SIGTERM", "SIGINT"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("{0}", name), str(folder)],
            capture_output=True, text=True, timeout=120, start_new_session=True, check=False,
        )  # fmt: skip
        assert done.stdout.split() == [name, "49"], done.stderr


def test_a_signal_while_processes_start_reaches_none_of_them(folder: Path) -> None:
    # Sent from inside the start of the second worker, before it could say what it ignores.
    code = (
        "import multiprocessing.process as p, os, signal, sys\n"
        "from rpiae.core.model.contracts import StageSteps\n"
        "from rpiae.core.runtime.signals import StopSignal; from rpiae.data.datasets import FolderDataset\n"
        "first = p.BaseProcess._bootstrap\n"
        "def bootstrap(self, *a, **k):\n"
        "    os.killpg(0, signal.SIGTERM); return first(self, *a, **k)\n"
        "p.BaseProcess._bootstrap = bootstrap\n"
        "data = FolderDataset(path=sys.argv[1], image_size=16, workers=1, held_out=1)\n"
        "with StopSignal() as stop:\n"
        "    steps = StageSteps(seed=0, stage='a', batch_size=4, start=0, steps=5)\n"
        "    print(sum(1 for _ in data.batches(steps)), stop.received)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, timeout=120, start_new_session=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["5", "SIGTERM"], done.stderr


class _Killed(Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_of_a_process_that_ended_no_more_is_said_than_is_known() -> None:
    with pytest.raises(
        DataError, match=r"images ended \(DataLoader worker .*\)\. Lower data.workers"
    ) as caught:
        list(loaded(loader(_Killed(), workers=1)))
    assert "memory" not in str(caught.value)


class _Refused:
    def __iter__(self) -> Iterator[Any]:
        raise OSError(28, "No space left on device")


def test_processes_that_cannot_be_started_are_told() -> None:
    with pytest.raises(DataError, match="cannot be started: No space left on device"):
        next(loaded(_Refused()))


def test_signals_go_through_again_after_a_start(folder: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    batches(built(folder, workers=1), steps=1)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_what_processes_are_given_can_be_sent_to_a_spawned_one(folder: Path) -> None:
    given: list[Any] = []
    buckets = FolderDataset(
        path=str(folder), image_size=16, workers=0, held_out=1, buckets=3, bucket_step=4
    )
    for dataset in (built(folder, 0), buckets):
        for pool in dataset._pools():
            given.append(pool)
        given.append(dataset.every_image())
    for thing in given:
        pickle.loads(pickle.dumps(thing))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_other_ways_to_start_processes_give_the_same(folder: Path, way: str) -> None:
    expected = batches(built(folder, workers=0))
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(way, force=True)
    try:
        found = batches(built(folder, workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def _hang(began: Path) -> None:
    live_with_parent(0)
    began.touch()
    time.sleep(600)


def test_a_hanging_process_ends_by_a_later_request(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=_hang, args=(tmp_path / "began",))
    worker.start()
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    for _ in range(2):  # one that came twice
        os.kill(worker.pid or 0, signal.SIGTERM)
        time.sleep(0.2)
    time.sleep(SAME)
    assert worker.is_alive()
    os.kill(worker.pid or 0, signal.SIGTERM)
    worker.join(20)
    assert worker.exitcode == -signal.SIGTERM


def test_a_copy_becomes_a_tensor_again() -> None:
    pixels, labels = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2), torch.tensor([4])
    handed: Any = Batch(pixels.numpy(), (0,), labels=labels.numpy())  # type: ignore[arg-type]
    batch = received(handed)
    assert torch.equal(batch.inputs, pixels)
    assert batch.labels is not None
    assert torch.equal(batch.labels, labels)
    with pytest.raises(DataError, match="no image can be used"):
        received("no image can be used")
