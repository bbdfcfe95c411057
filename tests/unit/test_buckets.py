"""Aspect-ratio buckets: shapes, batches of one bucket, broken images, and a run on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from PIL import Image

from rpiae import runs
from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import Batch, Dataset, StageSteps
from rpiae.core.model.resolve import part_config
from rpiae.core.training import events
from rpiae.core.training.trainer import train
from rpiae.data.buckets import bucket_shapes, nearest_bucket
from rpiae.data.configs import FolderDatasetConfig
from rpiae.data.images import decode, shape_of
from tests.toys import toy_run

#: Height and width of the test's images, by grey.
SHAPES = {
    **dict.fromkeys(range(10), (40, 40)),
    **dict.fromkeys(range(10, 17), (30, 60)),
    **dict.fromkeys(range(17, 20), (70, 36)),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images of one grey each: ten square, seven wide, three tall."""
    folder = tmp_path / "images"
    folder.mkdir()
    for grey, shape in SHAPES.items():
        pixels = np.full((*shape, 3), grey, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{grey:02}.png")
    return folder


def built(folder: Path, **fields: Any) -> Any:
    tree: dict[str, Any] = {
        "name": "folder", "path": str(folder), "image_size": 32, "workers": 0, "held_out": 2,
        "buckets": 3, "bucket_step": 4,
    }  # fmt: skip
    dataset = part_config("datasets", tree | fields).build()
    assert isinstance(dataset, Dataset)
    return dataset


def drawn(dataset: Any, start: int = 0, steps: int = 18, **changes: Any) -> list[Batch]:
    settings: dict[str, Any] = {"seed": 3, "stage": "tune", "batch_size": 4} | changes
    return list(dataset.batches(StageSteps(start=start, steps=steps, **settings)))


def greys(batches: list[Batch]) -> list[int]:
    return [int(i[0, 0, 0]) for batch in batches for i in batch.inputs]


def test_shapes_by_number_lie_around_the_square() -> None:
    assert bucket_shapes(32, number=3, sizes=(), step=4) == ((44, 24), (32, 32), (24, 44))
    assert bucket_shapes(256, number=5, sizes=(), step=16)[2] == (256, 256)
    assert bucket_shapes(32, number=1, sizes=(), step=4) == ((32, 32),)
    assert bucket_shapes(8, number=9, sizes=(), step=8) == ((8, 8),)
    assert bucket_shapes(32, number=None, sizes=[(16, 64), (16, 64)], step=4) == ((16, 64),)
    assert bucket_shapes(32, number=None, sizes=(), step=4) == ()


def test_an_image_goes_where_its_aspect_ratio_is() -> None:
    shapes = ((44, 24), (32, 32), (24, 44))
    given = [(100, 100), (120, 100), (300, 100), (100, 180), (1, 50)]
    assert [nearest_bucket(shape, shapes) for shape in given] == [1, 1, 0, 2, 2]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_headers_tell_the_shape_that_decoding_gives(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png", "a.webp"):
        Image.new("RGB", (30, 20)).save(tmp_path / name, exif=exif)
        assert shape_of(tmp_path / name) == decode(tmp_path / name).shape[:2]


def test_batches_are_of_one_bucket_and_leave_no_image_out(folder: Path) -> None:
    dataset = built(folder)
    # 09 and 13 are held out: nine square images, six wide and three tall ones.
    batches = drawn(dataset)
    assert {tuple(b.inputs.shape[2:]) for b in batches} == {(32, 32), (24, 44), (44, 24)}
    shapes = {(32, 32): (40, 40), (24, 44): (30, 60), (44, 24): (70, 36)}
    for batch in batches:
        of_one = shapes[tuple(batch.inputs.shape[2:])]
        assert all(SHAPES[grey] == of_one for grey in greys([batch]))
    # Four epochs of 18 images fill 18 batches of four.
    assert Counter(greys(batches)) == dict.fromkeys(set(SHAPES) - {9, 13}, 4)
    assert greys(drawn(dataset, seed=4)) != greys(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_and_a_split_give_what_one_unbroken_process_gives(
    folder: Path, workers: int
) -> None:
    whole = drawn(built(folder))
    tail = drawn(built(folder, workers=workers), start=7)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(tail, whole[7:], strict=True))
    parts = [drawn(built(folder), rank=r, num_processes=3) for r in range(3)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step].inputs for part in parts]), batch.inputs)


def test_images_are_covered_and_cropped(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (48, 88, 3), dtype=np.uint8)
    for i in range(3):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    (batch,) = drawn(built(tmp_path, held_out=1), steps=1, batch_size=1)
    resized = Image.fromarray(wide).resize((44, 24), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(resized).transpose(2, 0, 1).copy())
    assert torch.equal(batch.inputs[0], expected)


def test_held_out_images_and_fitting_crops_stay_square(folder: Path) -> None:
    dataset = built(folder, image_size=28)
    assert dataset.held_out().images.shape == (2, 3, 28, 28)
    assert dataset.crops(5, seed=0).shape == (5, 3, 28, 28)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_used_are_replaced_and_named(folder: Path, workers: int) -> None:
    (folder / "00.png").write_bytes(b"no image")
    for name in ("17.png", "18.png", "19.png"):  # headers are intact, so the bucket stays
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    dataset = built(folder, workers=workers, held_out=1)
    batches = drawn(dataset)
    tall = [b for b in batches if b.inputs.shape[2:] == (44, 24)]
    assert tall
    assert set(greys(tall)) <= set(SHAPES) - {0, 17, 18, 19}
    assert 0 not in greys(batches)
    assert [t.partition(": ")[0] for b in batches for t in b.notices] == [str(folder / "00.png")]
    named = {Path(t.partition(": ")[0]).name for b in batches for t in b.skipped}
    assert {"17.png", "18.png", "19.png"} <= named


def test_too_small_images_are_not_enlarged(tmp_path: Path) -> None:
    for i in range(3):
        Image.new("RGB", (30, 40)).save(tmp_path / f"{i}.png")
    with pytest.raises(
        DataError, match=r"none of 2 images .* is as large as the bucket of .*Lower"
    ):
        drawn(built(tmp_path, held_out=1, image_size=64))


def test_no_readable_header_is_an_error(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of 3 images .* 3 cannot be read"):
        drawn(built(tmp_path, held_out=1))


def test_contradictions_are_named(folder: Path) -> None:
    for fields, match in (
        ({"bucket_sizes": [[32, 32]]}, r"give one of data\.buckets .* and data\.bucket_sizes"),
        ({"resize": 40}, "data.resize has no effect with buckets"),
    ):
        with pytest.raises(UsageError, match=match):
            built(folder, **fields)
    with pytest.raises(UsageError, match=r"30×32 \(h×w\): sides must be multiples"):
        bucket_shapes(32, number=None, sizes=[(30, 32)], step=4)


def test_the_step_is_the_encoder_s_output_patch(folder: Path) -> None:
    data = {"name": "folder", "path": str(folder), "buckets": 3}
    config = runs.resolve({"encoder": "tiny", "data": data}).config.data
    assert config is not None
    facts = runs.resolve({"encoder": "tiny"}).tokenizer.encoder_facts
    assert isinstance(config, FolderDatasetConfig)
    assert config.bucket_step == facts.output_patch


@pytest.mark.parametrize(("encoder", "bridge"), [("vit", "identity"), ("timm", "vb4")])
def test_every_stage_trains_on_buckets(
    tmp_path: Path, folder: Path, encoder: str, bridge: str
) -> None:
    inputs = toy_run(
        tmp_path, encoder, bridge, "vit", "quick", "recipe.max_steps=4", "recipe.batch_size=4"
    )
    done = [
        event
        for event in train(evolve(inputs, data=built(folder)))
        if isinstance(event, (events.StepDone, events.StageEnded))
    ]
    ended = [event for event in done if isinstance(event, events.StageEnded)]
    assert ended
    assert all(np.isfinite(e.total) for e in done if isinstance(e, events.StepDone))
