"""How long a run waits for its images, and what decoding and cropping them costs.

    python benchmarks/data.py FOLDER [--image-size 256] [--seconds-per-step 1.0] [--device cpu]

First one process decodes, shrinks and crops as fast as it can; then a feed hands out batches of 8 as
fast as the loading processes can, and after that while this process multiplies matrices, as a step
would.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from PIL import Image

from rpiae.core.errors import RpiaeError
from rpiae.core.model.contracts import StageSteps
from rpiae.core.training.feed import Feed
from rpiae.data.datasets import FolderDataset
from rpiae.data.images import bicubic, crop, decode, short_side_size
from rpiae.data.sources import folder_source


def timed_parts(folder: Path, size: int) -> dict[str, float]:
    """Milliseconds per image of reading, decoding, shrinking and cropping."""
    spent: dict[str, float] = {"read": 0.0, "decode": 0.0, "shrink": 0.0, "crop": 0.0}
    source = folder_source(str(folder))
    for index in range(len(source)):
        marks = [time.perf_counter()]
        raw = source.read(index).read_bytes()
        marks.append(time.perf_counter())
        pixels = decode(raw, name=source.path(index))
        marks.append(time.perf_counter())
        if min(pixels.shape[:2]) > 1.5 * size:
            shrunk = short_side_size(pixels.shape[:2], round(1.5 * size))
            pixels = bicubic(Image.fromarray(pixels), shrunk)
        marks.append(time.perf_counter())
        side = min(size, *pixels.shape[:2])
        crop(pixels, (side, side), 0.5, 0.5).copy()
        marks.append(time.perf_counter())
        for name, start, end in zip(spent, marks, marks[1:], strict=False):
            spent[name] += end - start
    return {name: 1000 * seconds / len(source) for name, seconds in spent.items()}


def fed(folder: Path, size: int, device: torch.device, *, steps: int) -> Feed:
    """Batches of 8 on a device."""
    data = FolderDataset(path=str(folder), image_size=size, held_out=2)
    batches = data.batches(StageSteps(seed=0, stage="bench", batch_size=8, start=0, steps=steps))
    return Feed(batches, device)


def throughput(folder: Path, size: int, device: torch.device, *, steps: int = 50) -> float:
    """Images per second that reach a device which has nothing else to do, after the first batch."""
    feed = fed(folder, size, device, steps=steps)
    next(feed)
    started = time.perf_counter()
    for batch in feed:
        batch.inputs.sum().item()
    return 8 * (steps - 1) / (time.perf_counter() - started)


def wait_share(
    folder: Path, size: int, seconds: float, device: torch.device, *, steps: int = 20
) -> float:
    """Share of a step that is spent waiting for its batch of 8."""
    feed, shares = fed(folder, size, device, steps=steps), []
    a = torch.randn(1024, 1024, device=device)
    for _ in feed:
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            (a @ a).sum().item()
        shares.append(feed.waited / (feed.waited + seconds))
    return statistics.mean(shares[1:])


def main() -> None:
    """Print milliseconds per image, images per second, and the share of waiting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--seconds-per-step", type=float, default=1.0)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    folder, size, device = arguments.folder, arguments.image_size, arguments.device
    try:
        parts = timed_parts(folder, size)
        print(" · ".join(f"{name} {value:.2f} ms" for name, value in parts.items()), "per image")
        print(f"{throughput(folder, size, device):.1f} images/s on {device}")
        share = wait_share(folder, size, arguments.seconds_per_step, device)
    except RpiaeError as error:
        raise SystemExit(str(error)) from None
    print(f"waiting for data: {share:.2%} of a step of {arguments.seconds_per_step} s and 8 images")


if __name__ == "__main__":
    main()
