"""Tar shards: samples, labels, hostile headers, and who may run a command."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rpiae import runs
from rpiae.cli import main
from rpiae.core.config.tree import dump_toml
from rpiae.core.errors import DataError, FetchError, RpiaeError, UsageError
from rpiae.core.model.contracts import StageSteps
from rpiae.core.model.resolve import part_config
from rpiae.data.listed import EveryImage

pytest.importorskip("webdataset")

from rpiae.data.members import Sample, Tally, key_and_ending
from rpiae.data.opening import MOST_SHARDS, shards_of
from rpiae.data.tar_index import Wanted, index_tar


def picture(grey: int = 0) -> bytes:
    """An encoded image of one grey."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 20, 3), grey, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: Sequence[tuple[str, bytes]], **options: Any) -> Path:
    """A shard of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def images_of(*names: str) -> list[tuple[str, bytes]]:
    return [(name, picture(number)) for number, name in enumerate(names)]


def config(path: Path | str, **fields: Any) -> Any:
    tree = {"name": "webdataset", "path": str(path), "image_size": 8, "workers": 0, "held_out": 1}
    return part_config("datasets", tree | fields)


def every(path: Path | str, **fields: Any) -> EveryImage:
    found = config(path, **fields).build().every_image()
    assert isinstance(found, EveryImage)
    return found


def names(images: EveryImage) -> list[str]:
    return [images.name(i).partition("/")[2] for i in range(len(images))]


def labels(images: EveryImage) -> list[int]:
    return [images[i].label for i in range(len(images))]


# --- samples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "ending"),
    [
        ("0001.jpg", "0001", "jpg"),
        ("a/0001.seg.png", "a/0001", "seg.png"),
        ("IMG.0001.jpg", "IMG.0001", "jpg"),
        ("IMG.0001.depth.png", "IMG.0001", "depth.png"),
        ("photo.2021-03-04.12.30.jpg", "photo.2021-03-04.12.30", "jpg"),
        ("v1.2.000123.jpg", "v1.2.000123", "jpg"),
        ("photo.v2.001.cls", "photo.v2.001", "cls"),
        ("a.b/0001.jpg", "a.b/0001", "jpg"),
        ("noending", "", ""),
        (".hidden.jpg", "", ""),
        ("a/._0001.jpg", "", ""),
        ("__meta__.json", "", ""),
    ],
)
def test_a_key_ends_at_the_first_dot_that_no_number_follows(
    name: str, key: str, ending: str
) -> None:
    assert key_and_ending(name) == (key, ending)


@given(st.text("ab.01/_", min_size=1, max_size=12))
def test_key_and_ending_are_the_name(name: str) -> None:
    key, ending = key_and_ending(name)
    assert not key or f"{key}.{ending}" == name


def test_dotted_names_are_images_of_their_own(tmp_path: Path) -> None:
    given = [f"{name}.{i:04}.png" for name in ("IMG", "DSC") for i in range(5)]
    images = every(write(tmp_path / "a.tar", images_of(*given)))
    assert names(images) == given
    assert images.notices == ()


@pytest.mark.parametrize(
    ("members", "taken"),
    [
        (("0.depth.png", "0.jpg"), "0.jpg"),
        (("0.png", "0.jpg"), "0.jpg"),
        (("0.mask.png", "0.image.png"), "0.image.png"),
        (("0.seg0.png", "0.rgb.webp"), "0.rgb.webp"),
        (("0.thumb.jpg", "0.full.png"), "0.full.png"),
        (("0.input.png", "0.target.png"), "0.input.png"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_one_image_of_a_sample_is_taken_and_the_others_are_told(
    members: tuple[str, ...], taken: str, streamed: bool, tmp_path: Path
) -> None:
    content = [(n.replace("0", str(i), 1), picture(50 * k)) for i in range(4)
               for k, n in enumerate(members)]  # fmt: skip
    path = write(tmp_path / "a.tar", content)
    if not streamed:
        images = every(path)
        assert names(images) == [taken.replace("0", str(i), 1) for i in range(4)]
        (told,) = images.notices
        assert "4 samples hold several images" in told
        assert "4 images are left out" in told
    else:
        packed = tmp_path / "a.tar.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        stream = config(packed, streaming=True, num_images=4).build()
        batches = list(
            stream.batches(StageSteps(seed=0, stage="s", batch_size=3, start=0, steps=3))
        )
        shown = {round(float(image.double().mean())) for batch in batches for image in batch.inputs}
        assert shown == {50 * members.index(taken)}
        (told,) = [text for batch in batches for text in batch.notices]
        assert "samples hold several images" in told
    assert taken.removeprefix("0.") in told
    assert "set data.member" in told


def test_a_member_can_be_chosen_or_all(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", images_of("0.a.png", "0.b.png", "1.a.png", "1.b.png"))
    chosen = every(path, member="b.png")
    assert names(chosen) == ["0.b.png", "1.b.png"]
    assert chosen.notices == ()
    assert names(every(path, member="*")) == ["0.a.png", "0.b.png", "1.a.png", "1.b.png"]
    with pytest.raises(DataError, match=r"Its members end in .*a\.png.*; set data\.member"):
        every(path, member="jpg")


def test_images_of_different_kinds_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", images_of("0.jpg", "1.jpg", "2.depth.png"))
    (told,) = every(path).notices
    assert "images of different kinds are taken: plain (2), depth (1)" in told


def test_members_that_are_no_files_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, kind in enumerate(
            (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE,
             tarfile.FIFOTYPE, tarfile.DIRTYPE)
        ):  # fmt: skip
            member = tarfile.TarInfo(f"{number}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            content = picture() if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    images = every(tmp_path / "a.tar")
    assert names(images) == ["0.png", "1.png"]
    (told,) = images.notices
    assert "links (2)" in told
    assert "devices and FIFOs (2)" in told


def test_hidden_images_are_counted(tmp_path: Path) -> None:
    hidden = images_of(".a.png", "d/._0.png", "__meta__.jpg", ".jpg")
    others = [("__meta__.json", b"{}"), ("d/.notes", b"x")]
    images = every(write(tmp_path / "a.tar", [*images_of("0.png", "1.png"), *hidden, *others]))
    assert names(images) == ["0.png", "1.png"]
    (told,) = images.notices
    assert told.endswith("left out images whose names begin with . or __ (4)")


def test_an_archive_behind_the_end_of_another_is_told(tmp_path: Path) -> None:
    first = write(tmp_path / "a.tar", images_of("0.png", "1.png")).read_bytes()
    (tmp_path / "a.tar").write_bytes(first + first)
    (told,) = every(tmp_path / "a.tar").notices
    assert "its archive ends at byte" in told
    assert "what follows is left out" in told


def test_names_are_printable_and_unique(tmp_path: Path) -> None:
    given = ["a\udcff.png", "a\\xff.png", "b\n.png", "b\n.png"]
    write(tmp_path / "x" / "0.tar", images_of(*given), format=tarfile.GNU_FORMAT)
    write(tmp_path / "y" / "0.tar", images_of(*given), format=tarfile.GNU_FORMAT)
    images = every(tmp_path)
    found = [images.name(i) for i in range(len(images))]
    assert len(set(found)) == len(found) == 8
    assert all(name.isprintable() and name.encode() for name in found)


@pytest.mark.parametrize("kind", ["FIFO", "folder"])
def test_a_shard_that_is_no_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    os.mkfifo(path) if kind == "FIFO" else path.mkdir()
    stream = config(f"{tmp_path}/{{a,a}}.tar.gz", streaming=True, num_images=4).build()
    with pytest.raises(DataError, match=r"it is a FIFO|Is a directory"):
        list(stream.batches(StageSteps(seed=0, stage="s", batch_size=3, start=0, steps=1)))


# --- labels -----------------------------------------------------------------------------------------


def labelled(
    tmp_path: Path, *values: bytes | None, ending: str = "cls", first: bool = False
) -> Path:
    content = []
    for number, value in enumerate(values):
        own = [(f"{number}.png", picture(number))]
        if value is not None:
            own.insert(0 if first else 1, (f"{number}.{ending}", value))
        content += own
    return write(tmp_path / "a.tar", content)


@pytest.mark.parametrize("first", [False, True])
def test_a_cls_member_is_the_label(first: bool, tmp_path: Path) -> None:
    images = every(labelled(tmp_path, b"2", b"0\n", None, b"11", first=first))
    assert labels(images) == [2, 0, -1, 11]
    assert any("1 of 4 images have no label" in text for text in images.notices)
    assert not every(write(tmp_path / "b.tar", images_of("0.png", "1.png"))).labelled


def test_text_is_classes(tmp_path: Path) -> None:
    path = labelled(tmp_path, b"dog", "élan".encode(), b"dog", ending="label.txt")
    images = every(path, label_column="label.txt")
    assert images.label_names == ("dog", "élan")
    assert labels(images) == [0, 1, 0]
    assert every(path, label_column="label.txt", classes=["élan", "dog"]).label_names[0] == "élan"


def test_a_field_of_json_is_the_label(tmp_path: Path) -> None:
    path = labelled(
        tmp_path, b'{"y": 3, "m": {"Name": "b"}}', b'{"m": {"Name": "a"}}', b"", ending="JSON"
    )
    images = every(path, label_column="json.y")
    assert labels(images) == [3, -1, -1]
    assert every(path, label_column=".json.m.Name").label_names == ("a", "b")


@pytest.mark.parametrize(
    ("values", "column", "reason"),
    [
        ((b"1", b"\xff"), "cls", r"the label of .*1\.png cannot be read"),
        ((b"1", b"x"), "cls", ""),
        ((b"{", b"{"), "json.y", "cannot be read"),
        ((b"[" * 100_000, b"1"), "json.y", "cannot be read"),
        ((b'{"y": [1]}', b"{}"), "json.y", "holds a list"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(
    values: tuple[bytes, ...], column: str, reason: str, tmp_path: Path
) -> None:
    path = labelled(tmp_path, *values, ending=column.partition(".")[0])
    if not reason:  # numbers and texts are all texts here
        assert every(path, label_column=column).label_names == ("1", "x")
        return
    with pytest.raises(DataError, match=reason):
        every(path, label_column=column)
    if column == "cls":
        images = every(path)
        assert not images.labelled
        assert "The images have no labels" in images.notices[0]


def test_a_member_of_labels_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = labelled(tmp_path, b"1", b"2")
    with pytest.raises(
        DataError, match=r"no members that end in 'txt'; they end in png, cls\. Set "
    ):
        every(path, label_column="txt")


# --- headers ----------------------------------------------------------------------------------------


def damaged(shard: bytes, header: int, field: slice, value: bytes) -> bytes:
    """A shard with another value in a field of a header, and the checksum that goes with it."""
    made = bytearray(shard)
    start = 512 * header
    made[start + field.start : start + field.start + len(value)] = value
    block = made[start : start + 512]
    total = sum(block[:148]) + sum(block[156:512]) + 8 * 32
    made[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(made)


SIZES = {
    "negative": struct.pack(">Bq", 0xFF, -512)[:1] + b"\xff" * 9 + struct.pack(">h", -512),
    "minus one": b"\xff" * 12,
    "text": b"-0000000512\0",
    "huge": b"\x80" + b"\x7f" * 11,
    "a terabyte": b"\x80\0\0\0\0\0\0\x01\0\0\0\0",
    "eight gigabytes": b"77777777777\0",
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_size_that_cannot_be_ends_the_shard(
    size: str, kind: int, streamed: bool, tmp_path: Path
) -> None:
    long = "x" * 120 if kind != tarfile.USTAR_FORMAT else "x"
    path = write(
        tmp_path / "a.tar", images_of("0.png", "1.png", f"{long}.png", "3.png"), format=kind
    )
    path.write_bytes(damaged(path.read_bytes(), 4, slice(124, 136), SIZES[size]))
    if not streamed:
        images = every(path)
        assert names(images) == ["0.png", "1.png"]
        assert "the 2 images before are used" in images.notices[0]
        return
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    stream = config(packed, streaming=True, num_images=4).build()
    batches = list(stream.batches(StageSteps(seed=0, stage="s", batch_size=3, start=0, steps=2)))
    assert any("its first 2 images are used" in text for b in batches for text in b.notices)


@pytest.mark.parametrize(
    "record",
    [
        {"size": "-512"}, {"size": "99999999999999999999"}, {"size": "nan"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"},
        {"GNU.sparse.map": "1,2,3"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"path": "a\0b.png"},
    ],
)  # fmt: skip
def test_extended_headers_are_not_believed(record: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(4):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(picture())
            member.pax_headers = record if number == 2 else {}
            archive.addfile(member, io.BytesIO(picture()))
    index = index_tar(tmp_path / "a.tar", Wanted("", "cls"))
    assert list(index.names)[:2] == ["0.png", "1.png"]


def test_a_chain_of_long_names_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", images_of("0.png", "1.png"))
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 10
    header = link.tobuf(tarfile.GNU_FORMAT) + b"x" * 10 + b"\0" * 502
    path.write_bytes(path.read_bytes()[:2048] + header * 5000)
    index = index_tar(path, Wanted("", "cls"))
    assert list(index.names) == ["0.png", "1.png"]
    assert "damaged header" in index.problem


BASE = [
    ("0.png", picture(0)),
    ("0.cls", b"1"),
    ("x" * 120 + ".png", picture(1)),
    ("2.png", picture(2)),
]


@given(data=st.data())
@settings(max_examples=80)
def test_any_damage_ends_in_a_notice_or_an_error_of_our_own(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    path = write(tmp_path_factory.mktemp("t") / "a.tar", BASE, format=kind)
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        header = data.draw(st.integers(0, len(content) // 512 - 1))
        start = data.draw(st.integers(0, 500))
        value = data.draw(st.binary(min_size=1, max_size=12))
        content = damaged(content, header, slice(start, None), value)[: len(content)]
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    before = time.process_time()
    try:
        images = every(path)
    except RpiaeError as error:
        said = str(error)
    else:
        said = "a.tar"
        assert all(images[i].failure or images[i].pixels is not None for i in range(len(images)))
    assert "a.tar" in said
    assert time.process_time() - before < 2


def test_tallies_add_up() -> None:
    parts = [Tally(), Tally()]
    for part, key in zip(parts, "ab", strict=True):
        sample = Sample(key, dict.fromkeys(("jpg", "png"), tarfile.TarInfo()))
        part.add(sample, sample.images(""), "")
    parts[0].merge(parts[1])
    assert (parts[0].several, parts[0].others, parts[0].kinds[""]) == (2, 2, 2)


# --- names of shards, and commands --------------------------------------------------------------------


def test_splits_of_shards_are_not_mixed(tmp_path: Path) -> None:
    for name in ("in-train-000", "in-train-001", "in-val-000"):
        write(tmp_path / "s" / f"{name}.tar", images_of(f"{name}a.png", f"{name}b.png"))
    for path in (tmp_path, tmp_path / "s"):
        with pytest.raises(UsageError, match=r"several splits: train \(2\), validation \(1\)"):
            every(path)
        assert len(every(path, split="train")) == 4
    braces = f"{tmp_path}/s/in-{{train,val}}-000.tar"
    (told,) = every(braces).notices
    assert len(every(braces)) == 4  # both are named
    assert "several splits, which are read together: train (1), validation (1)" in told
    assert not every(braces, split="*").notices
    assert not every(f"{tmp_path}/s/in-train-{{000..001}}.tar").notices
    assert len(every(braces, split="val")) == 2


def test_compressed_shards_beside_plain_ones_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", images_of("0.png", "1.png"))
    (tmp_path / "b.tar.gz").write_bytes(b"")
    (told,) = every(tmp_path).notices
    assert "left out 1 compressed shards" in told
    with pytest.raises(UsageError, match=r"b\.tar\.gz can only be read from its beginning"):
        every(tmp_path, split="*")


@pytest.mark.parametrize(
    "path",
    ["{0..99999999999}.tar", "{1..2000000}.tar", "{0..9999}{0..9999}.tar", "{-9..99999999}.tar"],
)
def test_braces_stand_for_a_bounded_number_of_shards(path: str) -> None:
    with pytest.raises(UsageError, match=f"more than {MOST_SHARDS} shards"):
        shards_of(path, "")


@pytest.mark.parametrize("path", ["{a", "{" * 5000 + "}" * 5000])
def test_unbalanced_braces_are_named(path: str) -> None:
    with pytest.raises(UsageError, match=r"data\.path = .*write braces as in|usable|more than"):
        config(path).build()


COMMANDS = (
    "pipe:touch {ran}",
    "PIPE:touch {ran}",
    "a.tar::pipe:touch {ran}",
    "{{a.tar,pipe:touch {ran}}}",
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("allowed", ["", "0", "no"])
def test_a_command_needs_leave(
    command: str, allowed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RPIAE_ALLOW_PIPE", allowed)
    ran = tmp_path / "ran"
    with pytest.raises(UsageError, match=r"runs a command.*RPIAE_ALLOW_PIPE=1"):
        config(command.format(ran=ran), streaming=True, num_images=9).build()
    assert not ran.exists()


def test_a_command_runs_with_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPIAE_ALLOW_PIPE", "1")
    shard = write(tmp_path / "a.tar", images_of("0.png", "1.png", "2.png"))
    stream = config(f"pipe:cat {shard}", streaming=True, num_images=3).build()
    assert (
        len(
            next(
                stream.batches(StageSteps(seed=0, stage="s", batch_size=2, start=0, steps=1))
            ).inputs
        )
        == 2
    )
    # What was allowed when it was built is asked again where it is opened.
    monkeypatch.delenv("RPIAE_ALLOW_PIPE")
    with pytest.raises(UsageError, match="runs a command"):
        next(stream.batches(StageSteps(seed=0, stage="s", batch_size=2, start=0, steps=1)))


@pytest.mark.parametrize("url", ["ssh:host/a.tar", "exec:ls", "s3://a/b.tar"])
def test_unknown_schemes_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="shards are files, or URLs that begin with"):
        config(url, streaming=True, num_images=9).build()


@pytest.mark.parametrize(
    "url", ["https://host/a.tar", "HTTP://host/a.tar", "hf://a/b.tar", "gs://a/b.tar"]
)
def test_offline_holds_for_shards(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchError, match="is on the network, and HF_HUB_OFFLINE is set"):
        config(url, streaming=True, num_images=9).build()


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    shard = write(tmp_path / "a b.tar", images_of("0.png", "1.png"))
    assert len(every(f"file://{str(shard).replace(' ', '%20')}")) == 2


def test_a_run_folder_of_somebody_else_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RPIAE_ALLOW_PIPE", raising=False)
    ran = tmp_path / "ran"
    tree = {
        "encoder": {"name": "tiny", "pretrained": False}, "bridge": "vb4", "decoder": "vit-t",
        "data": {"name": "webdataset", "path": f"pipe:touch {ran}", "streaming": True,
                 "num_images": 9, "image_size": 32},
    }  # fmt: skip
    (tmp_path / "config.toml").write_text(dump_toml(runs.resolve(tree).config))
    for arguments in (
        ["build", "--config", str(tmp_path / "config.toml"), "--dry-run"],
        ["build", "--resume", str(tmp_path)],
    ):
        assert main(arguments) == 2
        assert "RPIAE_ALLOW_PIPE=1" in " ".join(capsys.readouterr().err.split())
    assert not ran.exists()
