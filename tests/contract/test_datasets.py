"""The kit's check of datasets, on the built-in ones and on broken ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import evolve, frozen
from PIL import Image
from torch import Tensor

from rpiae.core.config.parts import DatasetConfig
from rpiae.core.errors import PluginError
from rpiae.core.model.contracts import Batch, HeldOut, StageSteps
from rpiae.core.model.resolve import part_config
from rpiae.data.building import built_dataset
from rpiae.testing import SyntheticClips, SyntheticImages, check_dataset


@frozen(kw_only=True)
class SyntheticConfig(DatasetConfig):
    """Of one of the datasets below."""

    module: ClassVar[str] = "rpiae.data.synthetic:SyntheticImages"
    size: int = 8

    def arguments(self) -> dict[str, Any]:
        return {"size": self.size}


class Remembering(SyntheticImages):
    """Shows other images the second time."""

    turn = 0

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        for batch in super().batches(steps):
            self.turn += 1
            yield batch._replace(inputs=batch.inputs.roll(self.turn, 0))


class Whole(SyntheticImages):
    """Gives every process all images."""

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        return super().batches(evolve(steps, rank=0, num_processes=1))


class Silent(SyntheticImages):
    """Says nothing with its first batch."""

    notices = ("one image is left out",)


class Bytes(SyntheticImages):
    """Has images from 0 to 255."""

    def held_out(self) -> HeldOut:
        found = super().held_out()
        return found._replace(images=found.images * 255)


class Ungrouped(SyntheticImages):
    """Names no group for its second held-out image."""

    def held_out(self) -> HeldOut:
        return super().held_out()._replace(groups=("first",))


class Drawn(SyntheticImages):
    """Has crops that no seed decides."""

    def crops(self, count: int, *, seed: int) -> Tensor:
        return torch.rand(count, 3, 8, 8)


class Still(SyntheticClips):
    """Shows clips where single frames are drawn."""

    def __init__(self, *, size: int) -> None:
        super().__init__(size, 3)

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        return super().batches(evolve(steps, image_share=0.0))


class Apart(Still):
    """Every process draws for itself which steps are of single frames."""

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        clips = super().batches(steps)
        for step, batch in enumerate(clips, steps.start):
            single = evolve(steps, seed=steps.seed + steps.rank).of_frames(step)
            yield batch._replace(inputs=batch.inputs[:, :, 0]) if single else batch


class Unfit:
    """No dataset."""

    def __init__(self, *, size: int) -> None:
        self.image_size = size


def test_made_up_images() -> None:
    check_dataset(SyntheticConfig())


def test_made_up_clips() -> None:
    @frozen(kw_only=True)
    class Config(SyntheticConfig):
        module: ClassVar[str] = "rpiae.data.synthetic:SyntheticClips"

        def arguments(self) -> dict[str, Any]:
            return {"size": 8, "frames": 3}

    check_dataset(Config())


def test_sample_photographs() -> None:
    check_dataset(evolve(part_config("datasets", "sample"), image_size=32))


def test_digits() -> None:
    check_dataset(evolve(part_config("datasets", "digits"), image_size=16, held_out=20))


def test_a_folder(tmp_path: Path) -> None:
    for i in range(6):
        Image.effect_noise((40 + i, 50), 80).convert("RGB").save(tmp_path / f"{i}.png")
    tree = {"name": "folder", "path": str(tmp_path), "image_size": 16, "held_out": 2, "workers": 0}
    config = part_config("datasets", tree)
    assert isinstance(config, DatasetConfig)
    check_dataset(config)


def test_videos(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}").mkdir()
        for frame in range(9 + i):
            image = Image.effect_noise((24 + i, 30), 80).convert("RGB")
            image.save(tmp_path / f"{i}" / f"{frame}.png")
    tree = {"name": "videos", "path": str(tmp_path), "image_size": 16, "frames": 3, "workers": 0}
    config = part_config("datasets", tree)
    assert isinstance(config, DatasetConfig)
    check_dataset(config)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Remembering, "a step depends on those before it"),
        (Whole, "three processes see other images than one"),
        (Silent, "the first batch does not say the notices"),
        (Bytes, r"held_out\(\) goes from .* not from 0 to 1"),
        (Ungrouped, "needs a group per image"),
        (Drawn, r"crops\(\) is not repeatable"),
        (Still, r"single frames is \(4, 3, 3, 8, 8\), not \(4, 3, 8, 8\)"),
        (Apart, "two processes see other clips than one"),
        (Unfit, "Unfit does not fit Dataset"),
    ],
)
def test_what_is_wrong_is_named(kind: type, problem: str) -> None:
    @frozen(kw_only=True)
    class Config(SyntheticConfig):
        module: ClassVar[str] = f"{__name__}:{kind.__name__}"

    with pytest.raises(AssertionError, match=problem):
        check_dataset(Config())


def test_a_dataset_that_lacks_something_is_told() -> None:
    @frozen(kw_only=True)
    class Config(SyntheticConfig):
        module: ClassVar[str] = f"{__name__}:{Unfit.__name__}"

    assert isinstance(built_dataset(SyntheticConfig()), SyntheticImages)
    with pytest.raises(PluginError, match=r"lacks num_images, notices, .*check_dataset"):
        built_dataset(Config())
