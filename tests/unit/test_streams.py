"""WebDataset shards and Hugging Face datasets: by index, as streams, broken, and from the command line."""

from __future__ import annotations

import io
import multiprocessing
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rpiae import runs
from rpiae.cli import main
from rpiae.core.errors import DataError, FetchError, MissingExtraError, UsageError
from rpiae.core.model.contracts import Batch, Dataset, StageSteps
from rpiae.core.model.resolve import part_config
from rpiae.core.training import events
from rpiae.data import DATASETS
from rpiae.data.streams import StreamDataset
from tests.toys import DECODERS, ENCODERS

datasets = pytest.importorskip("datasets")
pytest.importorskip("webdataset")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(cache))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def _allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands may be run."""
    monkeypatch.setenv("RPIAE_ALLOW_PIPE", "1")


def flat(grey: int, size: int = 16) -> bytes:
    """A PNG image of one grey."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size + 4, 3), grey, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # a mode
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(first: int, count: int) -> dict[str, bytes]:
    """Images of greys first, first + 1, … each with a label."""
    members = {}
    for grey in range(first, first + count):
        members[f"{grey:03}.cls"] = b"7"
        members[f"{grey:03}.png"] = flat(grey)
    return members


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twenty images of greys 0 to 19 in four shards of five."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(4):
        write_tar(folder / f"{shard:02}.tar", samples(5 * shard, 5))
    return folder


def built(name: str, path: str | Path, **fields: Any) -> Any:
    tree = {"name": name, "path": str(path), "workers": 0, "held_out": 2, "image_size": 8}
    dataset = part_config("datasets", tree | fields).build()
    assert isinstance(dataset, Dataset)
    return dataset


def stream_of(shards: Path, **fields: Any) -> StreamDataset:
    dataset = built(
        "webdataset", shards, **{"streaming": True, "buffer": 12, "readers": 3} | fields
    )
    assert isinstance(dataset, StreamDataset)
    return dataset


def drawn(dataset: Any, start: int = 0, steps: int = 9, **changes: Any) -> list[Batch]:
    settings: dict[str, Any] = {"seed": 3, "stage": "tune", "batch_size": 6} | changes
    return list(dataset.batches(StageSteps(start=start, steps=steps, **settings)))


def greys(batches: list[Batch]) -> list[int]:
    return [int(i[0, 0, 0]) for batch in batches for i in batch.inputs]


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert [b.samples for b in left] == [b.samples for b in right]
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(left, right, strict=True))


def said(batches: list[Batch]) -> str:
    return "\n".join(text for batch in batches for text in (*batch.notices, *batch.skipped))


# --- shards by index --------------------------------------------------------------------------------


def test_a_stream_of_one_image_says_that_it_is_trained_on_itself(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", samples(7, 1))
    stream = stream_of(tmp_path)
    assert any("has a single image: it is trained on" in text for text in stream.notices)
    batches = drawn(stream, steps=2, batch_size=2)
    assert greys(batches) == [7, 7, 7, 7]
    assert [bool(batch.notices) for batch in batches] == [True, False]


def test_local_shards_are_read_in_any_order(shards: Path) -> None:
    dataset = built("webdataset", shards)
    assert dataset.num_images == 18
    assert dataset.held_out().groups == ("01.tar/009.png", "02.tar/013.png")
    shown = greys(drawn(dataset, steps=3))
    assert sorted(shown) == [g for g in range(20) if g not in (9, 13)]
    assert_same(drawn(built("webdataset", shards, workers=2), start=4), drawn(dataset)[4:])


def test_braces_name_the_same_shards_as_their_folder(shards: Path) -> None:
    braces = built("webdataset", f"{shards}/{{00..03}}.tar")
    assert_same(drawn(braces), drawn(built("webdataset", shards)))


def test_many_shards_are_indexed_side_by_side(tmp_path: Path) -> None:
    for shard in range(18):
        write_tar(tmp_path / f"{shard:02}.tar", samples(2 * shard, 2))
    alone, several = (built("webdataset", tmp_path, workers=workers) for workers in (0, 2))
    assert several.num_images == alone.num_images == 34
    assert_same(drawn(several), drawn(alone))


def test_the_wanted_member_of_a_sample_is_taken(tmp_path: Path) -> None:
    members = {}
    for i in range(4):
        members |= {f"{i}.input.png": flat(i), f"{i}.target.png": flat(100 + i)}
    shard = write_tar(tmp_path / "a.tar", members)
    first = built("webdataset", shard, held_out=1)
    target = built("webdataset", shard, held_out=1, member="target.png")
    assert first.num_images == target.num_images == 3
    assert max(greys(drawn(first))) < 100 <= min(greys(drawn(target)))


def break_shards(folder: Path) -> None:
    """Shard 01 ends inside an image, 02 has a damaged header, 03 is no tar, 04 lacks images."""
    content = (folder / "01.tar").read_bytes()
    with tarfile.open(folder / "01.tar") as archive:
        last = archive.getmember("009.png")
    (folder / "01.tar").write_bytes(content[: last.offset_data + 10])
    damaged = bytearray((folder / "02.tar").read_bytes())
    with tarfile.open(folder / "02.tar") as archive:
        third = archive.getmember("012.cls")
    damaged[third.offset : third.offset + 100] = b"\xff" * 100
    (folder / "02.tar").write_bytes(damaged)
    (folder / "03.tar").write_bytes(b"no tar" * 400)
    write_tar(
        folder / "04.tar",
        {"a.json": b"{}", "b.png": flat(40), "c.png": b"no image", "d.txt": b"", "e.png": flat(41)},
    )


BROKEN = (
    r"01\.tar: it ends inside 009\.png; the 4 images before are used",
    r"02\.tar: damaged header at byte \d+ \(bad checksum\); the 2 images before are used",
    r"03\.tar: damaged header at byte 0 .*; the shard is left out",
    r"04\.tar: a and 1 more left out, no member of which is an image",
    r"04\.tar/c\.png: not an image of a known format",
)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_shards_are_used_as_far_as_they_go_and_named_once(
    shards: Path, streaming: bool, workers: int
) -> None:
    break_shards(shards)
    dataset = built(
        "webdataset", shards, held_out=1, streaming=streaming, workers=workers, buffer=12, readers=2
    )
    assert dataset.num_images == 5 + 4 + 2 + 3 - 1
    batches = drawn(dataset, steps=20)
    usable = {*range(9), 10, 11, 40, 41}
    (held,) = dataset.held_out().groups
    assert set(greys(batches)) == usable - {int(held.removesuffix(".png")[-3:])}
    text = said(batches)
    for pattern in BROKEN:
        assert len(re.findall(pattern, text)) == 1, (pattern, text)
    again = built("webdataset", shards, held_out=1, streaming=streaming, buffer=12, readers=2)
    assert_same(drawn(again, start=7, steps=20), batches[7:])


def test_what_is_wrong_with_shards_is_said_at_once(tmp_path: Path, shards: Path) -> None:
    def refused(error: type[Exception], match: str, path: str | Path, **fields: Any) -> None:
        with pytest.raises(error, match=match):
            built("webdataset", path, **fields)

    empty = tmp_path / "empty"
    empty.mkdir()
    refused(DataError, r"has no shards: no file in it or below it ends in \.tar", empty)
    refused(
        DataError, r"no usable image: .*gone-0\.tar: No such file", tmp_path / "gone-{0..1}.tar"
    )
    refused(UsageError, "no list of shards .*Unbalanced.*write braces as in", "a-{0..1.tar")
    refused(UsageError, "name tar shards", "")
    refused(DataError, "no member of which is an image", shards, member="jpg")
    refused(UsageError, r"only be read from its beginning: set data\.streaming", "https://x/a.tar")
    refused(UsageError, "for streams; here the images are counted", shards, num_images=20)
    refused(UsageError, "num_images = 3, but .* has 20", shards, num_images=3, streaming=True)
    refused(UsageError, "needs a length: set data.num_images", "https://x/a.tar", streaming=True)
    refused(UsageError, "a stream has no aspect-ratio buckets", shards, streaming=True, buckets=3)


# --- streams ----------------------------------------------------------------------------------------


def test_a_stream_shows_every_training_image_of_its_readers_once_per_epoch(shards: Path) -> None:
    stream = stream_of(shards, readers=2, held_out=4)
    held = {int(name.removesuffix(".png")[-3:]) for name in stream.held_out().groups}
    assert len(held) == 4
    assert {name // 5 for name in held} == {0, 1, 2, 3}
    assert stream.num_images == 16
    # Two readers of two shards with eight training images each: four steps of four are an epoch.
    epochs = [greys(drawn(stream, start=s, steps=s + 4, batch_size=4)) for s in (0, 4, 8)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(set(range(20)) - held)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 5, 8])
def test_a_stream_goes_on_as_if_unbroken_and_says_where(
    shards: Path, workers: int, start: int
) -> None:
    whole = drawn(stream_of(shards))
    assert said(whole) == ""
    tail = drawn(stream_of(shards, workers=workers), start=start)
    assert_same(tail, whole[start:])
    assert [bool(batch.notices) for batch in tail] == [True] + [False] * (len(tail) - 1)
    text = tail[0].notices[0]
    assert f"the stream goes on at step {start} with {shards}/" in text
    assert "its shuffle buffer was filled again" in text


@pytest.mark.usefixtures("_allowed")
def test_a_stream_of_commands_gives_what_local_shards_give(shards: Path) -> None:
    piped = built(
        "webdataset", f"pipe:cat {shards}/{{00..03}}.tar", streaming=True, num_images=20, buffer=12,
        readers=3, workers=2,
    )  # fmt: skip
    assert_same(drawn(piped), drawn(stream_of(shards)))
    # Nothing is known of the shards here, so they are counted while they are passed over.
    assert_same(drawn(piped, start=7), drawn(stream_of(shards))[7:])
    held_out = piped.held_out()
    assert held_out.groups == ("shard 2/011.png", "shard 3/015.png")
    assert torch.equal(held_out.images, stream_of(shards).held_out().images)


def test_a_compressed_shard_is_streamed(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar.gz", samples(0, 6), mode="w:gz")
    with pytest.raises(UsageError, match=r"a\.tar\.gz can only be read from its beginning"):
        built("webdataset", shard)
    stream = stream_of(shard, num_images=6)
    assert sorted(greys(drawn(stream, batch_size=4, steps=1))) == [1, 3, 4, 5]


@pytest.mark.usefixtures("_allowed")
def test_commands_that_fail_are_left_out_with_their_status(shards: Path) -> None:
    break_shards(shards)
    piped = built(
        "webdataset", f"pipe:cat {shards}/{{00,01,02,03,04,gone}}.tar 2>/dev/null", streaming=True,
        num_images=18, held_out=1, buffer=12, readers=6,
    )  # fmt: skip
    batches = drawn(piped, steps=12)
    assert set(greys(batches)) <= {*range(9), 10, 11, 40, 41}
    text = said(batches)
    assert "gone.tar 2>/dev/null: its command ended with status 1; left out" in text
    assert "01.tar 2>/dev/null: unexpected end of data; its first 4 images are used" in text
    assert text.count("03.tar") == 1
    assert_same(drawn(piped, start=5, steps=12), batches[5:])


@pytest.mark.usefixtures("_allowed")
def test_a_stream_without_a_usable_image_says_why(tmp_path: Path) -> None:
    none = built("webdataset", "pipe:false", streaming=True, num_images=9)
    with pytest.raises(DataError, match=r"no image in pipe:false can be trained on: .*status 1"):
        drawn(none)
    with pytest.raises(DataError, match=r"held out: none of 1 images .*status 1"):
        none.held_out()
    write_tar(tmp_path / "a.tar", {f"{i}.png": b"no image" for i in range(5)})
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"none of 3 images in .* can be used: .*\.png: not an"):
            drawn(stream_of(tmp_path, workers=workers, buffer=2))


def test_a_wholly_unusable_block_is_replaced_by_what_follows(tmp_path: Path) -> None:
    members = {f"{i:03}.png": b"no image" for i in range(8)} | samples(8, 4)
    stream = stream_of(write_tar(tmp_path / "a.tar", members), buffer=2, held_out=1)
    whole = drawn(stream)
    assert set(greys(whole)) == {8, 9, 10, 11}
    assert_same(drawn(stream, start=4), whole[4:])


def test_crops_for_fitting_are_training_images(shards: Path) -> None:
    stream = stream_of(shards, workers=2)
    crops = stream.crops(18, seed=1)
    assert crops.shape == (18, 3, 8, 8)
    assert torch.equal(crops, stream_of(shards).crops(18, seed=1))
    held = {int(name.removesuffix(".png")[-3:]) for name in stream.held_out().groups}
    assert not held & {round(float(c[0, 0, 0]) * 255) for c in crops}
    assert stream.crops(0, seed=1).shape == (0, 3, 8, 8)


def test_no_process_outlives_a_stream(shards: Path) -> None:
    batches = stream_of(shards, workers=2).batches(
        StageSteps(seed=0, stage="tune", batch_size=4, start=0, steps=100)
    )
    next(batches)
    assert multiprocessing.active_children()
    batches.close()  # type: ignore[attr-defined]  # a generator
    assert not multiprocessing.active_children()


def test_a_resumed_run_tells_that_the_buffer_was_filled_again(shards: Path, tmp_path: Path) -> None:
    tree = {
        "encoder": ENCODERS["vit"], "bridge": "vb4", "decoder": DECODERS["vit"], "seed": 3,
        "data": {"name": "webdataset", "path": str(shards), "streaming": True, "image_size": 16,
                 "workers": 0, "held_out": 2},
        "recipe": {"name": "quick", "batch_size": 4, "max_steps": 3, "checkpoint_every": 1},
        "out": str(tmp_path / "run"), "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    for event in (happened := runs.run(tree)):
        if isinstance(event, events.CheckpointSaved):
            happened.close()  # type: ignore[attr-defined]  # a generator
            break
    told = []
    for event in (happened := runs.resume(tmp_path / "run")):
        told += [event.text] if isinstance(event, events.Notice) else []
        if isinstance(event, events.StepDone):
            happened.close()  # type: ignore[attr-defined]  # a generator
            break
    assert any("stage tune: the stream goes on at step 1 with" in text for text in told), told


# --- Hugging Face -----------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of nine images, one of them damaged."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for grey in range(9):
        (folder / f"{grey}.png").write_bytes(b"no image" if grey == 6 else flat(grey))
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The same as Parquet files, as the hub has them."""
    folder = tmp_path / "hub"
    folder.mkdir()
    for part in range(3):
        cells = [
            {"bytes": b"no image" if g == 6 else flat(g), "path": f"{g}.png"}
            for g in range(3 * part, 3 * part + 3)
        ]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        rows = datasets.Dataset.from_dict({"image": cells, "label": [0] * 3}, features=features)
        rows.to_parquet(folder / f"train-{part}.parquet")
    return folder


@pytest.mark.parametrize("kind", ["photographs", "hub"])
def test_local_folders_of_the_library_are_read_in_any_order(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(kind)
    dataset = built("hf", folder)
    assert dataset.num_images == 7
    assert dataset.held_out().groups == ("train#2",)  # and 6, which is damaged
    batches = drawn(dataset, steps=7)
    assert set(greys(batches)) == {0, 1, 3, 4, 5, 7, 8}
    assert_same(drawn(built("hf", folder, workers=2), start=3, steps=7), batches[3:])

    saved = tmp_path / "saved"
    datasets.load_dataset(str(folder), split="train").save_to_disk(saved)
    assert_same(drawn(built("hf", saved), steps=7), batches)
    splits = tmp_path / "splits"
    datasets.load_dataset(str(folder)).save_to_disk(splits)
    assert_same(drawn(built("hf", splits), steps=7), batches)
    with pytest.raises(DataError, match=r"no split 'test'; it has train\. Set data\.split"):
        built("hf", splits, split="test")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_library_stream_goes_on_as_if_unbroken(hub: Path, workers: int) -> None:
    settings = {"streaming": True, "num_images": 9, "buffer": 4, "readers": 3, "held_out": 1}
    whole = drawn(built("hf", hub, **settings))
    assert set(greys(whole)) == {1, 2, 3, 4, 5, 7, 8}
    assert "shard 2, image 0: not an image" in said(whole)
    tail = drawn(built("hf", hub, workers=workers, **settings), start=5)
    assert_same(tail, whole[5:])
    assert "the stream goes on at step 5 with" in tail[0].notices[0]


def test_a_saved_dataset_is_streamed_and_counted(photographs: Path, tmp_path: Path) -> None:
    rows = datasets.load_dataset(str(photographs), split="train").select(range(4, 9))
    rows.save_to_disk(tmp_path / "saved")
    stream = built("hf", tmp_path / "saved", streaming=True, held_out=1)
    assert stream.num_images == 4
    assert set(greys(drawn(stream))) == {5, 7, 8}


def test_an_unknown_number_of_rows_names_the_field(hub: Path) -> None:
    with pytest.raises(UsageError, match=r"does not say how many images .* set data\.num_images"):
        built("hf", hub, streaming=True)


def test_what_is_wrong_with_a_library_dataset_is_said_at_once(
    photographs: Path, hub: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], match: str, path: str | Path, **fields: Any) -> None:
        with pytest.raises(error, match=match):
            built("hf", path, **fields)

    for streaming in (False, True):
        refused(
            DataError, r"no column 'photo'; it has image, label\. Set data\.column", hub,
            column="photo", streaming=streaming,
        )  # fmt: skip
        refused(
            DataError, "column 'label' holds .*; images are Image, or binary", hub,
            column="label", streaming=streaming,
        )  # fmt: skip
        refused(
            DataError, "cannot be loaded: .*Set data.split or data.subset", photographs,
            split="val", streaming=streaming,
        )  # fmt: skip
    refused(DataError, "Set data.split or data.subset", photographs, subset="other")
    refused(DataError, "there is no such folder; set data.path", tmp_path / "gone")
    refused(DataError, "is a file: name its folder, or take parquet:", hub / "train-0.parquet")
    refused(UsageError, "name a dataset: hf:OWNER/NAME", "")
    refused(UsageError, "for streams; here the images are counted", hub, num_images=9)
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(DataError, "empty cannot be loaded", empty)
    refused(
        FetchError, "nobody/nothing is not in the cache .*HF_HUB_OFFLINE is set.*hf:FOLDER",
        "nobody/nothing",
    )  # fmt: skip


def rows_of(folder: Path, name: str, labels: list[Any], kind: Any) -> Path:
    """A Parquet file of the library with labels."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    cells = [{"bytes": flat(grey), "path": f"{grey}.png"} for grey in range(len(labels))]
    rows = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    rows.to_parquet(folder / name)
    return folder


@pytest.mark.parametrize(
    ("labels", "kind", "numbers", "names"),
    [
        ([2, 0, None], datasets.ClassLabel(names=["a", "b", "c"]), [2, 0, -1], ("a", "b", "c")),
        ([2, 0, -1], datasets.Value("int64"), [2, 0, -1], ()),
        (["b", "a", None], datasets.Value("string"), [1, 0, -1], ("a", "b")),
        ([True, False, True], datasets.Value("bool"), [1, 0, 1], ("false", "true")),
    ],
)
def test_library_datasets_have_labels(
    labels: list[Any], kind: Any, numbers: list[int], names: tuple[str, ...], tmp_path: Path
) -> None:
    folder = rows_of(tmp_path / "data", "train.parquet", labels, kind)
    saved = tmp_path / "saved"
    datasets.load_dataset(str(folder), split="train").save_to_disk(saved)
    for path in (folder, saved):
        images = built("hf", path, held_out=1).every_image()
        assert [images[i].label for i in range(3)] == numbers
        assert images.label_names == names
        assert any("1 of 3 images have no label" in t for t in images.notices) is (-1 in numbers)
    with pytest.raises(DataError, match=r"no column 'kind'; it has image, label\. .*label_column"):
        built("hf", folder, label_column="kind")


def test_library_labels_that_are_none_are_left_out_with_the_reason(tmp_path: Path) -> None:
    listed = datasets.Sequence(datasets.Value("int64"))
    folder = rows_of(tmp_path / "data", "train.parquet", [[1], [2], [3]], listed)
    images = built("hf", folder, held_out=1).every_image()
    assert not images.labelled
    assert "column 'label' holds list<" in images.notices[0]
    with pytest.raises(DataError, match="column 'label' holds list<"):
        built("hf", folder, held_out=1, label_column="label")


def test_what_the_library_leaves_out_is_counted(tmp_path: Path) -> None:
    for name in ("bus/0.png", "train/1.png", "train/2.png", "car/3.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(flat(3))
    dataset = built("hf", tmp_path / "d", held_out=1)
    assert dataset.num_images == 1
    (told,) = dataset.notices
    assert "2 files belong to no split and are left out, such as bus/0.png" in told


def test_a_saved_split_is_not_taken_for_another(hub: Path, tmp_path: Path) -> None:
    datasets.load_dataset(str(hub), split="train").save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"holds split 'train' and not 'test': set data\.split"):
        built("hf", tmp_path / "saved", split="test")


@pytest.mark.parametrize("name", ["csv", "pandas", "https://host/x", "a/b/c", "text"])
def test_names_of_builders_and_urls_are_no_ids(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library would look through the working folder for files of that kind.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("image\n1\n2\n")
    with pytest.raises(UsageError, match="neither a folder nor an id of a dataset on the hub"):
        built("hf", name)


def test_no_code_in_a_dataset_runs(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("raise SystemExit('the script ran')")
    with pytest.raises(DataError, match=r"scripts are no longer supported|any data files"):
        built("hf", folder)


def test_a_library_that_runs_code_of_datasets_is_refused(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(UsageError, match=r"datasets 3\.6\.0 may run code .*datasets>=4"):
        built("hf", photographs)


# --- the command line -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hf", "webdataset"])
def test_the_command_line_plans_with_the_data(
    kind: str, hub: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hub if kind == "hf" else f"{shards}/{{00..03}}.tar"
    encoder = ["--encoder", "tiny", "--bridge", "vb4", "--decoder", "vit-t"]
    assert main(["build", "--data", f"{kind}:{path}", "--dry-run", *encoder]) == 0
    assert f"data {kind}" in capsys.readouterr().out
    assert main(["build", "--data", f"{kind}:{path}/gone", "--dry-run", *encoder]) == 1
    assert "gone" in capsys.readouterr().err


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package in (("hf", "datasets"), ("webdataset", "webdataset")):
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(MissingExtraError, match=rf'{package}.*pip install "rpiae\[{name}\]"'):
            DATASETS.config_class(name)
        monkeypatch.undo()
