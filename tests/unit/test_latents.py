"""Latents of whole datasets: every image once, round trips, going on, and every refusal."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from rpiae.cli import main
from rpiae.core.errors import CheckpointError, DataError, RunError, UsageError
from rpiae.core.model.build import build
from rpiae.core.model.contracts import Batch, BatchSource, StageSteps
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.feed import Feed
from rpiae.data.images import to_tensor
from rpiae.data.listed import Listed, every_image
from rpiae.latents import LatentDataset, stored, writing
from rpiae.latents import shards as shard_files
from rpiae.latents.decoding import decode_latents, read_tensor
from rpiae.latents.encoding import measure_latents, tokenizer_digest
from rpiae.latents.layout import Plan, Settings, tree_digest
from rpiae.testing import SyntheticImages
from tests.toys import DECODERS, ENCODERS

SIZE = 32
COUNT = 11


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pixels(seed: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int, **size: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed, **size)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, contents: list[bytes], labels: list[int | None]) -> Path:
    """The layout in which Hugging Face ``datasets`` stores labelled images."""
    names = ["cat", "dog", "frog"]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    images = pa.array(
        [{"bytes": content, "path": None} for content in contents],
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({"image": images, "label": pa.array(labels, type=pa.int64())})
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(described), path, row_group_size=3)
    return path


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    return write_parquet(
        tmp_path / "images.parquet", [png(i) for i in range(COUNT)], [i % 3 for i in range(COUNT)]
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tokenizer's folder."""
    return saved(tmp_path_factory.mktemp("toy") / "tokenizer")


def saved(folder: Path, bridge: str = "vb4", seed: int = 0) -> Path:
    model = build(encoder=ENCODERS["vit"], bridge=bridge, decoder=DECODERS["vit"], seed=seed)
    model.trained_size = SIZE
    return save_tokenizer(model, folder)


def encode(
    tokenizer: Path,
    data: str,
    out: Path,
    *,
    rank: int = 0,
    processes: int = 1,
    batch_size: int = 3,
    overrides: tuple[str, ...] = ("data.workers=0",),
    **settings: Any,
) -> list[writing.Event]:
    model = load_tokenizer(tokenizer)
    assert model.config is not None
    images, fields = every_image(data, model.config, image_size=SIZE, overrides=overrides)
    runtime = Runtime(device="cpu", precision="fp32")
    runtime.rank, runtime.num_processes = rank, processes
    return list(
        writing.encode_dataset(
            model, images, out, data=fields, tokenizer=tokenizer, runtime=runtime,
            settings=Settings(**{"shard_size": 4} | settings), batch_size=batch_size,
        )
    )  # fmt: skip


def kinds(happened: list[writing.Event], kind: type) -> list[Any]:
    return [event for event in happened if isinstance(event, kind)]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("latents-*.safetensors"))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


def stacked(folder: Path, name: str) -> torch.Tensor:
    return torch.cat([tensors(path)[name] for path in shards(folder)])


def originals(count: int = COUNT) -> torch.Tensor:
    return torch.stack([to_tensor(pixels(i)) for i in range(count)])


# --- what is stored ----------------------------------------------------------------------------


def test_every_image_once_in_order_with_its_label(toy: Path, parquet: Path, tmp_path: Path) -> None:
    happened = encode(toy, f"parquet:{parquet}", tmp_path / "out")
    assert [path.name for path in shards(tmp_path / "out")] == [
        f"latents-0000{i}-of-00003.safetensors" for i in range(3)
    ]
    (finished,) = kinds(happened, writing.Finished)
    assert finished.index["count"] == COUNT
    assert [shard["count"] for shard in finished.index["shards"]] == [4, 4, 3]
    assert [e.done for e in kinds(happened, writing.Progressed)] == [3, 4, 7, 8, 11]
    assert stacked(tmp_path / "out", "position").tolist() == list(range(COUNT))
    assert stacked(tmp_path / "out", "label").tolist() == [i % 3 for i in range(COUNT)]

    model = load_tokenizer(toy)
    with torch.no_grad():
        expected = model.encode(originals()).mode()
    found = stacked(tmp_path / "out", "latent")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    values = expected.double().transpose(0, 1).flatten(1)
    statistics = finished.index["statistics"]
    assert statistics["count"] == values.shape[1]
    np.testing.assert_allclose(statistics["mean"], values.mean(1), atol=1e-6)
    np.testing.assert_allclose(statistics["std"], values.std(1, unbiased=False), rtol=1e-5)

    dataset = LatentDataset(tmp_path / "out")
    assert len(dataset) == COUNT
    assert dataset.label_names == ("cat", "dog", "frog")
    assert dataset.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert dataset.name(5) == "images.parquet#5"
    for i in (0, 4, COUNT - 1, -1):
        latent, label = dataset[i]
        assert torch.equal(latent, found[i])
        assert label == i % COUNT % 3
    with pytest.raises(IndexError):
        dataset[COUNT]


def test_what_the_source_leaves_out_is_told_once(toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    for name in ("a/0.png", "a/1.png"):
        (folder / name).write_bytes(png(0))
    (folder / "a" / "2.heic").write_bytes(b"x")
    happened = encode(toy, f"folder:{folder}", tmp_path / "out")
    told = [event.text for event in happened if isinstance(event, writing.Notice)]
    assert [("left out .heic (1)" in t, "1 of 2 classes have no images" in t) for t in told] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert LatentDataset(tmp_path / "out").label_names == ("a", "b")


def test_folders_are_classes_as_in_imagefolder(toy: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("dog/a.png", "cat/x/b.png", "c.png", "dog/d.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i, height=40, width=36))
    encode(toy, f"folder:{tmp_path / 'photos'}", tmp_path / "out")
    dataset = LatentDataset(tmp_path / "out")
    assert dataset.label_names == ("cat", "dog")
    assert [dataset.name(i) for i in range(4)] == ["c.png", "cat/x/b.png", "dog/a.png", "dog/d.png"]
    assert dataset.labels.tolist() == [-1, 0, 1, 1]


def test_without_labels(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(i))
    encode(toy, f"folder:{tmp_path / 'photos'}", tmp_path / "out")
    assert set(tensors(shards(tmp_path / "out")[0])) == {"latent", "position"}
    dataset = LatentDataset(tmp_path / "out")
    assert dataset[1][1] == -1
    assert dataset.labels.tolist() == [-1, -1, -1]


def test_label_columns(toy: Path, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [png(i) for i in range(4)], [2, None, -7, 0])
    encode(toy, f"parquet:{path}", tmp_path / "out")
    assert LatentDataset(tmp_path / "out").labels.tolist() == [2, -1, -1, 0]
    table = pq.read_table(path)
    pq.write_table(table.rename_columns(["image", "class"]), tmp_path / "b.parquet")
    renamed = ("data.workers=0", "data.label_column='class'")
    encode(toy, f"parquet:{tmp_path / 'b.parquet'}", tmp_path / "b", overrides=renamed)
    assert LatentDataset(tmp_path / "b").labels.tolist() == [2, -1, -1, 0]
    encode(toy, f"parquet:{tmp_path / 'b.parquet'}", tmp_path / "none")
    assert LatentDataset(tmp_path / "none").labels.tolist() == [-1] * 4
    for column, wanted in (
        ("nothing", "has no column 'nothing'"),
        ("image", "labels are whole numbers"),
    ):
        with pytest.raises(DataError, match=wanted):
            encode(
                toy, f"parquet:{path}", tmp_path / "x",
                overrides=(f"data.label_column='{column}'",),
            )  # fmt: skip


def test_centre_crops_are_those_of_held_out_images(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(4):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(i, height=70 + i, width=90 - i))
    model = load_tokenizer(toy)
    assert model.config is not None
    images, _ = every_image(
        f"folder:{tmp_path / 'photos'}", model.config, image_size=SIZE,
        overrides=("data.held_out=2",),
    )  # fmt: skip
    from rpiae.data.datasets import FolderDataset

    held_out = FolderDataset(path=str(tmp_path / "photos"), image_size=SIZE, held_out=2).held_out()
    for name, image in zip(held_out.groups, held_out.images, strict=True):
        (crop,) = (images[i] for i in range(4) if images.name(i) == name)
        assert crop.pixels is not None
        assert torch.equal(crop.pixels.float() / 255, image)
    assert "shrunk" in images.rule
    assert "centre crop 32×32" in images.rule


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_batch_size_and_workers_change_nothing(
    toy: Path, parquet: Path, tmp_path: Path, batch_size: int
) -> None:
    settings = {"posterior": "sample", "seed": 5}
    encode(toy, f"parquet:{parquet}", tmp_path / "a", batch_size=3, **settings)
    encode(
        toy, f"parquet:{parquet}", tmp_path / "b", batch_size=batch_size,
        overrides=("data.workers=1",), **settings,
    )  # fmt: skip
    left, right = (stacked(tmp_path / name, "latent") for name in "ab")
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    one, other = (LatentDataset(tmp_path / name) for name in "ab")
    torch.testing.assert_close(one.mean, other.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.std, other.std, atol=1e-6, rtol=0)


def test_processes_divide_the_shards_and_change_no_byte(
    toy: Path, parquet: Path, tmp_path: Path
) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "one", flip=True)
    encode(toy, f"parquet:{parquet}", tmp_path / "two", flip=True)
    for path in shards(tmp_path / "two")[::2]:
        path.unlink()
    kept = shards(tmp_path / "two")
    happened = encode(toy, f"parquet:{parquet}", tmp_path / "two", flip=True, processes=2)
    (started,) = kinds(happened, writing.Started)
    assert started.kept == 0
    assert len(kept) == 1
    for path in (*shards(tmp_path / "one"), tmp_path / "one" / "index.json"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_mirrored_images(toy: Path, parquet: Path, tmp_path: Path) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out", flip=True)
    model = load_tokenizer(toy)
    with torch.no_grad():
        expected = model.encode(originals().flip(-1)).mode()
    found = stacked(tmp_path / "out", "latent_flipped")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    both = torch.cat([stacked(tmp_path / "out", "latent"), found]).double()
    dataset = LatentDataset(tmp_path / "out", flip=True)
    torch.testing.assert_close(
        dataset.mean.flatten().double(), both.mean((0, 2, 3)), atol=1e-6, rtol=0
    )
    torch.manual_seed(0)
    drawn = [dataset[3][0] for _ in range(40)]
    mirrored = sum(torch.equal(latent, found[3]) for latent in drawn)
    assert 5 < mirrored < 35
    assert sum(not torch.equal(latent, found[3]) for latent in drawn) == 40 - mirrored


def test_samples_are_named_by_the_seed(toy: Path, parquet: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        encode(toy, f"parquet:{parquet}", tmp_path / name, posterior="sample", seed=seed)
    a, b, c = (stacked(tmp_path / name, "latent") for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_moments_are_sampled_when_read(toy: Path, parquet: Path, tmp_path: Path) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out", posterior="moments", flip=True)
    assert set(tensors(shards(tmp_path / "out")[0])) == {
        "mean", "logvar", "mean_flipped", "logvar_flipped", "label", "position",
    }  # fmt: skip
    mean, logvar = (stacked(tmp_path / "out", name) for name in ("mean", "logvar"))
    exact = LatentDataset(tmp_path / "out", sample=False)
    assert torch.equal(exact[2][0], mean[2])
    dataset = LatentDataset(tmp_path / "out", flip=True)
    torch.manual_seed(0)
    assert not torch.equal(dataset[2][0], dataset[2][0])
    plain = LatentDataset(tmp_path / "out")
    draws = torch.stack([plain[2][0] for _ in range(2000)])
    torch.testing.assert_close(draws.std(0), (0.5 * logvar[2]).exp(), rtol=0.15, atol=0)

    every = torch.cat([mean, stacked(tmp_path / "out", "mean_flipped")]).double()
    spread = torch.cat([logvar, stacked(tmp_path / "out", "logvar_flipped")]).double().exp()
    variance = every.var((0, 2, 3), unbiased=False) + spread.mean((0, 2, 3))
    torch.testing.assert_close(dataset.std.flatten().double(), variance.sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("posterior", "flip"), [("mode", False), ("moments", True)])
def test_latents_are_fed_like_images(
    toy: Path, parquet: Path, tmp_path: Path, posterior: str, flip: bool
) -> None:
    encode(
        toy, f"parquet:{parquet}", tmp_path / "out", posterior=posterior, flip=flip, dtype="fp16"
    )
    dataset = LatentDataset(tmp_path / "out", flip=flip)
    source: BatchSource = dataset

    def steps(start: int = 0, **share: int) -> StageSteps:
        return StageSteps(seed=1, stage="s", batch_size=4, start=start, steps=7, **share)

    def drawn(start: int = 0, workers: int = 0, **share: int) -> list[Batch]:
        dataset = LatentDataset(tmp_path / "out", flip=flip, workers=workers)
        return list(dataset.batches(steps(start, **share)))

    whole = drawn()
    assert whole[0].inputs.dtype == (torch.float16 if posterior == "mode" else torch.float32)
    assert [batch.samples for batch in whole[:2]] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    later, shares = drawn(start=5, workers=2), [drawn(rank=r, num_processes=3) for r in range(3)]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(later, whole[5:], strict=True))
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([share[step].inputs for share in shares]), batch.inputs)
    fed = list(Feed(source.batches(steps()), torch.device("cpu")))
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(fed, whole, strict=True))
    labels = torch.cat([batch.labels for batch in whole if batch.labels is not None])
    epoch = labels[: source.num_images]
    assert sorted(epoch.tolist()) == sorted(dataset.labels.tolist())
    if posterior == "mode":
        shown = torch.cat([batch.inputs for batch in whole])[: source.num_images]
        assert {tuple(row) for row in shown.flatten(1).tolist()} == {
            tuple(dataset[i][0].half().flatten().tolist()) for i in range(len(dataset))
        }


def test_damaged_latents_end_a_feed_with_a_reason(toy: Path, parquet: Path, tmp_path: Path) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out")
    dataset = LatentDataset(tmp_path / "out", workers=1)
    (path, *_) = shards(tmp_path / "out")
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    batches = dataset.batches(StageSteps(seed=1, stage="s", batch_size=COUNT, start=0, steps=1))
    with pytest.raises(DataError, match=r"rpiae encode again"):
        next(batches)


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_stored_types(
    toy: Path, parquet: Path, tmp_path: Path, dtype: str, kind: torch.dtype
) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out", dtype=dtype)
    found = stacked(tmp_path / "out", "latent")
    assert found.dtype == kind
    dataset = LatentDataset(tmp_path / "out")
    assert dataset[0][0].dtype == torch.float32
    expected = found.double().mean((0, 2, 3))
    torch.testing.assert_close(dataset.mean.flatten().double(), expected, atol=1e-7, rtol=1e-6)


def test_loaders_read_it(toy: Path, parquet: Path, tmp_path: Path) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out")
    dataset = LatentDataset(tmp_path / "out")
    assert dataset[0][0].shape == dataset.latent_shape
    for workers in (0, 1):
        loader = DataLoader(dataset, batch_size=4, num_workers=workers)
        latents, labels = zip(*loader, strict=True)
        assert torch.equal(torch.cat(latents), stacked(tmp_path / "out", "latent"))
        assert torch.cat(labels).tolist() == dataset.labels.tolist()
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[7][0], dataset[7][0])
    latents = torch.stack([latent for latent, _ in dataset])  # type: ignore[attr-defined]
    unit = dataset.normalised(latents)
    torch.testing.assert_close(unit.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(unit.std((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(dataset.denormalised(unit), latents, atol=1e-5, rtol=0)


def test_safetensors_alone_are_enough(
    toy: Path, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code in docs/latents.md that needs no rpiae."""
    encode(toy, f"parquet:{parquet}", tmp_path / "latents", dtype="bf16")
    page = (Path(__file__).parents[2] / "docs" / "latents.md").read_text(encoding="utf-8")
    code = page.partition("## Read them with safetensors alone")[2]
    code = code.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {"found": []}
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        exec(code.rstrip() + "\n            found.append(x)\n", seen)
    dataset = LatentDataset("latents")
    expected = dataset.normalised(torch.stack([dataset[i][0] for i in range(COUNT)]))
    torch.testing.assert_close(torch.stack(seen["found"]), expected)
    with safe_open(shards(Path("latents"))[2], "np") as file:
        described = json.loads(file.metadata()["rpiae"])
    assert described["names"] == [f"images.parquet#{i}" for i in (8, 9, 10)]


# --- going on ----------------------------------------------------------------------------------


def test_only_what_is_missing_is_written(toy: Path, parquet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards(out)}
    gone = shards(out)[1]
    gone.unlink()
    happened = encode(toy, f"parquet:{parquet}", out)
    assert kinds(happened, writing.Started)[0].kept == 2
    assert [e.done for e in kinds(happened, writing.Progressed)] == [10, 11]
    for path, (content, modified) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == modified) == (path != gone)
    again = encode(toy, f"parquet:{parquet}", out, batch_size=7)
    assert kinds(again, writing.Started)[0].kept == 3


def test_half_written_files_are_ignored(toy: Path, parquet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    first = shards(out)[0]
    content = first.read_bytes()
    half = out / f".{first.name}.part"
    half.write_bytes(content[:100])
    first.unlink()
    encode(toy, f"parquet:{parquet}", out)
    assert not half.exists()
    assert first.read_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "emptied", "foreign", "other shard"])
def test_damaged_shards_are_written_anew(
    toy: Path, parquet: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    path = shards(out)[1]
    content = path.read_bytes()
    if damage == "foreign":
        save_file({"latent": torch.zeros(4, 4, 8, 8)}, path)
    elif damage == "other shard":
        shutil.copy(shards(out)[0], path)
    else:
        path.write_bytes(content[:-10] if damage == "cut" else b"")
    with pytest.raises(CheckpointError, match="rpiae encode again"):
        LatentDataset(out)
    happened = encode(toy, f"parquet:{parquet}", out)
    (notice,) = kinds(happened, writing.Notice)
    assert "written anew" in notice.text
    assert path.name in notice.text
    assert path.read_bytes() == content


def test_an_interrupted_call_leaves_complete_shards(
    toy: Path, parquet: Path, tmp_path: Path
) -> None:
    model = load_tokenizer(toy)
    assert model.config is not None
    images, fields = every_image(f"parquet:{parquet}", model.config, image_size=SIZE)
    happened = writing.encode_dataset(
        model, images, tmp_path / "out", data=fields, tokenizer=toy, batch_size=2,
        settings=Settings(shard_size=4), runtime=Runtime(device="cpu", precision="fp32"),
    )  # fmt: skip
    for event in happened:
        if isinstance(event, writing.Progressed) and event.done == 6:
            break
    with pytest.raises(UsageError, match="another rpiae encode is at work"):
        encode(toy, f"parquet:{parquet}", tmp_path / "out")
    happened.close()  # type: ignore[attr-defined]  # a generator
    assert len(shards(tmp_path / "out")) == 1
    with pytest.raises(CheckpointError, match="1 of 3 shards"):
        LatentDataset(tmp_path / "out")
    rest = encode(toy, f"parquet:{parquet}", tmp_path / "out")
    assert kinds(rest, writing.Started)[0].kept == 1
    encode(toy, f"parquet:{parquet}", tmp_path / "whole", batch_size=2)
    assert len(LatentDataset(tmp_path / "out")) == COUNT
    torch.testing.assert_close(
        stacked(tmp_path / "out", "latent"),
        stacked(tmp_path / "whole", "latent"),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"dtype": "bf16"}, 'dtype is "fp32" there and "bf16" here'),
        ({"flip": True}, "flip is false there and true here"),
        ({"posterior": "sample"}, "posterior is"),
        ({"shard_size": 5}, "shard_size is 4 there and 5 here"),
        ({"overrides": ("data.resize=40",)}, "data.resize is"),
    ],
)
def test_other_arguments_are_refused(
    toy: Path, parquet: Path, tmp_path: Path, changes: dict[str, Any], wanted: str
) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match="made otherwise") as raised:
        encode(toy, f"parquet:{parquet}", out, **changes)
    assert wanted in str(raised.value)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_another_tokenizer_or_dataset_is_refused(toy: Path, parquet: Path, tmp_path: Path) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out")
    other = saved(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="tokenizer is"):
        encode(other, f"parquet:{parquet}", tmp_path / "out")
    write_parquet(parquet, [png(i) for i in range(COUNT + 1)], [0] * (COUNT + 1))
    with pytest.raises(UsageError, match="num_images is 11 there and 12 here"):
        encode(toy, f"parquet:{parquet}", tmp_path / "out")


def test_renamed_images_are_other_images(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(6):
        (tmp_path / "photos" / f"{i}.png").write_bytes(png(i))
    encode(toy, f"folder:{tmp_path / 'photos'}", tmp_path / "out")
    (tmp_path / "photos" / "5.png").rename(tmp_path / "photos" / "6.png")
    with pytest.raises(UsageError, match=r"made otherwise: data\.files is \"\w+…\" there and"):
        encode(toy, f"folder:{tmp_path / 'photos'}", tmp_path / "out")


def test_a_moved_tokenizer_and_its_latent_norm_do_not_count(
    toy: Path, parquet: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(toy, tmp_path / "moved"))
    encode(moved, f"parquet:{parquet}", tmp_path / "out")
    model = load_tokenizer(moved)
    before = tokenizer_digest(model)
    model.register_buffer("latent_mean", torch.zeros(4))
    model.register_buffer("latent_std", torch.ones(4))
    save_tokenizer(model, moved)
    assert tokenizer_digest(load_tokenizer(moved)) == before
    happened = encode(toy, f"parquet:{parquet}", tmp_path / "out")
    assert kinds(happened, writing.Started)[0].kept == 3


@pytest.mark.parametrize("occupied", ["file", "other things"])
def test_foreign_places_are_left_alone(
    toy: Path, parquet: Path, tmp_path: Path, occupied: str
) -> None:
    out = tmp_path / "out"
    if occupied == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"is a file|such as thesis.tex"):
        encode(toy, f"parquet:{parquet}", out)
    kept = out if occupied == "file" else out / "thesis.tex"
    assert kept.read_text() == "mine"


# --- images that cannot be used ----------------------------------------------------------------


def test_damaged_images_are_skipped_and_recorded(toy: Path, tmp_path: Path) -> None:
    contents = [png(i) for i in range(9)]
    for i in (1, 4, 5, 6, 7):
        contents[i] = b"not an image"
    contents[8] = png(8, height=20, width=20)
    path = write_parquet(tmp_path / "images.parquet", contents, [i % 3 for i in range(9)])
    happened = encode(toy, f"parquet:{path}", tmp_path / "out")
    assert len(kinds(happened, writing.Skipped)) == 6
    index = kinds(happened, writing.Finished)[0].index
    assert [row["position"] for row in index["skipped"]] == [1, 4, 5, 6, 7, 8]
    assert index["skipped"][0]["name"] == "images.parquet#1"
    assert "not an image" in index["skipped"][0]["reason"]
    assert "less than the crop" in index["skipped"][-1]["reason"]
    assert [shard["count"] for shard in index["shards"]] == [3, 0, 0]
    assert stacked(tmp_path / "out", "position").tolist() == [0, 2, 3]
    dataset = LatentDataset(tmp_path / "out")
    assert dataset.labels.tolist() == [0, 2, 0]
    assert [dataset.name(i) for i in range(3)] == [f"images.parquet#{i}" for i in (0, 2, 3)]
    kept = kinds(encode(toy, f"parquet:{path}", tmp_path / "out"), writing.Started)[0].kept
    assert kept == 3


def test_a_dataset_without_a_usable_image(toy: Path, tmp_path: Path) -> None:
    small = [png(i, height=9, width=12) for i in range(5)]
    path = write_parquet(tmp_path / "images.parquet", small, [0] * 5)
    with pytest.raises(DataError, match="none of 5 images") as raised:
        encode(toy, f"parquet:{path}", tmp_path / "out")
    assert "data.resize to 32" in str(raised.value)
    with pytest.raises(CheckpointError, match="not complete"):
        LatentDataset(tmp_path / "out")
    model = load_tokenizer(toy)
    assert model.config is not None
    images, _ = every_image(f"parquet:{path}", model.config, image_size=SIZE)
    with pytest.raises(DataError, match="none of 5 images"):
        measure_latents(model, images, runtime=Runtime(device="cpu", precision="fp32"))


def test_a_tokenizer_of_nothing_but_nan(parquet: Path, tmp_path: Path) -> None:
    model = load_tokenizer(saved(tmp_path / "toy"))
    torch.nn.init.constant_(model.roles["bridge"].encoder.moments.bias, float("nan"))  # type: ignore[union-attr,arg-type]  # vb4
    broken = save_tokenizer(model, tmp_path / "broken")
    with pytest.raises(RunError, match=r"images.parquet#0 is not finite"):
        encode(broken, f"parquet:{parquet}", tmp_path / "out")


def test_values_too_large_for_fp16(parquet: Path, tmp_path: Path) -> None:
    model = load_tokenizer(saved(tmp_path / "toy"))
    torch.nn.init.constant_(model.roles["bridge"].encoder.moments.bias, 1e5)  # type: ignore[union-attr,arg-type]  # vb4
    large = save_tokenizer(model, tmp_path / "large")
    with pytest.raises(RunError, match="--dtype fp32"):
        encode(large, f"parquet:{parquet}", tmp_path / "out", dtype="fp16")


def test_moments_need_a_gaussian(parquet: Path, tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain", bridge="identity")
    with pytest.raises(UsageError, match="has no Gaussian posterior"):
        encode(plain, f"parquet:{parquet}", tmp_path / "out", posterior="moments")
    encode(plain, f"parquet:{parquet}", tmp_path / "mode", posterior="sample")
    assert LatentDataset(tmp_path / "mode").latent_shape == (32, 8, 8)


def test_datasets_that_are_not_listed(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rpiae.data.packaged_configs import SampleDatasetConfig

    assert not isinstance(SyntheticImages(SIZE), Listed)
    monkeypatch.setattr(SampleDatasetConfig, "build", lambda self: SyntheticImages(SIZE))
    model = load_tokenizer(toy)
    assert model.config is not None
    with pytest.raises(UsageError, match="random crops only"):
        every_image("sample", model.config, image_size=SIZE)
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"fields of the dataset, such as data\.resize"):
        every_image("sample", model.config, image_size=SIZE, overrides=("recipe.noise=1",))
    images, fields = every_image("sample", model.config, image_size=SIZE)
    assert len(images) == 9
    assert fields["image_size"] == SIZE


def test_a_full_disk_keeps_complete_shards(
    toy: Path, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = shard_files.save_file, []

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(shard_files, "save_file", full)
    with pytest.raises(RunError, match=r"No space left.*stay"):
        encode(toy, f"parquet:{parquet}", tmp_path / "out")
    assert len(shards(tmp_path / "out")) == 1
    assert not list((tmp_path / "out").glob(".*.part"))


# --- decoding ----------------------------------------------------------------------------------


def decode(model: RPiAE, latents: Any, out: Path, **options: Any) -> list[str]:
    runtime = Runtime(device="cpu", precision="fp32")
    list(decode_latents(model, latents, out, runtime=runtime, batch_size=3, **options))
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))


def test_decoding_is_direct_reconstruction(toy: Path, tmp_path: Path) -> None:
    for i in range(5):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
    encode(toy, f"folder:{tmp_path / 'photos'}", tmp_path / "latents", batch_size=2)
    model = load_tokenizer(toy)
    dataset = LatentDataset(tmp_path / "latents")
    made = decode(model, dataset, tmp_path / "pictures")
    assert made == ["a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png"]
    for name in made:
        image = to_tensor(pixels(int(name[2])))[None]
        with torch.no_grad():
            direct = model.reconstruct(image)[0]
            (row,) = (i for i in range(5) if dataset.name(i) == name)
            through = model.decode(dataset[row][0][None], size=(SIZE, SIZE)).clamp(0, 1)[0]
        torch.testing.assert_close(through, direct, atol=1e-6, rtol=0)
        with Image.open(tmp_path / "pictures" / name) as picture:
            shown = to_tensor(np.asarray(picture))
        assert (shown - direct).abs().max() <= 0.5 / 255 + 1e-6


def test_sizes_that_are_no_multiple_of_the_patch(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(2):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(png(i, height=30, width=31))
    encode(
        toy, f"folder:{tmp_path / 'photos'}", tmp_path / "latents",
        overrides=("data.image_size=30",),
    )  # fmt: skip
    made = decode(load_tokenizer(toy), LatentDataset(tmp_path / "latents"), tmp_path / "p")
    assert made == ["0.png", "1.png"]
    with Image.open(tmp_path / "p" / "0.png") as picture:
        assert picture.size == (30, 30)


def test_names_stay_below_the_folder_and_apart(toy: Path, tmp_path: Path) -> None:
    from rpiae.latents.decoding import file_name

    used: set[str] = set()
    names = ["../../x.png", "/etc/x.jpg", "a/../x.png", "x.png", "x", "x.PNG", "..", "a.b#3"]
    made = [file_name(name, i, used) for i, name in enumerate(names)]
    assert len(set(made)) == len(names)
    for name in made:
        assert (tmp_path / name).resolve().is_relative_to(tmp_path)
        assert ".." not in Path(name).parts
    assert made[0] == "x.png"
    assert made[-1] == "a.b#3.png"


@pytest.mark.parametrize(
    "names",
    [["a", "a.jpg.png", "a.jpg-3.png", "a.jpg"], ["a-1.png", "a.jpg.png", "a", "a.jpg", "a"]],
)
def test_there_is_always_a_free_name(names: list[str]) -> None:
    from rpiae.latents.decoding import file_name

    used: set[str] = set()
    made = [file_name(name, i, used) for i, name in enumerate(names)]
    assert used == set(made)
    assert len(used) == len(names)


def test_generated_latents(toy: Path, tmp_path: Path) -> None:
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "a.npy", latents.numpy())
    torch.save(latents, tmp_path / "b.pt")
    torch.save({"samples": latents, "step": 3}, tmp_path / "c.pt")
    save_file({"latent": latents, "label": torch.zeros(5)}, tmp_path / "d.safetensors")
    np.save(tmp_path / "e.npy", latents.double().numpy())
    for name in ("a.npy", "b.pt", "c.pt", "d.safetensors", "e.npy"):
        torch.testing.assert_close(read_tensor(tmp_path / name).float(), latents)
    model = load_tokenizer(toy)
    made = decode(model, latents, tmp_path / "out", limit=4)
    assert made == [f"{i:05}.png" for i in range(4)]

    with pytest.raises(UsageError, match="has no latent_norm: rpiae stats"):
        decode(model, latents, tmp_path / "x", norm=model)
    model.register_buffer("latent_mean", torch.full((4,), 0.3))
    model.register_buffer("latent_std", torch.full((4,), 2.0))
    decode(model, model.normalise_latent(latents), tmp_path / "unit", norm=model, limit=4)
    for name in made:
        with Image.open(tmp_path / "out" / name) as a, Image.open(tmp_path / "unit" / name) as b:
            assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_normalisation_by_a_folder(toy: Path, parquet: Path, tmp_path: Path) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "latents")
    dataset = LatentDataset(tmp_path / "latents")
    latents = torch.stack([dataset[i][0] for i in range(3)])
    model = load_tokenizer(toy)
    plain = decode(model, latents, tmp_path / "a")
    decode(model, dataset.normalised(latents), tmp_path / "b", norm=dataset)
    for name in plain:
        with Image.open(tmp_path / "a" / name) as a, Image.open(tmp_path / "b" / name) as b:
            assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


@pytest.mark.parametrize(
    ("latents", "options", "error", "wanted"),
    [
        (torch.zeros(2, 8, 8, 8), {}, UsageError, "have 8 channels, this tokenizer's have 4"),
        (torch.full((2, 4, 8, 8), float("nan")), {}, RunError, "latent 00000 is not finite"),
        (torch.zeros(0, 4, 8, 8), {}, UsageError, "no latents to decode"),
        (torch.zeros(2, 4, 8, 8), {"limit": 0}, UsageError, "at least 1"),
    ],
)
def test_latents_that_cannot_be_decoded(
    toy: Path,
    tmp_path: Path,
    latents: torch.Tensor,
    options: dict[str, Any],
    error: type[Exception],
    wanted: str,
) -> None:
    with pytest.raises(error, match=wanted):
        decode(load_tokenizer(toy), latents, tmp_path / "out", **options)


def test_pictures_go_to_an_empty_folder(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.png").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        decode(load_tokenizer(toy), torch.zeros(1, 4, 8, 8), tmp_path / "out")
    assert (tmp_path / "out" / "00000.png").read_text() == "mine"


class _Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


def test_files_that_hold_no_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files: dict[str, Any] = {
        "cut.safetensors": b"\x10\0\0\0\0\0\0\0{",
        "cut.npy": b"\x93NUMPY",
        "cut.pt": b"PK\x03\x04",
        "empty.npy": b"",
        "a.txt": b"1 2 3",
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
    torch.save(_Evil(), "evil.pt")
    np.save("evil.npy", np.array([_Evil()], dtype=object), allow_pickle=True)
    np.save("whole.npy", np.zeros((2, 4, 8, 8), dtype=np.int64))
    np.save("flat.npy", np.zeros((2, 4)))
    torch.save([1, 2], "list.pt")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, "two.safetensors")
    for name, wanted in {
        "cut.safetensors": "cannot be read", "cut.npy": "cannot be read", "cut.pt": "cannot be read",
        "empty.npy": "cannot be read", "a.txt": "ends in", "evil.pt": "more than tensors",
        "evil.npy": "cannot be read", "whole.npy": "float tensors", "flat.npy": "float tensors",
        "list.pt": "holds a list", "two.safetensors": "the tensors a, b", "none.npy": "does not exist",
    }.items():  # fmt: skip
        with pytest.raises((UsageError, CheckpointError), match=wanted):
            read_tensor(name)
    assert not Path("evil").exists()


# --- reading what is not there or damaged ------------------------------------------------------


def test_folders_that_hold_no_latents(toy: Path, parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        LatentDataset(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no index\.json"):
        LatentDataset(tmp_path / "empty")
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    with pytest.raises(UsageError, match="encode with --flip"):
        LatentDataset(out, flip=True)
    index = (out / "index.json").read_text()
    for damaged, wanted in (
        ("{", "cannot be read"),
        ("[]", "format None"),
        (index.replace('"format": 3', '"format": 9', 1), "format 9"),
        (index.replace('"format": 3', '"format": 1', 1), "is damaged"),
        (index.replace('"settings"', '"setings"', 1), "is damaged"),
        (index.replace('"latent_shape"', '"shape"', 1), "is damaged"),
    ):
        (out / "index.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=wanted):
            LatentDataset(out)
    (out / "index.json").write_text(index)
    shards(out)[2].unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003.*rpiae encode again"):
        LatentDataset(out)


# --- damage and strangers ------------------------------------------------------------------------


def read_all(folder: Path) -> list[Any]:
    dataset = LatentDataset(folder)
    return [(*dataset[i], dataset.name(i)) for i in range(len(dataset))]


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_byte_is_found(toy: Path, tmp_path: Path, seed: int) -> None:
    out = tmp_path / "out"
    encode(
        toy,
        f"parquet:{write_parquet(tmp_path / 'a.parquet', [png(i) for i in range(6)], [0] * 6)}",
        out,
    )
    before = read_all(out)
    draw = np.random.default_rng(seed)
    path = [*shards(out), out / "index.json"][seed % 3]
    content = bytearray(path.read_bytes())
    content[int(draw.integers(len(content)))] ^= 1 << int(draw.integers(8))
    path.write_bytes(content)
    try:
        after = read_all(out)
    except CheckpointError:
        return
    # Only what says nothing, such as the kind of a space, may change unnoticed.
    for (latent, *rest), (other, *others) in zip(before, after, strict=True):
        assert torch.equal(latent, other)
        assert rest == others


@pytest.mark.parametrize("name", ["latent", "label", "position"])
def test_every_tensor_has_a_digest(toy: Path, parquet: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    path = shards(out)[1]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    changed = tensors(path)
    changed[name] = changed[name] + 1
    save_file(changed, path, metadata=metadata)
    with pytest.raises(
        CheckpointError, match=rf"00001-of-00003.* its {name} is not what was written"
    ):
        LatentDataset(out).verify()
    (notice,) = kinds(encode(toy, f"parquet:{parquet}", out), writing.Notice)
    assert "written anew" in notice.text
    LatentDataset(out).verify()


@pytest.mark.parametrize("version", [1, 3, "2", None])
def test_a_header_with_another_format_is_damaged(
    toy: Path, parquet: Path, tmp_path: Path, version: object
) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    path = shards(out)[1]
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["rpiae"])
    described["format"] = version
    described["names"][0] = "another"
    save_file(tensors(path), path, metadata={"rpiae": json.dumps(described)})
    with pytest.raises(
        CheckpointError, match=r"00001-of-00003.*its header is not what was written"
    ):
        read_all(out)


def test_a_tensor_is_checked_once(
    toy: Path, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out")
    dataset = LatentDataset(tmp_path / "out")
    checks: list[str] = []
    monkeypatch.setattr(stored, "check_tensor", lambda path, file, name, _: checks.append(name))
    for i in (0, 1, 2, 5, 0):
        dataset[i]
    assert checks == ["latent", "latent"]  # of two shards
    pickle.loads(pickle.dumps(dataset))[0]
    assert checks == ["latent", "latent"]


def forged(out: Path, **changes: Any) -> None:
    """Change the index as somebody would who also knows how to digest it."""
    tree = json.loads((out / "index.json").read_text())
    tree |= changes
    tree["sha256"] = tree_digest(tree)
    (out / "index.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"shards": [{"file": "../x", "count": 11, "sha256": ""}] * 3}, "counts contradict"),
        ({"num_images": 10**18}, "counts contradict"),
        ({"num_images": "11"}, "num_images: expected"),
        ({"latent_shape": [4, 0, 8]}, "latent_shape: must be at least 1"),
        ({"latent_shape": [4, 8]}, "latent_shape"),
        ({"label_names": [1]}, r"label_names\[0\]: expected"),
        ({"statistics": {"count": 1, "mean": [], "std": []}}, "counts contradict"),
        ({"statistics": None}, "counts contradict"),
        ({"settings": {"dtype": "int8"}}, r"settings\.dtype: expected one of"),
        ({"tokenizer": {"path": 3, "sha256": ""}}, r"tokenizer\.path: expected"),
        ({"complete": 1}, "complete: expected"),
        ({"hello": 1}, "hello"),
        ({"label_names": ["only one"]}, "is a shard of other latents"),
    ],
)
def test_an_index_is_checked(
    toy: Path, parquet: Path, tmp_path: Path, changes: dict[str, Any], wanted: str
) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    forged(out, **changes)
    with pytest.raises(CheckpointError, match=wanted):
        LatentDataset(out)


def test_an_index_names_its_own_shards_alone(toy: Path, parquet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    listed = json.loads((out / "index.json").read_text())["shards"]
    listed[1]["file"] = "../x.safetensors"
    forged(out, shards=listed)
    with pytest.raises(CheckpointError, match=r"shard 1 is latents-00001.*not '\.\./x"):
        LatentDataset(out)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"format": ' + "9" * 5000 + "}", "\ud800", ""])
def test_an_index_that_is_no_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=r"index\.json cannot be read"):
        LatentDataset(tmp_path)


def test_an_index_that_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "index.json")
    with pytest.raises(CheckpointError, match="it is a FIFO"):
        LatentDataset(tmp_path)


def in_format_1(out: Path) -> None:
    """Make a folder what it was before there were digests."""
    tree = json.loads((out / "index.json").read_text())
    del tree["sha256"], tree["source"], tree["epoch"]
    tree["format"] = 1
    for shard in tree["shards"]:
        del shard["sha256"]
    plan = Plan.from_tree(tree)
    (out / "index.json").write_text(json.dumps(tree))
    for path in shards(out):
        with safe_open(path, "pt") as file:
            described = json.loads(file.metadata()["rpiae"])
        del described["tensors"], described["sha256"]
        described |= {"format": 1, "plan": plan.digest()}
        save_file(tensors(path), path, metadata={"rpiae": json.dumps(described)})


def test_a_folder_without_digests_is_read_and_not_gone_on_with(
    toy: Path, parquet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    expected = read_all(out)
    in_format_1(out)
    with caplog.at_level(logging.WARNING):
        found = read_all(out)
    assert "without digests" in caplog.text
    for (latent, *rest), (other, *others) in zip(expected, found, strict=True):
        assert torch.equal(latent, other)
        assert rest == others
    with pytest.raises(UsageError, match=r"of an earlier rpiae.*Name another --out"):
        encode(toy, f"parquet:{parquet}", out)


def test_images_are_the_same_wherever_they_lie_and_others_at_the_same_place(
    toy: Path, parquet: Path, tmp_path: Path
) -> None:
    out, moved = tmp_path / "out", tmp_path / "elsewhere" / parquet.name
    encode(toy, f"parquet:{parquet}", out)
    moved.parent.mkdir()
    shutil.copy(parquet, moved)
    for settings in (("data.workers=1",), ("data.workers=0",)):
        encode(toy, f"parquet:{moved}", out, overrides=settings)
    num_images = pq.read_metadata(parquet).num_rows
    write_parquet(moved, [png(i + 50) for i in range(num_images)], [None] * num_images)
    with pytest.raises(UsageError, match=r"made otherwise: data\.files is"):
        encode(toy, f"parquet:{moved}", out)


def test_a_folder_of_another_epoch_is_read_and_not_gone_on_with(
    toy: Path, parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    planned = writing.make_plan
    with monkeypatch.context() as patched:
        patched.setattr(
            writing, "make_plan", lambda *a, **k: attrs.evolve(planned(*a, **k), epoch=1)
        )
        encode(toy, f"parquet:{parquet}", out)
    assert len(read_all(out)) == len(LatentDataset(out))
    with pytest.raises(UsageError, match="epoch is 1 there"):
        encode(toy, f"parquet:{parquet}", out)


def test_labels_must_mean_the_same(toy: Path, parquet: Path, tmp_path: Path) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out")
    names = LatentDataset(tmp_path / "out").label_names
    assert names == ("cat", "dog", "frog")
    LatentDataset(tmp_path / "out", label_names=names)
    for wanted, reason in (
        (("cat", "frog"), "it has 3 classes, and 2 are wanted, which differ in 'dog'"),
        (("cat", "frog", "dog"), "label 1 is 'dog', and 'frog' is wanted"),
    ):
        with pytest.raises(UsageError, match=reason):
            LatentDataset(tmp_path / "out", label_names=wanted)


def test_names_that_are_not_utf_8(toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / os.fsdecode(b"%d\xff.png" % i)).write_bytes(png(i))
    (folder / os.fsdecode(b"br\xe9ken.png")).write_bytes(b"x")
    happened = encode(toy, f"folder:{folder}", tmp_path / "out")
    index = kinds(happened, writing.Finished)[0].index
    assert [row["name"] for row in index["skipped"]] == ["br\\xe9ken.png"]
    dataset = LatentDataset(tmp_path / "out")
    assert [dataset.name(i) for i in range(3)] == [f"{i}\\xff.png" for i in range(3)]
    again = encode(toy, f"folder:{folder}", tmp_path / "out")
    assert kinds(again, writing.Started)[0].kept == 1
    made = decode(load_tokenizer(toy), dataset, tmp_path / "pictures")
    assert made == [f"{i}\\xff.png" for i in range(3)]


def test_one_image_is_encoded(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(png(0))
    encode(toy, f"folder:{tmp_path / 'one'}", tmp_path / "out")
    assert len(LatentDataset(tmp_path / "out")) == 1


def test_an_image_that_fails_is_a_skip_whatever_it_is(toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "good.png").write_bytes(png(0))
    Image.new("1", (20000, 10000)).save(folder / "pano.png")
    Image.new("RGB", (100_000, 1)).save(folder / "thin.png")
    os.mkfifo(folder / "fifo.png")
    happened = encode(
        toy, f"folder:{folder}", tmp_path / "out", overrides=("data.workers=0", "data.resize=64")
    )
    assert len(LatentDataset(tmp_path / "out")) == 2  # the good one, and the crop of the thin one
    assert [
        skipped.reason
        for skipped in kinds(happened, writing.Skipped)
        if "fifo" not in skipped.reason
    ]


def test_latents_too_large_to_decode_are_refused(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"700×700, 490000 tokens.*more than 65536"):
        decode(load_tokenizer(toy), torch.zeros(1, 4, 700, 700), tmp_path / "out")


def test_the_named_tokenizer_is_taken_only_if_it_is_the_one(
    toy: Path, parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    encode(toy, f"parquet:{parquet}", out)
    arguments = ["decode", str(out), "--limit", "1", "--device", "cpu", "--out"]
    assert main([*arguments, str(tmp_path / "a")]) == 0
    other = saved(tmp_path / "other", seed=1)
    sha256 = json.loads((out / "index.json").read_text())["tokenizer"]["sha256"]
    forged(out, tokenizer={"path": str(other), "sha256": sha256})
    assert main([*arguments, str(tmp_path / "b")]) == 1
    assert "is another one: name the right one with --run" in " ".join(
        capsys.readouterr().err.split()
    )
    assert main([*arguments, str(tmp_path / "c"), "--run", str(toy)]) == 0


# --- latent_norm -------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_measured_statistics_are_those_of_the_latents(
    toy: Path, parquet: Path, tmp_path: Path, posterior: Any
) -> None:
    encode(toy, f"parquet:{parquet}", tmp_path / "out", posterior=posterior, seed=4)
    model = load_tokenizer(toy)
    assert model.config is not None
    images, _ = every_image(
        f"parquet:{parquet}", model.config, image_size=SIZE, overrides=("data.workers=0",)
    )
    runtime = Runtime(device="cpu", precision="fp32")
    latents = stacked(tmp_path / "out", "latent").double()
    for batch_size in (1, 4, 20):
        seen = []
        found = measure_latents(
            model, images, runtime=runtime, posterior=posterior, seed=4, batch_size=batch_size,
            progress=seen.append,
        )  # fmt: skip
        assert seen[-1].done == seen[-1].total == COUNT
        torch.testing.assert_close(found.mean, latents.mean((0, 2, 3)), atol=1e-6, rtol=0)
        std = latents.std((0, 2, 3), unbiased=False)
        torch.testing.assert_close(found.std, std, atol=1e-6, rtol=0)
    few = measure_latents(model, images, runtime=runtime, num_images=4, posterior="mode")
    assert few.count == 4 * 64
    with pytest.raises(UsageError, match="at least 1"):
        measure_latents(model, images, runtime=runtime, num_images=0)


def test_latent_norm_is_explicit(toy: Path) -> None:
    model = load_tokenizer(toy)
    latent = torch.randn(2, 4, 3, 5)
    for convert in (model.normalise_latent, model.denormalise_latent):
        with pytest.raises(UsageError, match="rpiae stats RUN DATA"):
            convert(latent)
    model.register_buffer("latent_mean", torch.arange(4.0))
    model.register_buffer("latent_std", torch.arange(1.0, 5.0))
    unit = model.normalise_latent(latent)
    assert unit[1, 2, 0, 0] == (latent[1, 2, 0, 0] - 2) / 3
    torch.testing.assert_close(model.denormalise_latent(unit), latent)
    torch.testing.assert_close(model.normalise_latent(latent[0]), unit[0])
    with pytest.raises(UsageError, match=r"\(batch, 4, h, w\) .*, not \(2, 3, 8, 8\)"):
        model.normalise_latent(torch.zeros(2, 3, 8, 8))
