"""Folders and Parquet files: what is read, what is left out, labels, splits, and bad paths."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rpiae.cli import main
from rpiae.core.config.parts import DatasetConfig
from rpiae.core.errors import ConfigError, DataError, RpiaeError, UnknownNameError, UsageError
from rpiae.core.model.resolve import part_config
from rpiae.data import DATASETS
from rpiae.data.configs import MOST_HELD_OUT, MOST_PIXELS, MOST_PROCESSES
from rpiae.data.images import decode
from rpiae.data.listed import EveryImage
from rpiae.data.sources import EXTENSIONS, UNREAD


def picture(grey: int, kind: str = "PNG") -> bytes:
    """An encoded image of one grey."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 20, 3), grey, dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def fill(folder: Path, *names: str) -> Path:
    """A folder with images of these names."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def table(path: Path, **columns: Any) -> Path:
    """A Parquet file of these columns, by default with twelve images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = {"image": [{"bytes": picture(g), "path": f"{g}.png"} for g in range(12)]}
    pq.write_table(pa.table(cells | columns), path, row_group_size=5)
    return path


def every(kind: str, path: Path | str, **fields: Any) -> EveryImage:
    """All images of a dataset."""
    tree = {"name": kind, "path": str(path), "image_size": 8, "workers": 0, "held_out": 1} | fields
    found = part_config("datasets", tree).build().every_image()
    assert isinstance(found, EveryImage)
    return found


def labels(images: EveryImage) -> list[int]:
    return [images[i].label for i in range(len(images))]


# --- folders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_every_ending_that_is_taken_is_decoded(ending: str, tmp_path: Path) -> None:
    kind = Image.registered_extensions()[ending]
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    (tmp_path / f"a{ending.upper()}").write_bytes(picture(7, kind))
    fill(tmp_path, "b.png")
    images = every("folder", tmp_path)
    assert len(images) == 2
    assert abs(int(decode(tmp_path / f"a{ending.upper()}").mean()) - 7) < 3
    assert images.notices == ()


def test_what_a_folder_leaves_out_is_counted_once(tmp_path: Path) -> None:
    fill(tmp_path / "d", "a/1.png", "a/2.png", ".a/3.png", "__MACOSX/a/._1.png", "a/.x.png")
    for name in (
        "a/x.heic",
        "y.HEIC",
        "z.jxl",
        "1.png.bak",
        "noending",
        "notes.txt",
        "a/labels.csv",
    ):
        (tmp_path / "d" / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "d" / "pipe.png")
    (tmp_path / "d" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "d" / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "d" / "again").symlink_to("a")
    images = every("folder", tmp_path / "d", classes=["a", "again"])
    assert [images.name(i) for i in range(len(images))] == ["a/1.png", "a/2.png"]
    told = images.notices[0]
    for part in (
        ".heic (2)", ".jxl (1)", ".png.bak (1)", "without an ending (1)",
        "no regular files, or links that lead nowhere (3)",
        "links to folders that are read already (1)",
    ):  # fmt: skip
        assert part in told
    assert "txt" not in told
    assert "csv" not in told


def test_a_folder_of_other_images_says_which(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"has no images: .*left out \.heic \(1\)"):
        every("folder", tmp_path)
    assert not set(EXTENSIONS) & set(UNREAD)


def test_classes_without_images_keep_their_numbers(tmp_path: Path) -> None:
    fill(tmp_path, "a/0.png", "c/0.png", "c/deep/1.png")
    for empty in ("b", ".ipynb_checkpoints", "__pycache__"):
        (tmp_path / empty).mkdir()
    images = every("folder", tmp_path)
    assert images.label_names == ("a", "b", "c")
    assert labels(images) == [0, 2, 2]
    assert any("1 of 3 classes have no images, such as b" in text for text in images.notices)


def test_classes_of_one_split_are_numbered_with_those_beside_it(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/0.png", "train/b/0.png", "train/c/0.png", "val/a/0.png", "val/c/0.png")
    fill(tmp_path, "test/other/0.png", "test/other/1.png")
    images = every("folder", tmp_path / "val")
    assert images.label_names == every("folder", tmp_path / "train").label_names == ("a", "b", "c")
    assert labels(images) == [0, 2]
    assert any("together with those of train beside it" in text for text in images.notices)
    assert labels(every("folder", tmp_path, split="val")) == [0, 2]
    assert every("folder", tmp_path / "test").label_names == ("other",)


def test_images_in_no_class_folder_have_no_label(tmp_path: Path) -> None:
    fill(tmp_path, "a/0.png", "b/0.png", "z.png")
    images = every("folder", tmp_path)
    assert labels(images) == [0, 1, -1]
    assert any("1 of 3 images lie in no class folder" in text for text in images.notices)


@pytest.mark.parametrize("target", [".", "..", "../..", "real", "a"])
@pytest.mark.parametrize("name", ["0link", "a/link", "zlink"])
def test_a_link_to_what_is_read_already_is_no_class(name: str, target: str, tmp_path: Path) -> None:
    folder = tmp_path / "outer" / "data"
    fill(folder, "a/0.png", "real/1.png")
    fill(tmp_path, "other.png", "outer/other.png")
    link = folder / name
    link.symlink_to(os.path.relpath(folder / target, link.parent))
    images = every("folder", folder)
    assert images.label_names == ("a", "real")
    assert [images.name(i) for i in range(len(images))] == ["a/0.png", "real/1.png"]
    assert any("links to folders that are read already (1)" in text for text in images.notices)


def test_a_link_to_other_images_is_a_class(tmp_path: Path) -> None:
    fill(tmp_path, "data/a/0.png", "more/1.png")
    (tmp_path / "data" / "b").symlink_to("../more")
    assert every("folder", tmp_path / "data").label_names == ("a", "b")


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    fill(tmp_path, "0.png", "1.png")
    (tmp_path / "docs").mkdir()
    assert not every("folder", tmp_path).labelled


def test_classes_can_be_listed(tmp_path: Path) -> None:
    fill(tmp_path, "cat/0.png", "dog/0.png")
    images = every("folder", tmp_path, classes=["elk", "dog", "cat"])
    assert images.label_names == ("elk", "dog", "cat")
    assert labels(images) == [2, 1]
    with pytest.raises(DataError, match=r"a class 'dog', which data\.classes lacks"):
        every("folder", tmp_path, classes=["cat"])
    with pytest.raises(UsageError, match=r"data\.classes has 'cat' twice"):
        every("folder", tmp_path, classes=["cat", "dog", "cat"])


def test_splits_of_a_folder_are_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/0.png", "train/b/1.png", "train/b/2.png", "val/a/3.png", "val/a/4.png")
    with pytest.raises(
        UsageError, match=r"several splits: train \(3\), validation \(2\).*data\.split=train"
    ):
        every("folder", tmp_path)
    images = every("folder", tmp_path, split="train")
    assert [images.name(i) for i in range(3)] == ["train/a/0.png", "train/b/1.png", "train/b/2.png"]
    assert images.label_names == ("a", "b")
    assert labels(images) == [0, 1, 1]
    assert len(every("folder", tmp_path, split="val*")) == 2
    assert len(every("folder", tmp_path, split="*")) == 5
    with pytest.raises(DataError, match=r"has no split 'test': it has train \(3\)"):
        every("folder", tmp_path, split="test")


def test_splits_in_the_folders_of_classes_are_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path, "cat/train/0.png", "cat/test/1.png", "dog/train/2.png", "dog/test/3.png")
    with pytest.raises(UsageError, match=r"several splits: test \(2\), train \(2\)"):
        every("folder", tmp_path)
    images = every("folder", tmp_path, split="train")
    assert [images.name(i) for i in range(len(images))] == ["cat/train/0.png", "dog/train/2.png"]
    assert images.label_names == ("cat", "dog")
    assert labels(images) == [0, 1]
    assert labels(every("folder", tmp_path, split="*")) == [0, 0, 1, 1]


def test_one_split_alone_is_taken(tmp_path: Path) -> None:
    fill(tmp_path, "train/a/0.png", "train/b/1.png")
    assert every("folder", tmp_path).label_names == ("a", "b")


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_names_that_are_not_utf8_are_printable_and_different(tmp_path: Path) -> None:
    for name in (b"a\xff/1.png", b"a\xff/2\xfe.png", b"a\\xff/1.png", b"b/\n.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(picture(1))
    images = every("folder", tmp_path)
    names = [images.name(i) for i in range(len(images))]
    assert len(set(names)) == 4
    assert all(name.isprintable() and name.encode() for name in (*names, *images.label_names))
    assert len(set(images.label_names)) == 3
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"no image")
    images = every("folder", tmp_path)
    failures = [images[i].failure for i in range(len(images)) if images[i].failure]
    assert any(r"bad\xff.jpg: not an image" in text for text in failures)


# --- Parquet ----------------------------------------------------------------------------------------


def binary(kind: pa.DataType) -> pa.Array:
    return pa.array([picture(g) for g in range(12)], pa.binary()).cast(kind)


COLUMNS = {
    "plain": lambda: binary(pa.binary()),
    "large": lambda: binary(pa.large_binary()),
    "dictionary": lambda: binary(pa.binary()).dictionary_encode(),
    "struct of large": lambda: pa.StructArray.from_arrays([binary(pa.large_binary())], ["bytes"]),
    "struct with more": lambda: pa.StructArray.from_arrays(
        [pa.array(range(12)), binary(pa.binary())], ["height", "bytes"]
    ),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_all_binary_columns_are_read(column: str, tmp_path: Path) -> None:
    images = every("parquet", table(tmp_path / "a.parquet", image=COLUMNS[column]()))
    assert len(images) == 12
    assert [int(images[i].pixels.float().mean()) for i in range(12)] == list(range(12))  # type: ignore[union-attr]  # all are usable


OTHERS = {
    "number in struct": (
        lambda: pa.array([{"bytes": 3_000_000_000}] * 12, pa.struct([("bytes", pa.int64())])),
        "struct<bytes: int64>",
    ),
    "text in struct": (lambda: pa.array([{"bytes": "abc", "path": "a"}] * 12), "struct<bytes: string"),
    "list in struct": (lambda: pa.array([{"bytes": [1, 2]}] * 12), "struct<bytes: list"),
    "no bytes": (lambda: pa.array([{"path": "a"}] * 12), "struct<path: string>"),
    "text": (lambda: pa.array(["aGFsbG8="] * 12), "string"),
    "numbers": (lambda: pa.array([1] * 12), "int64"),
    "list": (lambda: pa.array([[picture(1)]] * 12), "list<"),
    "null": (lambda: pa.nulls(12), "null"),
}  # fmt: skip


@pytest.mark.parametrize("column", OTHERS)
def test_columns_of_other_types_are_refused_before_a_row_is_read(
    column: str, tmp_path: Path
) -> None:
    make, held = OTHERS[column]
    path = table(tmp_path / "a.parquet", image=make(), photo=binary(pa.binary()))
    with pytest.raises(DataError) as error:
        every("parquet", path)
    assert f"column 'image' holds {held}" in str(error.value)
    assert "Set data.column to the one that holds the images (photo)" in str(error.value)
    assert len(every("parquet", path, column="photo")) == 12


LABELS = {
    "whole numbers": (list(range(12)), list(range(12)), ()),
    "missing": ([1, None] * 6, [1, -1] * 6, ()),
    "text": (["dog", "cat"] * 6, [1, 0] * 6, ("cat", "dog")),
    "missing text": (["dog", None, "cat"] * 4, [1, -1, 0] * 4, ("cat", "dog")),
    "booleans": ([True, False, None] * 4, [1, 0, -1] * 4, ("false", "true")),
    "numbers with gaps": ([2.0, None, float("nan")] * 4, [2, -1, -1] * 4, ()),
}


@pytest.mark.parametrize("case", LABELS)
@pytest.mark.parametrize("encoded", [False, True])
def test_parquet_labels(case: str, encoded: bool, tmp_path: Path) -> None:
    values, numbers, names = LABELS[case]
    column = pa.array(values)
    path = table(tmp_path / "a.parquet", label=column.dictionary_encode() if encoded else column)
    images = every("parquet", path)
    assert images.labelled
    assert labels(images) == numbers
    assert images.label_names == names
    assert any("have no label" in text for text in images.notices) is (-1 in numbers)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.5] * 12, r"holds 0\.5"),
        ([[1, 2]] * 12, "holds list<"),
        ([{"a": 1}] * 12, "holds struct<"),
    ],
)
def test_labels_that_are_none_are_left_out_with_the_reason_or_refused(
    values: list[Any], reason: str, tmp_path: Path
) -> None:
    path = table(tmp_path / "a.parquet", label=values)
    images = every("parquet", path)
    assert not images.labelled
    assert labels(images) == [-1] * 12
    (told,) = images.notices
    assert "column 'label'" in told
    assert "data.label_column" in told
    with pytest.raises(DataError, match=f"column 'label' {reason}"):
        every("parquet", path, label_column="label")


def test_labels_of_some_files_alone_are_left_out_with_the_reason(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", label=[1] * 12)
    table(tmp_path / "b.parquet")
    images = every("parquet", tmp_path)
    assert not images.labelled
    assert "b.parquet and 0 more of 2 files have no column 'label'" in images.notices[0]


def named_table(path: Path, *names: str) -> Path:
    """A Parquet file whose labels 0 and 1 have names, as ``datasets`` writes them."""
    table(path, label=[0, 1] * 6)
    features = {"label": {"names": list(names), "_type": "ClassLabel"}} if names else {}
    about = json.dumps({"info": {"features": features}})
    written = pq.read_table(path).replace_schema_metadata({"huggingface": about})
    pq.write_table(written, path)
    return path


@pytest.mark.parametrize("others", [("dog", "cat"), ("cat", "dog", "elk"), ()])
def test_numbers_that_files_name_differently_are_no_labels(
    others: tuple[str, ...], tmp_path: Path
) -> None:
    named_table(tmp_path / "a.parquet", "cat", "dog")
    assert every("parquet", tmp_path).label_names == ("cat", "dog")
    named_table(tmp_path / "b.parquet", *others)
    images = every("parquet", tmp_path)
    assert not images.labelled
    assert "has not the same names of classes" in " ".join(images.notices)
    with pytest.raises(DataError, match=r"a\.parquet and .*b\.parquet.*data\.split"):
        every("parquet", tmp_path, label_column="label")
    assert labels(every("parquet", tmp_path, split="a*")) == [0, 1] * 6


def test_splits_of_parquet_files_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train-00000-of-00001", "validation-00000-of-00001", "test-00000-of-00001"):
        table(tmp_path / "data" / f"{name}.parquet")
    for folder in (tmp_path, tmp_path / "data"):
        with pytest.raises(UsageError, match=r"test \(1\), train \(1\), validation \(1\)"):
            every("parquet", folder)
        assert len(every("parquet", folder, split="train")) == 12
        assert len(every("parquet", folder, split="*")) == 36
    assert every("parquet", tmp_path, split="val").name(0).startswith("data/validation-00000")
    with pytest.raises(DataError, match="has no split 'extra'"):
        every("parquet", tmp_path, split="extra")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    whole = table(tmp_path / "whole.parquet").read_bytes()
    for number, content in enumerate((b"", b"PAR1", whole[:100], whole[:-9] + b"\xff" * 9)):
        path = tmp_path / f"broken{number}.parquet"
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"broken{number}\.parquet cannot be read as a Parquet"
        ):
            every("parquet", path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    column = binary(pa.binary())
    pq.write_table(
        pa.Table.from_arrays([column, column], ["image", "image"]), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="has 2 columns 'image'"):
        every("parquet", tmp_path)


# --- paths ------------------------------------------------------------------------------------------

PATHS = {
    "null": "a\0b",
    "nobody": "~nosuchuser/x",
    "long": "a" * 300,
    "deep": "/".join(["a" * 200] * 40),
    "surrogate": "a\udcffb",
    "gone": "nowhere/at/all",
    "below a file": "file.txt/x",
    "a file": "file.txt",
    "loop": "loop",
    "fifo": "fifo",
    "device": "/dev/zero",
    "empty": "empty",
    "nothing": "",
    "dot": "fifo.tar",
    "fifo of rows": "fifo.parquet",
}


@pytest.mark.parametrize("case", PATHS)
@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset", "hf"])
def test_a_path_that_leads_nowhere_is_named(
    kind: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("hf", "webdataset"):
        pytest.importorskip("datasets" if kind == "hf" else kind)
    monkeypatch.chdir(tmp_path)
    if kind == "hf":
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("file.txt").write_text("x")
    Path("loop").symlink_to("loop")
    Path("empty").mkdir()
    for name in ("fifo", "fifo.tar", "fifo.parquet"):
        os.mkfifo(name)
    config = DATASETS.config_class(kind)(name=kind, path=PATHS[case], image_size=8, workers=0)
    with pytest.raises(RpiaeError) as error:
        config.build()
    assert isinstance(error.value, (DataError, UsageError)) or kind == "hf"
    said = str(error.value)
    said.encode()
    assert "data" in said or PATHS[case] in said


def test_a_folder_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a/0.png", "b/1.png")
    scan = os.scandir

    def refusing(path: Any) -> Any:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("rpiae.data.sources.os.scandir", refusing)
    with pytest.raises(DataError, match=r"/b: Permission denied"):
        every("folder", tmp_path)


# --- configs and the command line ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", MOST_PIXELS + 1), ("resize", 10**15), ("held_out", MOST_HELD_OUT + 1),
        ("workers", MOST_PROCESSES + 1), ("buckets", 10**9), ("bucket_step", 10**9),
    ],
)  # fmt: skip
def test_absurd_sizes_are_refused_where_they_are_read(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: must be at most \d+, got {value}"):
        part_config("datasets", {"name": "folder", "path": "x", field: value})


@pytest.mark.parametrize(
    ("made", "written"),
    [
        ("photos/a.png", "folder:photos"),
        ("photos/a.parquet", "parquet:photos"),
        ("photos/a.tar", "webdataset:photos"),
        ("photos/state.json", "hf:photos"),
    ],
)
def test_a_folder_is_answered_with_its_dataset(
    made: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(made).parent.mkdir()
    Path(made).write_bytes(b"x")
    with pytest.raises(UnknownNameError, match=rf"no dataset named 'photos'\. .*write {written}\."):
        DATASETS.select("photos")
    if not made.endswith((".png", ".json")):
        with pytest.raises(UnknownNameError, match=rf"write {written.partition(':')[0]}:{made}\."):
            DATASETS.select(made)
    for nothing in ("nowhere", "a" * 300, "a\0b", "~nosuchuser"):
        with pytest.raises(UnknownNameError, match="no dataset named"):
            DATASETS.select(nothing)


def test_a_plan_counts_the_images_and_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, *(f"{i}.png" for i in range(7)))
    (tmp_path / "x.heic").write_bytes(b"x")
    tree = ["--encoder", "tiny", "--bridge", "vb4", "--decoder", "vit-t"]
    assert main(["build", "--data", f"folder:{tmp_path}", "--dry-run", *tree,
                 "--set", "data.held_out=2"]) == 0  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "data folder (given), 5 images to train on" in said
    assert "left out .heic (1)" in said.replace("\n", "")


def test_a_mixture_names_the_fields_of_its_sources(tmp_path: Path) -> None:
    fill(tmp_path, "train/0.png", "val/1.png")
    tree = {
        "name": "mixture", "image_size": 8, "workers": 0,
        "sources": [{"data": "sample"}, {"data": f"folder:{tmp_path}"}],
    }  # fmt: skip
    config = part_config("datasets", tree)
    assert isinstance(config, DatasetConfig)
    with pytest.raises(UsageError, match=r"--set data\.sources\[1\]\.data\.split=train"):
        config.build()
    inner = {"name": "mixture", "sources": [{"data": "sample"}]}
    with pytest.raises(UsageError, match=r"data\.sources\[0\] is a mixture"):
        part_config(
            "datasets", {"name": "mixture", "image_size": 8, "sources": [{"data": inner}]}
        ).build()
