"""What a run may go on with: told by what its fields are declared to affect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rpiae import runs
from rpiae.core.config.recipe import RunConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import UsageError
from rpiae.runs.changes import allowed_changes, differences
from tests.short_run import short_run, write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("changes") / "images", count=6)


def config(images: Path, *overrides: str, **fields: Any) -> RunConfig:
    return runs.resolve(short_run(images, Path("out")) | fields, overrides=overrides).config


FREE = [
    ("precision='bf16'", "rounding"),
    ("recipe.accumulate=2", "rounding"),
    ("recipe.recompute=true", "nothing"),
    ("recipe.keep_checkpoints=5", "nothing"),
    ("device='auto'", "nothing"),
    ("data.workers=3", "nothing"),
    ("data.path='elsewhere'", "place"),
    ("encoder.weights='moved.pth'", "start"),
    ("encoder.weights_key='model_ema'", "start"),
]


@pytest.mark.parametrize(("override", "affects"), FREE, ids=[row[0] for row in FREE])
def test_what_no_trained_weight_depends_on_may_change(
    images: Path, override: str, affects: str
) -> None:
    (change,) = allowed_changes(
        config(images), config(images, override), stage=2, step=1, source="r"
    )
    assert (change.path, change.affects) == (override.partition("=")[0], affects)


REFUSED = [
    "seed=4", "recipe.stages[0].noise=0.5", "recipe.stages[1].noise=0.5", "recipe.batch_size=2",
    "recipe.max_steps=3", "data.image_size=24", "data.held_out=1", "decoder.depth=2",
    "encoder.pretrained=true", "recipe.stages[0].terms[1].weight=0.9",
]  # fmt: skip


@pytest.mark.parametrize("override", REFUSED)
def test_what_is_trained_depends_on_the_rest(images: Path, override: str) -> None:
    path = override.partition("=")[0]
    with pytest.raises(UsageError) as caught:
        allowed_changes(config(images), config(images, override), stage=1, step=1, source="r")
    assert str(caught.value).startswith(f"r cannot go on with {path} ")


@pytest.mark.parametrize(("stage", "step", "free"), [(1, 0, True), (1, 1, False), (2, 0, False)])
def test_stages_that_are_not_begun_are_free(
    images: Path, stage: int, step: int, free: bool
) -> None:
    before, after = config(images), config(images, "recipe.stages[1].terms[0].weight=0.5")
    if free:
        allowed_changes(before, after, stage=stage, step=step, source="r")
        return
    with pytest.raises(UsageError, match="what is already trained"):
        allowed_changes(before, after, stage=stage, step=step, source="r")


def test_a_file_that_was_moved_is_the_same_file(images: Path, tmp_path: Path) -> None:
    one, moved, other = (tmp_path / name for name in ("one.pth", "moved.pth", "other.pth"))
    for file in (one, moved, other):
        file.write_bytes(b"other" if file is other else b"weights")

    def with_weights(file: Path) -> RunConfig:
        loss = f"recipe.stages[0].terms[1].loss={{name='lpips', weights='{file}'}}"
        return config(images, loss)

    found = [[c.affects for c in differences(with_weights(one), with_weights(file))]
             for file in (one, moved, other, tmp_path / "gone.pth")]  # fmt: skip
    assert found == [[], ["nothing"], ["result"], ["result"]]


def test_data_inside_data_may_lie_elsewhere(images: Path) -> None:
    def mixed(place: str) -> RunConfig:
        source: Tree = {"data": {"name": "folder", "path": place}}
        return config(images, data={"name": "mixture", "sources": [source], "image_size": 32})

    (change,) = differences(mixed(str(images)), mixed("elsewhere"))
    assert (change.path, change.affects) == ("data.sources[0].data.path", "place")


def test_another_part_differs_in_all_that_the_two_do_not_share(images: Path) -> None:
    found = list(differences(config(images).bridge, config(images, bridge="identity").bridge))
    assert all(change.affects == "result" for change in found)
    assert str(found[0]) == "name 'variational' → 'identity'"
