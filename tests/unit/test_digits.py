"""The dataset of handwritten digits."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from sklearn.datasets import load_digits
from torch import Tensor

from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import StageSteps
from rpiae.core.model.resolve import part_config
from rpiae.core.training.feed import as_floats
from rpiae.data.digits import DigitsDataset, digits_file, enlarged, read_digits
from rpiae.data.fingerprint import data_fingerprint
from rpiae.data.packaged_configs import DigitsDatasetConfig


def every(dataset: DigitsDataset) -> tuple[Tensor, list[int], list[str]]:
    """Images, labels and names of all that is gone through."""
    images = dataset.every_image()
    crops = [images[i] for i in range(len(images))]
    pixels = [crop.pixels for crop in crops if crop.pixels is not None]
    return torch.stack(pixels), [crop.label for crop in crops], [crop.name for crop in crops]


def digits(text: str = "digits", **values: Any) -> DigitsDatasetConfig:
    config = part_config("datasets", text)
    assert isinstance(config, DigitsDatasetConfig)
    return evolve(config, **{"image_size": 16, **values})


def test_scans_are_those_of_scikit_learn() -> None:
    ours, theirs = read_digits(digits_file()), load_digits()
    assert np.array_equal(ours.scans, theirs.images)
    assert np.array_equal(ours.labels, theirs.target)


def test_images_at_their_own_size_are_the_scans_in_three_equal_channels() -> None:
    images, labels, names = every(DigitsDataset(image_size=8))
    theirs = load_digits()
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])
    assert np.array_equal(np.round(images[:, 0].numpy() * (16 / 255)), theirs.images)
    assert labels == theirs.target.tolist()
    assert names[:2] == ["0000", "0001"]
    assert len(set(names)) == 1797


def test_means_over_the_squares_of_a_pixel_come_near_it() -> None:
    theirs = load_digits().images
    images = every(DigitsDataset(image_size=32))[0][:, 0].double()
    means = torch.nn.functional.avg_pool2d(images, 4).numpy() * (16 / 255)
    assert 0.9 < np.sqrt(((means - theirs) ** 2).mean()) < 1.1


def test_no_crop_cuts_a_digit_unless_told() -> None:
    dataset = DigitsDataset(image_size=16, held_out=20)
    steps = StageSteps(seed=1, stage="one", batch_size=8, start=0, steps=1)
    [batch] = dataset.batches(steps)
    whole = {image.numpy().tobytes() for image in every(dataset)[0]}
    assert all(
        (image * 255).round().byte().numpy().tobytes() in whole for image in as_floats(batch.inputs)
    )
    resized = DigitsDataset(image_size=16, resize=24, held_out=20)
    [cut] = resized.batches(steps)
    assert not torch.equal(batch.inputs, cut.inputs)
    assert cut.inputs.shape == batch.inputs.shape
    assert digits().resized(24).resize is None


def test_as_many_of_every_digit_are_held_out_and_never_trained_on() -> None:
    dataset = digits(held_out=43).build()
    held_out = dataset.held_out()
    _, labels, names = every(digits("digits:held-out", held_out=43).build())
    assert list(held_out.groups) == names
    assert sorted(np.bincount(labels, minlength=10)) == [4] * 7 + [5] * 3
    _, learned, training = every(digits("digits:train", held_out=43).build())
    assert dataset.num_images == len(training) == 1797 - 43
    assert not set(training) & set(names)
    assert set(learned) == set(range(10))


def test_at_most_half_of_a_digit_is_held_out() -> None:
    assert len(DigitsDataset(image_size=8, held_out=1_000_000).held_out().images) == 896


def test_labels_have_names() -> None:
    images = DigitsDataset(image_size=8).every_image()
    assert images.labelled
    assert images.label_names == tuple("0123456789")


def test_adm_crops_are_the_same() -> None:
    images = DigitsDataset(image_size=16, held_out=10, portion="held-out").every_image()
    adm = images.cropped("adm")
    for i in range(len(images)):
        ours, theirs = images[i].pixels, adm[i].pixels
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)


def test_portions_and_versions_of_the_file_have_fingerprints_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data_fingerprint(digits())
    assert data_fingerprint(digits("digits:train")) != first
    assert data_fingerprint(digits(workers=3)) == first
    other = tmp_path / digits_file().name
    with gzip.open(other, "wt") as file:
        file.write(",".join(["0"] * 65) + "\n")
    monkeypatch.setattr("rpiae.data.digits.digits_file", lambda: other)
    data_fingerprint.cache_clear()
    assert data_fingerprint(digits()) != first


def test_the_package_is_not_imported() -> None:
    import subprocess

    code = (
        "import sys; from rpiae.data.digits import DigitsDataset; "
        "DigitsDataset(image_size=8).held_out(); sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"nothing", "cannot be read"),
        (gzip.compress(b"0,1,2\n" * 3)[:-12], "cannot be read"),
        (gzip.compress(b"one,two\n"), "cannot be read"),
        (gzip.compress(b""), "is no table of scans"),
        (gzip.compress(b"0,1,2\n"), "is no table of scans: expected 64 values from 0 to 16"),
        (gzip.compress(b"17," + b"0," * 63 + b"1\n"), "is no table of scans"),
        (gzip.compress(b"0," * 64 + b"10\n"), "is no table of scans"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "digits.csv.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read_digits(file)


def test_a_missing_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"digits.csv.gz is missing: reinstall scikit-learn"):
        digits_file()


def test_what_contradicts_is_refused() -> None:
    with pytest.raises(UsageError, match="is smaller than the crop"):
        DigitsDataset(image_size=16, resize=8)
    with pytest.raises(UsageError, match="held_out must be at least 1"):
        DigitsDataset(image_size=16, held_out=0)


def test_enlarged_pictures_are_grey() -> None:
    scan = np.zeros((8, 8), dtype=np.uint8)
    scan[2:6, 3] = 16
    picture = enlarged(scan, 8)
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture) > 0, scan > 0)
    assert np.asarray(picture).max() == 255
