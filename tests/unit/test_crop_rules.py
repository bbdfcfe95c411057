"""How images become the square crops that numbers and latents are of."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rpiae.core.errors import UsageError
from rpiae.data.datasets import FolderDataset
from rpiae.data.listed import CropRule, EveryImage

SIDE = 16

#: Fixed point of 8-bit resampling: 32 bits less 8 of the values and 2 for the weights' overshoot.
ONE = 1 << 22


def box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = −1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resampled(values: NDArray[np.int64], length: int, kernel, support: float) -> NDArray[np.int64]:
    """An image resampled along its first axis, as a weighted mean of levels in fixed point."""
    own = len(values)
    scale = own / length
    stretch = max(scale, 1.0)
    made = np.empty((length, *values.shape[1:]), dtype=np.int64)
    for i in range(length):
        centre = (i + 0.5) * scale
        first = max(0, math.floor(centre - support * stretch + 0.5))
        beyond = min(own, math.floor(centre + support * stretch + 0.5))
        weights = kernel((np.arange(first, beyond) + 0.5 - centre) / stretch)
        whole = np.floor(weights / weights.sum() * ONE + 0.5).astype(np.int64)
        total = np.tensordot(whole, values[first:beyond], axes=1)
        made[i] = np.clip((total + ONE // 2) // ONE, 0, 255)
    return made


def resized(values: NDArray[np.int64], height: int, width: int, kernel, support: float):
    columns = values.swapaxes(0, 1)
    if width != len(columns):
        columns = resampled(columns, width, kernel, support)
    rows = columns.swapaxes(0, 1)
    return resampled(rows, height, kernel, support) if height != len(rows) else rows


def expected(values: NDArray[np.uint8], short: int, side: int) -> NDArray[np.int64]:
    """The published rule: halve while twice as large, then bicubic, then the middle."""
    made = values.astype(np.int64)
    while min(made.shape[:2]) // 2 >= short:
        made = resized(made, made.shape[0] // 2, made.shape[1] // 2, box, 0.5)
    ratio = short / min(made.shape[:2])
    made = resized(made, round(made.shape[0] * ratio), round(made.shape[1] * ratio), cubic, 2.0)
    top, left = (made.shape[0] - side) // 2, (made.shape[1] - side) // 2
    return made[top : top + side, left : left + side]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth colours with noise on them, so that every rounding shows."""
    draws = np.random.default_rng(height * 1000 + width)
    ramp = np.linspace(0, 255, height)[:, None, None] * np.linspace(1, 0.3, width)[:, None]
    return (ramp + draws.normal(0, 40, (height, width, 3))).clip(0, 255).astype(np.uint8)


def listed(
    folder: Path, pixels: NDArray[np.uint8], rule: CropRule, resize: int | None = None
) -> EveryImage:
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    data = FolderDataset(path=str(folder), image_size=SIDE, resize=resize, workers=0)
    return data.every_image().cropped(rule)


SIZES = [
    (16, 16), (17, 16), (31, 32), (32, 32), (33, 47), (63, 200), (64, 64), (65, 131), (129, 257),
    (7, 11), (15, 40), (1, 3),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_the_rule_of_adm(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = picture(*size)
    found = listed(tmp_path / "x", pixels, "adm")[0]
    assert found.pixels is not None, found.failure
    assert np.array_equal(found.pixels.permute(1, 2, 0), expected(pixels, SIDE, SIDE))


@pytest.mark.parametrize("size", [(19, 24), (41, 95), (97, 100)])
def test_the_short_side_may_be_longer_than_the_crop(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = picture(*size)
    images = listed(tmp_path / "x", pixels, "adm", resize=20)
    assert images.rule == (
        "ADM: halved by a box filter, then bicubic to a short side of 20, centre crop 16×16"
    )
    found = images[0].pixels
    assert found is not None
    assert np.array_equal(found.permute(1, 2, 0), expected(pixels, 20, SIDE))


def test_a_run_crops_what_it_holds_out_by_another_rule(tmp_path: Path) -> None:
    small, large = picture(9, 12), picture(64, 64)
    images = listed(tmp_path / "small", small, "centre")
    assert "less than the crop" in images[0].failure
    assert "ADM" not in images.rule
    assert listed(tmp_path / "small", small, "adm")[0].failure == ""
    other, ours = (listed(tmp_path / "large", large, rule)[0].pixels for rule in ("centre", "adm"))
    assert other is not None
    assert ours is not None
    assert not other.equal(ours), "64 pixels shrunk to 24 show less than 64 shrunk to 16"


def test_a_thin_image_costs_no_memory(tmp_path: Path) -> None:
    """One pixel high, it would be a thousand times as large when resized as a whole."""
    started = time.process_time()
    found = listed(tmp_path / "x", picture(1, 300_000), "adm")[0]
    assert found.pixels is not None or found.failure
    assert time.process_time() - started < 10


def test_a_short_side_below_the_crop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.resize = 8 is smaller than the crop"):
        listed(tmp_path / "x", picture(40, 40), "adm", resize=8)
