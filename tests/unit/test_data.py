"""Datasets: decoding, crops that depend on the step alone, held-out images, and every error."""

from __future__ import annotations

import io
import logging
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from rpiae.core.config.convert import make_converter, parse
from rpiae.core.errors import ConfigError, DataError, UsageError
from rpiae.core.model.contracts import Batch, Dataset, StageSteps
from rpiae.core.training.feed import as_floats
from rpiae.data import DATASETS
from rpiae.data.configs import FolderDatasetConfig, ParquetDatasetConfig
from rpiae.data.datasets import FolderDataset, ParquetDataset, SampleDataset
from rpiae.data.held_out import held_out_indices
from rpiae.data.image_dataset import CropDataset
from rpiae.data.images import FORMATS, bicubic, crop, decode, short_side_size, to_tensor
from rpiae.data.packaged_configs import SampleDatasetConfig
from rpiae.data.parquet import ParquetSource

SHARED = Path(__file__).parents[2].parent / "shared"
IMAGENET = SHARED / "data" / "imagenet-sample"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven PNG images of 24×20 to 34×30 pixels, in two subfolders."""
    for i in range(11):
        write(tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png", noise(20 + i, 24 + i, seed=i))
    return tmp_path / "images"


def write_parquet(path: Path, images: list[dict[str, Any] | None], row_group: int = 4) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array(images, type=kind)
    table = pa.table({"image": column, "label": pa.array(range(len(images)))})
    pq.write_table(table, path, row_group_size=row_group)
    return path


def cells(count: int, first: int = 0) -> list[dict[str, Any] | None]:
    return [
        {"bytes": encoded(Image.fromarray(noise(20, 24, seed=first + i))), "path": f"{i}.png"}
        for i in range(count)
    ]


def drawn(dataset: CropDataset, start: int = 0, steps: int = 6, **changes: Any) -> list[Batch]:
    settings: dict[str, Any] = {"seed": 3, "stage": "tune", "batch_size": 4} | changes
    return list(dataset.batches(StageSteps(start=start, steps=steps, **settings)))


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert [b.samples for b in left] == [b.samples for b in right]
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.inputs, b.inputs)


# --- decoding ----------------------------------------------------------------------------------


def grey16() -> Image.Image:
    return Image.fromarray(np.array([[0, 257 * 100, 65535], [128, 129, 32768]], dtype=np.uint16))


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=1) if transparent else encoded(image)


DECODING: dict[str, tuple[Callable[[], bytes], list[Any]]] = {
    "rgb": (
        lambda: encoded(Image.new("RGB", (1, 1), (1, 2, 3))),
        [[[1, 2, 3]]],
    ),
    "grey": (lambda: encoded(Image.new("L", (1, 1), 7)), [[[7, 7, 7]]]),
    "black and white": (lambda: encoded(Image.new("1", (1, 1), 1)), [[[255, 255, 255]]]),
    "palette": (lambda: palette(False), [[[10, 20, 30], [200, 100, 50]]]),
    "transparent palette": (lambda: palette(True), [[[10, 20, 30], [255, 255, 255]]]),
    "alpha": (
        lambda: encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 51))),
        [[[255, 204, 204]]],
    ),
    "grey with alpha": (lambda: encoded(Image.new("LA", (1, 1), (0, 0))), [[[255, 255, 255]]]),
    "transparent colour": (
        lambda: encoded(Image.new("RGB", (1, 1), (9, 9, 9)), transparency=(9, 9, 9)),
        [[[255, 255, 255]]],
    ),
    "16-bit png": (
        lambda: encoded(grey16()),
        [[[0] * 3, [100] * 3, [255] * 3], [[0] * 3, [1] * 3, [128] * 3]],
    ),
    "16-bit tiff": (
        lambda: encoded(grey16(), "TIFF"),
        [[[0] * 3, [100] * 3, [255] * 3], [[0] * 3, [1] * 3, [128] * 3]],
    ),
    "16-bit values in 32 bits": (
        lambda: encoded(Image.fromarray(np.array([[0, 65535]], dtype=np.int32)), "TIFF"),
        [[[0] * 3, [255] * 3]],
    ),
    "cmyk tiff": (
        lambda: encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"),
        [[[255, 0, 0]]],
    ),
    "first frame": (
        lambda: encoded(
            Image.new("RGB", (1, 1), (0, 0, 255)), "TIFF", save_all=True,
            append_images=[Image.new("RGB", (1, 1))],
        ),
        [[[0, 0, 255]]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DECODING)
def test_decoding_gives_rgb(case: str) -> None:
    content, expected = DECODING[case]
    pixels = decode(content())
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == expected


def test_cmyk_jpeg_has_its_colours() -> None:
    pixels = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 3


def test_the_first_of_a_phone_s_two_photographs_is_taken() -> None:
    first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16))
    pixels = decode(encoded(first, "MPO", save_all=True, append_images=[second]))
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, 0] = 255
    stored = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    corner = {
        1: (0, 0),
        2: (0, 2),
        3: (1, 2),
        4: (1, 0),
        5: (0, 0),
        6: (0, 1),
        7: (2, 1),
        8: (2, 0),
    }
    upright = decode(encoded(stored, exif=exif))
    assert upright.shape[:2] == ((2, 3) if orientation <= 4 else (3, 2))
    assert tuple(np.argwhere(upright[..., 0] == 255)[0]) == corner[orientation]


def test_a_path_decodes_like_its_content(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", noise(5, 7))
    assert np.array_equal(decode(path), noise(5, 7))
    assert np.array_equal(decode(path.read_bytes()), noise(5, 7))
    assert np.array_equal(decode(str(path)), noise(5, 7))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image of a known format"),
        (b"no image", "not an image of a known format"),
        (encoded(Image.fromarray(noise(64, 64)), "JPEG")[:1500], "truncated"),
        (encoded(Image.fromarray(noise(64, 64)))[:5000], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF", "not an image of a known"),
        (encoded(Image.new("F", (2, 2), 0.5), "TIFF"), "floating-point"),
        (encoded(Image.new("I", (2, 2), 70000), "TIFF"), "32-bit"),
    ],
)
def test_what_cannot_be_decoded_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        decode(content, name="holiday.jpg")
    assert str(caught.value).startswith("holiday.jpg: ")


def test_a_broken_chunk_is_a_data_error() -> None:
    content = bytearray(encoded(Image.fromarray(noise(64, 64))))
    content[60:64] = b"\0\0\0\0"
    with pytest.raises(DataError, match=r"^image: "):
        decode(bytes(content))


def test_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: No such file"):
        decode(tmp_path / "gone.png")


def test_too_many_pixels_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("L", (30, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    assert decode(content).shape == (30, 30, 3)  # between once and twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="exceeds limit"):
        decode(content)


@pytest.mark.parametrize(
    ("shape", "side", "expected"),
    [((40, 60), 20, (20, 30)), ((60, 40), 80, (120, 80)), ((30, 30), 30, (30, 30))],
)
def test_resizing_sets_the_short_side(
    shape: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    pixels = noise(*shape)
    assert short_side_size(shape, side) == expected
    resized = bicubic(Image.fromarray(pixels), expected)
    by_pillow = Image.fromarray(pixels).resize(expected[::-1], Image.Resampling.BICUBIC)
    assert np.array_equal(resized, np.asarray(by_pillow))


def test_crop_positions_span_the_image() -> None:
    pixels = noise(9, 12)
    assert np.array_equal(crop(pixels, (5, 5), 0.0, 0.0), pixels[:5, :5])
    assert np.array_equal(crop(pixels, (5, 5), 1.0, 1.0), pixels[-5:, -5:])
    assert np.array_equal(crop(pixels, (9, 9), 0.7, 0.0), pixels[:, :9])


def test_tensors_are_channels_first_in_the_unit_interval() -> None:
    tensor = to_tensor(np.array([[[0, 51, 255]]], dtype=np.uint8))
    assert tensor.shape == (3, 1, 1)
    assert torch.allclose(tensor.flatten(), torch.tensor([0.0, 0.2, 1.0]))


# --- batches -----------------------------------------------------------------------------------


def test_datasets_fulfil_the_contract(folder: Path) -> None:
    assert isinstance(FolderDataset(path=str(folder), image_size=8), Dataset)
    assert isinstance(SampleDataset(image_size=8), Dataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_gives_what_the_unbroken_run_gives(folder: Path, workers: int) -> None:
    whole = drawn(FolderDataset(path=str(folder), image_size=16, workers=0), steps=10)
    restarted = FolderDataset(path=str(folder), image_size=16, workers=workers)
    assert_same(drawn(restarted, start=7, steps=10), whole[7:])
    assert_same(drawn(restarted, start=0, steps=10), whole)


def test_a_pickled_dataset_gives_the_same(tmp_path: Path) -> None:
    dataset = ParquetDataset(
        path=str(write_parquet(tmp_path / "a.parquet", cells(9))), image_size=16, workers=0
    )
    before = drawn(dataset)
    assert_same(drawn(pickle.loads(pickle.dumps(dataset))), before)


def test_batches_have_the_contract_s_layout(folder: Path) -> None:
    batches = drawn(FolderDataset(path=str(folder), image_size=16, workers=0), start=2, steps=4)
    assert [b.samples for b in batches] == [(8, 9, 10, 11), (12, 13, 14, 15)]
    for batch in batches:
        assert batch.inputs.shape == (4, 3, 16, 16)
        assert batch.inputs.dtype == torch.uint8
        assert batch.inputs.min() < batch.inputs.max()
        assert batch.skipped == ()


def test_nothing_is_left_to_give_at_the_end(folder: Path) -> None:
    dataset = FolderDataset(path=str(folder), image_size=16, workers=2)
    assert drawn(dataset, start=6, steps=6) == []


@pytest.mark.parametrize("changes", [{"seed": 4}, {"stage": "train"}])
def test_seed_and_stage_change_the_batches(folder: Path, changes: dict[str, Any]) -> None:
    dataset = FolderDataset(path=str(folder), image_size=16, workers=0)
    assert not torch.equal(drawn(dataset)[0].inputs, drawn(dataset, **changes)[0].inputs)


def test_the_batch_size_does_not_change_the_samples(folder: Path) -> None:
    dataset = FolderDataset(path=str(folder), image_size=16, workers=0)
    fours = torch.cat([b.inputs for b in drawn(dataset, steps=6)])
    eights = torch.cat([b.inputs for b in drawn(dataset, steps=3, batch_size=8)])
    assert torch.equal(fours, eights)


def test_the_global_generator_is_left_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    dataset = FolderDataset(path=str(folder), image_size=16, workers=0)
    drawn(dataset)
    dataset.crops(3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


def flat_folder(path: Path, count: int) -> Path:
    """Images that are told apart by their grey."""
    for i in range(count):
        write(path / f"{i:03}.png", np.full((16, 16, 3), i, dtype=np.uint8))
    return path


def greys(images: torch.Tensor) -> list[int]:
    return [round(255 * float(image.mean())) for image in images]


def test_an_epoch_shows_every_training_image_once(tmp_path: Path) -> None:
    dataset = FolderDataset(
        path=str(flat_folder(tmp_path, 12)), image_size=8, workers=0, held_out=3
    )
    assert dataset.num_images == 9
    shown = [g for b in drawn(dataset, steps=9, batch_size=3) for g in greys(as_floats(b.inputs))]
    epochs = [shown[i : i + 9] for i in range(0, 27, 9)]
    held_out = set(greys(dataset.held_out().images))
    assert len(held_out) == 3
    for epoch in epochs:
        assert sorted(epoch) == sorted(set(range(12)) - held_out)
    assert epochs[0] != epochs[1]


def test_crops_are_a_function_of_seed_and_index(tmp_path: Path) -> None:
    dataset = FolderDataset(
        path=str(flat_folder(tmp_path, 12)), image_size=8, workers=0, held_out=3
    )
    crops = dataset.crops(70, seed=1)
    assert crops.shape == (70, 3, 8, 8)
    assert torch.equal(dataset.crops(5, seed=1), crops[:5])
    assert not torch.equal(dataset.crops(70, seed=2), crops)
    assert set(greys(crops)) == set(range(12)) - set(greys(dataset.held_out().images))
    assert dataset.crops(0, seed=1).shape == (0, 3, 8, 8)


def test_large_images_are_shrunk_and_small_ones_left(tmp_path: Path) -> None:
    def shrunk(pixels: Any, side: int) -> Any:
        return bicubic(Image.fromarray(pixels), short_side_size(pixels.shape[:2], side))

    large, small = noise(60, 90, seed=1), noise(21, 30, seed=2)
    write(tmp_path / "a.png", large)
    write(tmp_path / "b.png", small)
    dataset = FolderDataset(path=str(tmp_path), image_size=16, workers=0)
    assert np.array_equal(dataset._reader.read(0), shrunk(large, 24))
    assert np.array_equal(dataset._reader.read(1), small)
    resized = FolderDataset(path=str(tmp_path), image_size=16, resize=32, workers=0)
    assert np.array_equal(resized._reader.read(0), shrunk(large, 32))
    assert np.array_equal(resized._reader.read(1), shrunk(small, 32))


# --- images that cannot be used ------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_images_are_replaced_and_reported_once(tmp_path: Path, workers: int) -> None:
    flat_folder(tmp_path, 8)
    (tmp_path / "002.png").write_bytes(b"no image")
    write(tmp_path / "005.png", noise(6, 40))
    dataset = FolderDataset(path=str(tmp_path), image_size=8, workers=workers, held_out=1)
    batches = drawn(dataset, steps=6, batch_size=7, seed=0)
    first = held_out_indices(8, 1)
    assert first == [2]
    shown = [g for b in batches for g in greys(as_floats(b.inputs))]
    assert shown.count(6) == 2 * len(batches)
    reported = [text for b in batches for text in b.skipped]
    assert reported == [f"{tmp_path / '005.png'}: 40×6 pixels are less than the crop of 8×8"]
    again = FolderDataset(path=str(tmp_path), image_size=8, workers=workers, held_out=1)
    assert_same(drawn(again, start=3, steps=6, batch_size=7, seed=0), batches[3:])


def test_replacement_wraps_and_passes_over_several(tmp_path: Path) -> None:
    flat_folder(tmp_path, 6)
    for name in ("004.png", "005.png"):
        (tmp_path / name).write_bytes(b"no image")
    dataset = FolderDataset(path=str(tmp_path), image_size=8, workers=0, held_out=1)
    assert held_out_indices(6, 1) == [2]
    (batch,) = drawn(dataset, steps=1, batch_size=5)
    assert sorted(greys(as_floats(batch.inputs))) == [0, 0, 0, 1, 3]
    assert len(batch.skipped) == 2
    assert all("not an image of a known format" in text for text in batch.skipped)


@pytest.mark.parametrize("workers", [0, 2])
def test_all_too_small_names_the_largest_and_the_way_out(tmp_path: Path, workers: int) -> None:
    for i, (height, width) in enumerate([(10, 90), (20, 25), (12, 12), (11, 11)]):
        write(tmp_path / f"{i}.png", noise(height, width))
    dataset = FolderDataset(path=str(tmp_path), image_size=32, workers=workers, held_out=1)
    message = (
        rf"none of 3 images in {tmp_path} is as large as the crop of 32×32 pixels; the largest has "
        r"25×20\. Set data.image_size to 20 or less, or data.resize to 32 or more, which enlarges"
    )
    with pytest.raises(DataError, match=f"^{message}"):
        drawn(dataset)
    with pytest.raises(DataError, match=message):
        dataset.crops(2, seed=0)
    with pytest.raises(DataError, match=r"held out: none of 1 images"):
        dataset.held_out()


def test_all_damaged_names_an_example(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(b"no image")
    dataset = FolderDataset(path=str(tmp_path), image_size=32, workers=0)
    with pytest.raises(DataError, match=r"none of 2 images .* 2 cannot be read, such as .*\d\.jpg"):
        drawn(dataset)


def test_damaged_and_too_small_are_both_said(tmp_path: Path) -> None:
    flat_folder(tmp_path, 4)
    (tmp_path / "001.png").write_bytes(b"no image")
    dataset = FolderDataset(path=str(tmp_path), image_size=32, workers=0, held_out=1)
    with pytest.raises(
        DataError, match=r"largest has 16×16 \(1 cannot be read, such as .*001\.png"
    ):
        drawn(dataset)


# --- held out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_images", "held_out", "expected"),
    [(1, 4, [0]), (2, 32, [0]), (3, 32, [0]), (10, 2, [2, 7]), (9, 3, [0, 2, 6]), (4, 2, [0, 2])],
)
def test_held_out_images_are_drawn_once_and_for_all(
    num_images: int, held_out: int, expected: list[int]
) -> None:
    assert held_out_indices(num_images, held_out) == expected


@pytest.mark.parametrize("num_images", [50_000, 5_000, 1_000])
def test_classes_that_take_turns_are_all_held_out(num_images: int) -> None:
    # Evenly spread, 32 of 50,000 images would be of four classes.
    counts = np.bincount(np.array(held_out_indices(num_images, 32)) % 10, minlength=10)
    assert (counts > 0).sum() >= 9
    assert counts.max() <= 8


def test_held_out_are_centre_crops(folder: Path) -> None:
    held_out = FolderDataset(path=str(folder), image_size=20, held_out=2, workers=0).held_out()
    # Sorted: a/00, a/02, a/04, a/06, a/08, a/10, b/01, b/03, …; the short sides are below 30.
    assert held_out.groups == ("a/04.png", "b/05.png")
    assert held_out.columns == {"a/04.png": 1, "b/05.png": 1}
    assert torch.equal(held_out.images[0], to_tensor(noise(24, 28, seed=4)[2:22, 4:24]))


def test_an_unusable_held_out_image_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat_folder(tmp_path, 8)
    (tmp_path / "002.png").write_bytes(b"no image")
    dataset = FolderDataset(path=str(tmp_path), image_size=8, held_out=2, workers=0)
    assert held_out_indices(8, 2) == [0, 2]
    with caplog.at_level(logging.WARNING):
        held_out = dataset.held_out()
    assert held_out.groups == ("000.png",)
    assert "002.png" in caplog.text


def test_a_single_image_is_trained_on_and_held_out(tmp_path: Path) -> None:
    write(tmp_path / "a.png", noise(16, 16))
    dataset = FolderDataset(path=str(tmp_path), image_size=16, workers=0)
    assert dataset.num_images == 1
    (batch,) = drawn(dataset, steps=1, batch_size=2)
    held_out = dataset.held_out()
    assert held_out.groups == ("a.png",)
    assert all(torch.equal(image, held_out.images[0]) for image in as_floats(batch.inputs))
    assert len(batch.notices) == 1
    assert "has a single image: it is trained on and measured on" in batch.notices[0]
    assert len(dataset.every_image()) == 1


# --- folder --------------------------------------------------------------------------------------


def test_a_folder_is_searched_with_subfolders_and_any_case(tmp_path: Path) -> None:
    for name in ("b/x.JPG", "a.Png", "c/d/e.tiff", "z.webp", ".hidden.png", ".cache/y.png"):
        write(tmp_path / name, noise(16, 16))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    source = FolderDataset(path=str(tmp_path), image_size=8, workers=0)._reader.source
    assert [source.name(i) for i in range(len(source))] == [
        "a.Png",
        "b/x.JPG",
        "c/d/e.tiff",
        "z.webp",
    ]


def test_construction_names_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        FolderDataset(path=str(tmp_path / "gone"), image_size=8)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"has no images: .*\.jpg, \.jpeg, \.png, \.webp, \.bmp"):
        FolderDataset(path=str(empty), image_size=8)
    single = write(empty / "a.png", noise(16, 16))
    with pytest.raises(DataError, match="is a file"):
        FolderDataset(path=str(single), image_size=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "data.image_size must be at least 1, got 0"),
        ({"image_size": 16, "resize": 12}, "data.resize = 12 is smaller than the crop"),
        ({"image_size": 16, "held_out": 0}, "data.held_out must be at least 1"),
    ],
)
def test_impossible_sizes_are_usage_errors(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        FolderDataset(path=str(folder), **settings)


# --- parquet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_parquet_gives_what_the_same_folder_gives(tmp_path: Path, workers: int) -> None:
    images = cells(11)
    (tmp_path / "shards").mkdir()
    write_parquet(tmp_path / "shards" / "0.parquet", images[:5], row_group=2)
    write_parquet(tmp_path / "shards" / "1.parquet", images[5:])
    for i, cell in enumerate(images):
        assert cell is not None
        (tmp_path / f"{i:02}.png").write_bytes(cell["bytes"])
    parquet = ParquetDataset(
        path=str(tmp_path / "shards"), image_size=16, workers=workers, held_out=3
    )
    files = FolderDataset(path=str(tmp_path), image_size=16, workers=0, held_out=3)
    assert_same(drawn(parquet), drawn(files))
    assert torch.equal(parquet.held_out().images, files.held_out().images)
    assert parquet.held_out().groups == ("0.parquet#0", "0.parquet#2", "1.parquet#3")


def test_parquet_keeps_a_few_row_groups(tmp_path: Path) -> None:
    source = ParquetSource(
        str(write_parquet(tmp_path / "a.parquet", cells(12), row_group=3)), "image", cached=2
    )
    for index in (0, 1, 2, 3, 0, 11, 9, 0):
        assert np.array_equal(decode(source.read(index)), noise(20, 24, seed=index))
    assert source._images.cache_info().misses == 3
    assert source._images.cache_info().currsize == 2


def test_parquet_rows_without_content_are_skipped(tmp_path: Path) -> None:
    images = [*cells(3), None, {"bytes": None, "path": "a.png"}, {"bytes": b"no", "path": None}]
    path = write_parquet(tmp_path / "a.parquet", images)
    dataset = ParquetDataset(path=str(path), image_size=16, workers=0, held_out=1)
    assert held_out_indices(6, 1) == [2]
    (batch,) = drawn(dataset, steps=1, batch_size=5)
    assert sorted(text.removeprefix(f"{path}") for text in batch.skipped) == [
        "#3: the row holds no image bytes",
        "#4: the row holds no image bytes",
        f"#5: not an image of a known format ({', '.join(FORMATS)})",
    ]


def test_construction_names_what_is_wrong_with_parquet(tmp_path: Path) -> None:
    def build(path: Path, **settings: Any) -> ParquetDataset:
        return ParquetDataset(path=str(path), image_size=8, **settings)

    with pytest.raises(DataError, match="there is no such file or folder"):
        build(tmp_path / "gone.parquet")
    with pytest.raises(DataError, match="has no Parquet files"):
        build(tmp_path)
    file = write_parquet(tmp_path / "a.parquet", cells(3))
    with pytest.raises(
        DataError, match=r"no column 'photo'; it has image, label\. Set data\.column"
    ):
        build(file, column="photo")
    with pytest.raises(DataError, match="column 'label' holds int64; images are binary, or struct"):
        build(file, column="label")
    with pytest.raises(DataError, match="has no rows"):
        build(write_parquet(tmp_path / "b.parquet", []))
    (tmp_path / "d.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as a Parquet file"):
        build(tmp_path / "d.parquet")


@pytest.mark.skipif(not IMAGENET.is_dir(), reason=f"{IMAGENET} is not there")
def test_imagenet_sample_is_read() -> None:
    dataset = ParquetDataset(path=str(IMAGENET), image_size=64, workers=0)
    assert dataset.num_images == 168
    held_out = dataset.held_out()
    assert held_out.images.shape == (32, 3, 64, 64)
    assert len(set(held_out.groups)) == 32
    (batch,) = drawn(dataset, steps=1, batch_size=32)
    assert batch.skipped == ()
    assert as_floats(batch.inputs).std() > 0.1


# --- sample --------------------------------------------------------------------------------------


def test_sample_holds_out_tiles_of_two_photographs() -> None:
    held_out = SampleDataset(image_size=32).held_out()
    assert held_out.images.shape == (128, 3, 32, 32)
    assert held_out.groups == ("china.jpg",) * 64 + ("motorcycle_left.png",) * 64
    assert held_out.columns == {"china.jpg": 8, "motorcycle_left.png": 8}
    whole = SampleDataset(image_size=256).held_out()
    tiles = held_out.images[:64].reshape(8, 8, 3, 32, 32).permute(2, 0, 3, 1, 4)
    assert torch.equal(tiles.reshape(3, 256, 256), whole.images[0])


@pytest.mark.parametrize(("size", "tiles"), [(48, 25), (256, 1), (300, 1)])
def test_sample_tiles_fill_the_region(size: int, tiles: int) -> None:
    held_out = SampleDataset(image_size=size).held_out()
    assert held_out.images.shape == (2 * tiles, 3, size, size)
    assert set(held_out.columns.values()) == {round(tiles**0.5)}


def test_sample_trains_on_other_photographs() -> None:
    dataset = SampleDataset(image_size=256)
    source = dataset._reader.source
    names = [source.name(i) for i in range(len(source))]
    assert dataset.num_images == 7
    assert not set(names[: dataset.num_images]) & set(dataset.held_out().groups)
    batches = drawn(dataset, steps=2, batch_size=7)
    assert [b.skipped for b in batches] == [(), ()]
    assert not torch.equal(batches[0].inputs, batches[1].inputs)


def test_sample_photographs_are_colour_and_stay_in_memory() -> None:
    dataset = SampleDataset(image_size=256)
    for i in range(len(dataset._reader.source)):
        pixels = dataset._reader.read(i)
        assert min(pixels.shape[:2]) >= 256
        assert np.ptp(pixels.astype(int), axis=2).mean() > 5
        assert dataset._reader.read(i) is pixels


def test_sample_is_cropped_at_its_natural_size_unless_told() -> None:
    assert SampleDataset(image_size=16)._reader.read(0).shape == (512, 512, 3)
    assert SampleDataset(image_size=16, resize=64)._reader.read(0).shape == (64, 64, 3)


def test_sample_says_when_the_crop_is_too_large() -> None:
    dataset = SampleDataset(image_size=900)
    with pytest.raises(DataError, match="none of 7 images in sample"):
        drawn(dataset)
    with pytest.raises(DataError, match="held out: none of 1 images"):
        dataset.held_out()
    assert SampleDataset(image_size=900, resize=900).held_out().images.shape == (2, 3, 900, 900)


def test_sample_names_a_missing_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rpiae.data.datasets.SAMPLE_TRAINING", (("skimage", "data/gone.png"),))
    with pytest.raises(
        DataError, match=r"skimage/data/gone.png is missing: reinstall scikit-image"
    ):
        SampleDataset(image_size=8)


# --- registry and configs --------------------------------------------------------------------------


def test_names_select_datasets() -> None:
    assert {"folder", "parquet", "sample"} <= set(DATASETS.names())
    assert DATASETS.select("folder:/data").tree == {"name": "folder", "path": "/data"}
    assert DATASETS.select("parquet:/data").tree == {"name": "parquet", "path": "/data"}
    assert DATASETS.config_class("sample") is SampleDatasetConfig


def test_configs_build_their_datasets(folder: Path, tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "a.parquet", cells(3))
    built = [
        FolderDatasetConfig(path=str(folder), image_size=8).build(),
        ParquetDatasetConfig(path=str(file), image_size=8).build(),
        SampleDatasetConfig(image_size=8).build(),
    ]
    assert [type(d) for d in built] == [FolderDataset, ParquetDataset, SampleDataset]
    assert [d._workers > 0 for d in built] == [True, True, False]


def test_config_ranges_are_checked() -> None:
    tree = {"path": "x", "resize": 0, "workers": -1, "held_out": 0}
    with pytest.raises(ConfigError) as caught:
        parse(tree, FolderDatasetConfig, source="data", converter=make_converter())
    assert len(caught.value.problems) == 3


def test_the_registry_and_configs_do_not_import_torch() -> None:
    code = "import sys, rpiae.data, rpiae.data.configs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_worker_outlives_its_batches(folder: Path) -> None:
    dataset = FolderDataset(path=str(folder), image_size=16, workers=2)
    batches = dataset.batches(StageSteps(seed=0, stage="tune", batch_size=2, start=0, steps=50))
    next(batches)
    assert multiprocessing.active_children()
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert not multiprocessing.active_children()
