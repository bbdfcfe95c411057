"""Weighted mixtures: which source a sample comes from, held-out images, configs, and a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rpiae import runs
from rpiae.cli import main
from rpiae.core.config.tree import dump_toml, read_toml
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.contracts import Batch, Dataset, StageSteps
from rpiae.core.model.resolve import part_config
from rpiae.core.training import events
from rpiae.data.held_out import held_out_indices
from tests.toys import DECODERS, ENCODERS


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Ten images of greys 0 to 9, and five of greys 100 to 104, one of which is damaged."""
    made = []
    for name, greys in (("dark", range(10)), ("light", range(100, 105))):
        folder = tmp_path / name
        folder.mkdir()
        for grey in greys:
            Image.fromarray(np.full((20, 24, 3), grey, dtype=np.uint8)).save(folder / f"{grey}.png")
        made.append(folder)
    (made[1] / "101.png").write_bytes(b"no image")
    return made[0], made[1]


def tree(folders: tuple[Path, Path], **fields: Any) -> dict[str, Any]:
    light = {"name": "folder", "path": str(folders[1]), "held_out": 1}
    return {
        "name": "mixture", "image_size": 8, "workers": 0,
        "sources": [{"data": f"folder:{folders[0]}", "weight": 3}, {"data": light}],
    } | fields  # fmt: skip


def built(folders: tuple[Path, Path], **fields: Any) -> Any:
    dataset = part_config("datasets", tree(folders, **fields)).build()
    assert isinstance(dataset, Dataset)
    return dataset


def drawn(dataset: Any, start: int = 0, steps: int = 40, **changes: Any) -> list[Batch]:
    settings: dict[str, Any] = {"seed": 3, "stage": "tune", "batch_size": 5} | changes
    return list(dataset.batches(StageSteps(start=start, steps=steps, **settings)))


def greys(batches: list[Batch]) -> list[int]:
    return [int(i[0, 0, 0]) for batch in batches for i in batch.inputs]


def test_samples_are_drawn_by_weight_and_each_source_has_its_epochs(
    folders: tuple[Path, Path],
) -> None:
    dataset = built(folders)
    assert dataset.num_images == 5 + 4
    shown = greys(drawn(dataset))
    dark = [g for g in shown if g < 100]
    light = [g for g in shown if g >= 100]
    assert 0.65 < len(dark) / len(shown) < 0.85  # 3 of 4; 200 draws have a deviation of 0.03
    for i in range(0, len(dark) - 4, 5):
        assert len(set(dark[i : i + 5])) == 5
    assert set(light) == {100, 103, 104}  # 102 is held out, 101 damaged and replaced


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_and_a_split_give_what_one_unbroken_process_gives(
    folders: tuple[Path, Path], workers: int
) -> None:
    whole = drawn(built(folders))
    text = [t for b in whole for t in b.skipped]
    assert len(text) == 1
    assert "101.png: not an image" in text[0]
    tail = drawn(built(folders, workers=workers), start=33)
    assert [b.samples for b in tail] == [b.samples for b in whole[33:]]
    assert greys(tail) == greys(whole[33:])
    parts = [drawn(built(folders), steps=6, rank=r, num_processes=2) for r in range(2)]
    assert [g for pair in zip(*parts, strict=True) for g in greys(list(pair))] == greys(whole[:6])
    for step in range(6):
        images = torch.cat([part[step].inputs for part in parts])
        assert torch.equal(images, whole[step].inputs)


def test_held_out_images_are_named_after_their_source(folders: tuple[Path, Path]) -> None:
    held_out = built(folders).held_out()
    assert held_out.groups == (
        *(f"folder/{g}.png" for g in held_out_indices(10, 32)), "folder-2/102.png",
    )  # fmt: skip
    assert held_out.columns == dict.fromkeys(held_out.groups, 1)
    shown = {round(float(image[0, 0, 0]) * 255) for image in held_out.images}
    assert not shown & set(greys(drawn(built(folders))))


def test_an_epoch_can_be_given_and_crops_follow_the_weights(folders: tuple[Path, Path]) -> None:
    dataset = built(folders, epoch_images=1000)
    assert dataset.num_images == 1000
    crops = dataset.crops(100, seed=0)
    assert crops.shape == (100, 3, 8, 8)
    assert 10 < int((crops[:, 0, 0, 0] > 0.3).sum()) < 40
    assert torch.equal(crops, built(folders).crops(100, seed=0))


def test_contradictions_are_named(folders: tuple[Path, Path]) -> None:
    dark = str(folders[0])

    def refused(match: str, *sources: Any, error: type[Exception] = UsageError) -> None:
        with pytest.raises(error, match=match):
            built(folders, sources=list(sources))

    refused("needs at least one dataset")
    refused(r"sources\[0\]\.weight must be above 0", {"data": f"folder:{dark}", "weight": 0})
    part = {"name": "folder", "path": dark}
    refused(r"sources\[0\] has crops of 16 pixels", {"data": part | {"image_size": 16}})
    refused(r"sources\[0\] has aspect-ratio buckets", {"data": part | {"buckets": 3}})
    refused(r"sources\[0\]\.data\.workers has no effect", {"data": part | {"workers": 1}})
    refused(r"sources\[0\] is a mixture, which cannot be mixed", {"data": tree(folders)})
    refused(
        r"3 problems: sources\[0\]\.data: no dataset named 'sampel'\. Did you mean 'sample'\?"
        r".*sources\[1\]\.data\.colum: no such field.*sources\[1\]\.weight: must be at least 0",
        {"data": "sampel"},
        {"data": {"name": "parquet", "path": dark, "colum": "x"}, "weight": -1.0},
        error=ConfigError,
    )
    refused(r"sources\[0\]\.data: expected one of the datasets", {"data": 3}, error=ConfigError)


def test_a_mixture_trains_from_a_file_and_resumes(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {
        "encoder": ENCODERS["vit"], "bridge": "vb4", "decoder": DECODERS["vit"],
        "data": tree(folders, image_size=16),
        "recipe": {"name": "quick", "batch_size": 4, "max_steps": 2, "checkpoint_every": 1},
        "out": str(tmp_path / "run"), "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    resolved = runs.resolve(run)
    text = dump_toml(resolved.config)
    (tmp_path / "run.toml").write_text(text)
    again = runs.resolve(read_toml(tmp_path / "run.toml"))
    assert again.config == resolved.config
    assert main(["build", "--config", str(tmp_path / "run.toml"), "--dry-run"]) == 0
    assert "data mixture" in capsys.readouterr().out
    happened = runs.run(resolved)
    for event in happened:
        if isinstance(event, events.CheckpointSaved):
            break
    happened.close()  # type: ignore[attr-defined]  # a generator
    for event in runs.resume(tmp_path / "run"):
        if isinstance(event, events.StepDone):
            assert event.step == 2
            break


def test_a_mixture_is_written_in_toml(folders: tuple[Path, Path], tmp_path: Path) -> None:
    text = (
        'data = {name = "mixture", sources = ['
        f'{{data = "folder:{folders[0]}", weight = 2}}, {{data = "sample"}}]}}\n'
    )
    (tmp_path / "run.toml").write_text(text)
    config = runs.resolve(read_toml(tmp_path / "run.toml")).config.data
    assert config is not None
    dataset = config.build()
    assert dataset.num_images == 5 + 7
    assert dataset.image_size == runs.resolve().tokenizer.encoder_facts.image_size
