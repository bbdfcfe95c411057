"""Latents as WebDataset and as datasets of Hugging Face: every value, read by these libraries."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from rpiae.core.errors import CheckpointError, MissingExtraError, RunError, UsageError
from rpiae.core.runtime import files
from rpiae.data.listed import EveryImage
from rpiae.data.video.listed import EveryClip
from rpiae.interop.latents import as_dataset, write_datasets, write_webdataset
from rpiae.interop.latents import webdataset as tars
from rpiae.interop.latents.arrays import array_type
from rpiae.latents import LatentDataset
from rpiae.latents.layout import DTYPES, TIME_FORMAT, Plan, Settings
from rpiae.latents.shards import finished_index, write_shard
from tests.unit import test_video_latents as videos

COUNT = 11
NAMES = ("cat", "dog", "frog")


class Pictures(EveryImage):
    """Names and nothing else; the fifth picture cannot be used."""

    def __init__(self) -> None:
        pass

    def name(self, index: int) -> str:
        return f"class.a/{index}.big.png"


class Clips(EveryClip):
    """Names and frame rates, and nothing else."""

    def __init__(self) -> None:
        pass

    def name(self, index: int) -> str:
        return f"{index}.mp4"

    def rate(self, index: int) -> Fraction:
        return Fraction(30000, 1001 + index)


def written(
    folder: Path,
    *,
    shape: tuple[int, ...] = (3, 2, 5),
    labelled: bool = True,
    names: Sequence[str] = NAMES,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """A folder of latents with drawn values; one has no label, and one could not be used."""
    clips = len(shape) == 4
    plan = Plan(
        settings=Settings(**{"shard_size": 4} | settings), data={}, location="photos",
        tokenizer={"path": "runs/a", "sha256": "5" * 64}, num_images=COUNT + 1, image_size=32,
        crop="adm", latent_shape=shape, labelled=labelled,
        label_names=tuple(names) if labelled else (), frames=5 if clips else 0,
        **({"format": TIME_FORMAT} if clips else {}),
    )  # fmt: skip
    draws = torch.Generator().manual_seed(seed)
    folder.mkdir()
    for number in range(plan.num_files):
        positions = [i for i in plan.shard(number) if i != 4]
        made = {
            name: (30 * torch.randn(len(positions), *shape, generator=draws)).to(
                DTYPES[plan.settings.dtype]
            )
            for name in plan.settings.tensors
        }
        made["position"] = torch.tensor(positions)
        if labelled:
            made["label"] = torch.tensor([-1 if i == 7 else i % 3 for i in positions])
        skipped = {4: "no image"} if 4 in plan.shard(number) else {}
        write_shard(folder, plan, number, Clips() if clips else Pictures(), made, skipped)
    finished_index(folder, plan, Pictures())
    return folder


KINDS: dict[str, dict[str, Any]] = {
    "images": {},
    "bf16-flip": {"dtype": "bf16", "flip": True},
    "moments": {"dtype": "fp16", "posterior": "moments", "flip": True},
    "unlabelled": {"labelled": False},
    "unnamed": {"names": ()},
    "clips": {"shape": (3, 2, 4, 5), "labelled": False},
}


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return written(tmp_path / "latents", **KINDS[request.param])


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return written(tmp_path / "latents")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def shards(out: Path) -> list[str]:
    return sorted(map(str, out.glob("*.tar")))


def samples(out: Path, urls: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All samples, as WebDataset itself reads them; it leaves files for the garbage collector to close."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        read = webdataset.WebDataset(list(urls) or shards(out), shardshuffle=False).decode()
        found = list(read)
        del read
        gc.collect()
    return found


def facts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "facts.json").read_text("utf-8"))
    return found


def check_values(folder: Path, rows: Sequence[Mapping[str, Any]], ending: str = "") -> None:
    """Every stored value; types that are wider hold the same."""
    latents = LatentDataset(folder, sample=False)
    assert len(rows) == len(latents)
    for index, row in enumerate(rows):
        for name in latents.tensors:
            found = torch.as_tensor(row[f"{name}{ending}"])
            assert torch.equal(found.float(), latents.tensor(index, name).float())


# --- WebDataset --------------------------------------------------------------------------------


def test_webdataset_gives_every_value(folder: Path, tmp_path: Path) -> None:
    said = write_webdataset(folder, tmp_path / "out")
    found = samples(tmp_path / "out")
    check_values(folder, found, ".npy")
    latents = LatentDataset(folder)
    assert {str(found[0][f"{name}.npy"].dtype) for name in latents.tensors} == {array_type(latents)}
    for index, sample in enumerate(found):
        assert sample["__key__"] == f"{index:08}"
        assert sample["json"]["name"] == latents.name(index)
        assert sample["json"]["position"] == int(latents.positions[index])
        if latents.index["labelled"]:
            assert sample["cls"] == int(latents.labels[index])
        else:
            assert "cls" not in sample
    assert ("frame_rate" in found[0]["json"]) == (len(latents.latent_shape) == 4)
    assert said[0] == "11 samples in 3 shards, latents-000000.tar to latents-000002.tar"
    assert any("bfloat16" in text for text in said) == (
        facts(tmp_path / "out")["stored_dtype"] == "bf16"
    )


def test_shards_have_the_wanted_size_and_their_digests(plain: Path, tmp_path: Path) -> None:
    write_webdataset(plain, tmp_path / "out", shard_size=3)
    rows = facts(tmp_path / "out")["shards"]
    assert [row["count"] for row in rows] == [3, 3, 3, 2]
    for row in rows:
        path = tmp_path / "out" / row["file"]
        assert len(samples(tmp_path / "out", [str(path)])) == row["count"]
        assert files.file_digest(path) == row["sha256"]


def test_a_shard_that_is_full_ends(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "FULL", 4096)
    write_webdataset(plain, tmp_path / "out", shard_size=100)
    assert [row["count"] for row in facts(tmp_path / "out")["shards"]] == [2, 2, 2, 2, 2, 1]
    check_values(plain, samples(tmp_path / "out"), ".npy")


def test_the_same_latents_give_the_same_bytes(plain: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_webdataset(plain, tmp_path / name)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    with tarfile.open(shards(tmp_path / "one")[0]) as archive:
        for member in archive:
            assert (member.uid, member.gid, member.uname, member.mtime, member.mode) == (
                0, 0, "", 0, 0o644,
            )  # fmt: skip


def test_facts_normalise_as_rpiae_does(plain: Path, tmp_path: Path) -> None:
    write_webdataset(plain, tmp_path / "out")
    told, latents = facts(tmp_path / "out"), LatentDataset(plain)
    mean, std = (torch.tensor(told[k]).view(-1, 1, 1) for k in ("latents_mean", "latents_std"))
    latent = torch.as_tensor(samples(tmp_path / "out")[2]["latent.npy"])
    assert torch.equal((latent - mean) / std, latents.normalised(latents[2][0]))
    assert told["label_names"] == list(NAMES)
    assert told["tokenizer"] == {"path": "runs/a", "sha256": "5" * 64}
    assert told["latent_shape"] == [3, 2, 5]
    assert told["tensors"] == ["latent"]
    assert told["count"] == 11


def test_workers_share_the_shards(plain: Path, tmp_path: Path) -> None:
    write_webdataset(plain, tmp_path / "out")
    read = (
        webdataset.WebDataset(shards(tmp_path / "out"), shardshuffle=False, nodesplitter=None)
        .decode()
        .to_tuple("latent.npy", "cls", "json")
        .batched(2)
    )
    seen = sorted(
        row["position"]
        for _, _, about in DataLoader(read, batch_size=None, num_workers=2)
        for row in about
    )
    assert seen == [i for i in range(COUNT + 1) if i != 4]


def test_whole_videos_of_several_sizes(tmp_path: Path) -> None:
    source = videos.made(*videos.SIZES)
    videos.encode(videos.saved(tmp_path / "toy"), source, tmp_path / "latents")
    write_webdataset(tmp_path / "latents", tmp_path / "out")
    found = samples(tmp_path / "out")
    check_values(tmp_path / "latents", found, ".npy")
    for sample, (frames, height, width) in zip(found, videos.SIZES, strict=True):
        about = sample["json"]
        assert (about["frames"], about["height"], about["width"]) == (frames, height, width)
        assert about["frame_rate"] == "30000/1001"
        assert about["problem"] == ""
    assert facts(tmp_path / "out")["latent_shape"] == [4, 0, 0, 0]


# --- datasets ----------------------------------------------------------------------------------


def test_a_dataset_gives_every_value(folder: Path) -> None:
    found = as_dataset(folder)
    assert isinstance(found, datasets.Dataset)
    check_values(folder, list(found.with_format("torch")))
    latents = LatentDataset(folder)
    assert {found.features[name].dtype for name in latents.tensors} == {array_type(latents)}
    assert found["name"][:] == [latents.name(i) for i in range(len(latents))]
    assert found["position"][:] == latents.positions.tolist()
    if latents.index["labelled"]:
        assert found["label"][:] == latents.labels.tolist()
    else:
        assert "label" not in found.features
    assert found.cache_files
    assert found.features == as_dataset(folder, streaming=True).features


def test_what_is_written_is_what_load_dataset_reads(folder: Path, tmp_path: Path) -> None:
    write_datasets(folder, tmp_path / "out")
    found = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert found.features == as_dataset(folder).features
    check_values(folder, list(found.with_format("torch")))
    assert found["name"][:] == as_dataset(folder)["name"][:]
    streamed = datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True)
    check_values(folder, list(streamed.with_format("torch")))
    assert facts(tmp_path / "out")["count"] == len(found)


def test_large_latents_make_several_files(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpiae.interop.latents.huggingface.FILE_BYTES", 4 * 120)
    monkeypatch.setattr("rpiae.interop.latents.huggingface.GROUP_BYTES", 3 * 120)
    write_datasets(plain, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    found = datasets.load_dataset(str(tmp_path / "out"), split="train")
    check_values(plain, list(found.with_format("torch")))


def test_labels_have_their_names(plain: Path) -> None:
    label = as_dataset(plain).features["label"]
    assert label.names == list(NAMES)
    assert label.int2str(1) == "dog"


@pytest.mark.parametrize("names", [(), ("crane", "maillot", "crane")])
def test_labels_whose_names_name_none_are_numbers(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = written(tmp_path / "latents", names=names)
    assert as_dataset(folder).features["label"] == datasets.Value("int64")
    assert as_dataset(folder)["label"][:] == LatentDataset(folder).labels.tolist()


def test_a_streamed_dataset_is_shared_out_among_workers(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpiae.interop.latents.huggingface.PART_ROWS", 4)
    streamed = as_dataset(plain, streaming=True)
    assert isinstance(streamed, datasets.IterableDataset)
    check_values(plain, list(streamed.with_format("torch")))
    assert streamed.num_shards == 3
    loader = DataLoader(streamed.with_format("torch"), batch_size=None, num_workers=2)
    seen = sorted(int(row["position"]) for row in loader)
    assert seen == as_dataset(plain)["position"][:]


def test_a_dataset_in_workers_and_pickled(plain: Path) -> None:
    found = as_dataset(plain).with_format("torch")
    loader = DataLoader(found, batch_size=4, num_workers=2, multiprocessing_context="spawn")
    together = torch.cat([batch["latent"] for batch in loader])
    assert torch.equal(together, torch.stack([latent for latent, _ in LatentDataset(plain)]))
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again[3]["latent"], found[3]["latent"])


def test_the_cache_is_of_the_latents_not_of_their_place(plain: Path, tmp_path: Path) -> None:
    first = as_dataset(plain).cache_files
    plain.rename(tmp_path / "moved")
    assert as_dataset(tmp_path / "moved").cache_files == first
    other = written(tmp_path / "other", seed=1)
    assert as_dataset(other).cache_files != first
    check_values(other, list(as_dataset(other).with_format("torch")))
    elsewhere = as_dataset(other, cache_dir=tmp_path / "elsewhere").cache_files
    assert str(tmp_path / "elsewhere") in elsewhere[0]["filename"]


def test_videos_of_several_sizes_fit_no_column(tmp_path: Path) -> None:
    source = videos.made(*videos.SIZES)
    videos.encode(videos.saved(tmp_path / "toy"), source, tmp_path / "latents")
    with pytest.raises(UsageError, match=r"differ in size or length.*--clips.*WebDataset"):
        write_datasets(tmp_path / "latents", tmp_path / "out")
    with pytest.raises(UsageError, match="differ in size or length"):
        as_dataset(tmp_path / "latents")
    assert not (tmp_path / "out").exists()


def test_videos_of_one_size_fit(tmp_path: Path) -> None:
    videos.encode(
        videos.saved(tmp_path / "toy"), videos.made((5, 32, 32), (5, 32, 32)), tmp_path / "latents"
    )
    found = as_dataset(tmp_path / "latents")
    check_values(tmp_path / "latents", list(found.with_format("torch")))
    assert found["frames"][:] == [5, 5]


# --- what is refused ---------------------------------------------------------------------------

WRITERS = pytest.mark.parametrize("write", [write_webdataset, write_datasets])


@WRITERS
@pytest.mark.parametrize("tensor", ["latent", "label", "position"])
def test_a_damaged_shard(write: Any, tensor: str, plain: Path, tmp_path: Path) -> None:
    path = plain / "latents-00002-of-00003.safetensors"
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    start, _ = json.loads(content[8 : 8 + header])[tensor]["data_offsets"]
    content[8 + header + start] ^= 1
    path.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=rf"00002-of.*damaged: its {tensor} is not what was"):
        write(plain, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_shard_in_the_cache_of_datasets(plain: Path) -> None:
    path = plain / "latents-00002-of-00003.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"00002-of.*damaged"):
        as_dataset(plain)
    path.write_bytes(content)
    check_values(plain, list(as_dataset(plain).with_format("torch")))


@WRITERS
def test_folders_that_hold_no_latents(write: Any, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        write(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no latents"):
        write(tmp_path / "empty", tmp_path / "out")
    (plain / "latents-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="00001-of"):
        write(plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@WRITERS
def test_what_is_there_stays(write: Any, plain: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("out", "file", "link", "latents"):
        with pytest.raises(UsageError, match=f"{name} exists already"):
            write(plain, tmp_path / name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@WRITERS
def test_an_empty_folder_and_missing_parents_are_fine(
    write: Any, plain: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    write(plain, tmp_path / "out")
    write(plain, tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "facts.json").read_bytes() == (
        tmp_path / "out" / "facts.json"
    ).read_bytes()
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask


@WRITERS
def test_a_folder_that_cannot_be_written(
    write: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"cannot write .*out: File exists"):
        write(plain, plain / "index.json" / "out")

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"cannot write .*out: No space left on device"):
        write(plain, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_shard_size_of_none(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shard_size must be at least 1, got 0"):
        write_webdataset(plain, tmp_path / "out", shard_size=0)


def test_without_the_library(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for call in (lambda: as_dataset(plain), lambda: write_datasets(plain, tmp_path / "out")):
        with pytest.raises(MissingExtraError, match=r'pip install "rpiae\[hf\]"'):
            call()
    assert not (tmp_path / "out").exists()


@WRITERS
def test_an_interrupted_call_leaves_nothing(
    write: Any, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LatentDataset.tensor

    def interrupted(self: LatentDataset, index: int, name: str) -> torch.Tensor:
        if index == 9:
            raise KeyboardInterrupt
        return read(self, index, name)

    monkeypatch.setattr(LatentDataset, "tensor", interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        write(plain, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


# --- the page ----------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "interop.md").read_text("utf-8")


def snippets(heading: str) -> list[str]:
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def test_the_pages_way_to_read_them(plain: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for write, code in zip(
        (write_webdataset, write_datasets, write_datasets),
        snippets("Latents as WebDataset and `datasets`"),
        strict=True,
    ):
        write("latents", "there")
        found: dict[str, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            exec(code, found)
            latent = found["latent"] if "latent" in found else found["data"][0]["latent"]
            assert latent.shape == (3, 2, 5)
            if "stream" in found:
                assert len(list(found["stream"])) == COUNT
            found.clear()
            gc.collect()
        shutil.rmtree("there")


def test_the_pages_way_to_use_a_tokenizer(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    videos.saved(tmp_path / "runs" / "a" / "tokenizer")
    (code,) = snippets("As a library")
    found: dict[str, Any] = {"images": torch.rand(1, 3, 32, 32)}
    exec(code, found)
    assert found["latent"].shape[:2] == (1, 4)
    assert found["twin"].dtype == torch.bfloat16
