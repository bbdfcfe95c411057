"""Clips of videos: which frames they are of, in what order, and what cannot be used."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from attrs import evolve
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from rpiae import runs
from rpiae.core.config.parts import DatasetConfig
from rpiae.core.errors import DataError, RpiaeError, UsageError
from rpiae.core.model.contracts import Batch, StageSteps
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime.processes import Runtime
from rpiae.data.configs import VideosConfig
from rpiae.data.fingerprint import data_fingerprint
from rpiae.data.images import decode
from rpiae.data.video import clips
from rpiae.data.video.dataset import HELD_OUT_CLIPS, VideoDataset
from rpiae.data.video.listed import EveryClip
from rpiae.evaluation.images import ListedImages
from rpiae.evaluation.walk import Walk
from tests.videos import FULL, write

av = pytest.importorskip("av")

SIDE = 16
#: Grey levels between one frame and the next.
LEVEL = 2
EXACT: dict[str, Any] = {"pixels": "yuv444p", "colour_range": FULL}


def greys(count: int, *, first: int = 0, side: int = SIDE) -> NDArray[np.uint8]:
    """Frames that tell their number by their grey."""
    levels = (20 + LEVEL * (first + np.arange(count))).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, side, side + 4, 3)).copy()


def counted(path: Path, count: int, **options: Any) -> Path:
    """A video whose frames tell their numbers; a keyframe every twelve."""
    options = EXACT | {"options": {"crf": "0", "g": "12"}} | options
    return write(path, greys(count), **options)


def config(path: Path | str, **fields: Any) -> VideosConfig:
    tree = {"name": "videos", "path": str(path), "image_size": SIDE, "workers": 0, "frames": 5}
    found = part_config("datasets", tree | fields)
    assert isinstance(found, VideosConfig)
    return found


def built(path: Path | str, **fields: Any) -> VideoDataset:
    found = config(path, **fields).build()
    assert isinstance(found, VideoDataset)
    return found


def drawn(dataset: VideoDataset, *, batch_size: int = 4, **steps: Any) -> list[Batch]:
    return list(
        dataset.batches(
            StageSteps(**{"seed": 1, "stage": "one", "batch_size": batch_size, "start": 0, **steps})
        )
    )


def numbers(inputs: Tensor) -> list[list[int]]:
    """The frames of clips (b, 3, t, s, s) in bytes, by their numbers."""
    assert inputs.dtype == torch.uint8
    means = inputs.float().mean(dim=(1, 3, 4))
    return ((means - 20) / LEVEL).round().int().tolist()


def shown(batches: list[Batch]) -> list[list[int]]:
    return [clip for batch in batches for clip in numbers(batch.inputs)]


def said(batches: list[Batch]) -> list[str]:
    return [text for batch in batches for text in (*batch.skipped, *batch.notices)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Videos of 40 and of 25 frames."""
    made = tmp_path / "videos"
    made.mkdir()
    counted(made / "a.mp4", 40)
    counted(made / "b.mkv", 25)
    return made


def test_a_clip_is_of_consecutive_frames_and_an_epoch_of_all_the_time(folder: Path) -> None:
    dataset = built(folder, held_out=0.2)
    assert dataset.num_images == 32 // 5 + 20 // 5
    found = shown(drawn(dataset, batch_size=10, steps=40))
    assert all(clip == list(range(clip[0], clip[0] + 5)) for clip in found)
    starts = Counter(clip[0] for clip in found)
    assert set(starts) == set(range(32 - 5 + 1))
    for epoch in range(0, 400, 10):
        firsts = sorted(clip[0] for clip in found[epoch : epoch + 10])
        # Of every sixth of the long video and every quarter of the short one.
        assert firsts[-1] >= 28 * 5 // 6
        assert firsts[1] < 28 // 6 + 1


def test_strides_and_frame_rates(folder: Path) -> None:
    every = shown(drawn(built(folder, frames=4, stride=3), steps=6))
    assert all(clip == list(range(clip[0], clip[0] + 10, 3)) for clip in every)
    half = shown(drawn(built(folder, frames=4, frame_rate=12.5), steps=6))
    assert all(clip == list(range(clip[0], clip[0] + 7, 2)) for clip in half)
    twice = shown(drawn(built(folder, frames=5, frame_rate=50), steps=6))
    assert {clip[-1] - clip[0] for clip in twice} == {2}
    both = shown(drawn(built(folder, frames=3, stride=2, frame_rate=12.5), steps=6))
    assert all(clip == list(range(clip[0], clip[0] + 9, 4)) for clip in both)


def test_a_variable_frame_rate_is_read_by_time(tmp_path: Path) -> None:
    # Every frame is shown at its number × 10 ms, with gaps.
    times = [0, 1, 2, 3, 8, 9, 10, 20, 21, 22, 23, 24, 25, 26, 40, 41]
    frames = np.stack([greys(1, first=time)[0] for time in times])
    path = write(
        tmp_path / "v.mp4", frames, times=times, unit=Fraction(1, 100), rate=100,
        options={"crf": "0", "g": "4"}, **EXACT,
    )  # fmt: skip
    dataset = built(path, frames=3, stride=4, frame_rate=100, held_out=0.25)
    found = {tuple(clip) for clip in shown(drawn(dataset, steps=40))}

    def nearest(position: int) -> int:
        return min(times, key=lambda time: (abs(time - position), time))

    # Of 42 positions of 10 ms the last eleven are held out, and what is shown there is not trained on.
    possible = {
        tuple(min(nearest(start + step), 26) for step in (0, 4, 8)) for start in range(31 - 9 + 1)
    }
    assert found == possible


@pytest.mark.parametrize("kept", [True, False])
def test_resume_workers_and_processes(
    folder: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(clips, "KEPT", 0)
        monkeypatch.setattr(clips, "OPEN", 1)
    dataset = built(folder)
    dataset.held_out()  # leaves videos open, which no loading process reads on in
    whole = drawn(dataset, steps=8, image_share=0.4)
    assert {batch.inputs.ndim for batch in whole} == {4, 5}
    for again in (
        drawn(dataset, start=5, steps=8, image_share=0.4),
        drawn(built(folder, workers=2), start=5, steps=8, image_share=0.4),
    ):
        for one, other in zip(whole[5:], again, strict=True):
            assert torch.equal(one.inputs, other.inputs)
            assert one.samples == other.samples
    halves = [drawn(dataset, steps=8, image_share=0.4, rank=r, num_processes=2) for r in range(2)]
    for one, left, right in zip(whole, *halves, strict=True):
        assert torch.equal(one.inputs, torch.cat([left.inputs, right.inputs]))
    other = drawn(dataset, steps=8, seed=2, image_share=0.4)
    assert any(
        a.inputs.shape != b.inputs.shape or not torch.equal(a.inputs, b.inputs)
        for a, b in zip(whole, other, strict=True)
    )


def test_what_is_kept_in_memory_is_what_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = drawn(built(folder, resize=20), steps=5)
    monkeypatch.setattr(clips, "KEPT", 0)
    read = drawn(built(folder, resize=20), steps=5)
    for one, other in zip(kept, read, strict=True):
        assert (one.inputs.int() - other.inputs.int()).abs().max() <= 1


def test_nothing_held_out_is_trained_on(folder: Path) -> None:
    dataset = built(folder, held_out=0.25, frames=3, frame_rate=20)
    found = [*shown(drawn(dataset, steps=60)), *shown(drawn(dataset, steps=0))]
    single = [batch.inputs for batch in drawn(dataset, steps=60, image_share=1.0)]
    alone = [clip[0] for batch in single for clip in numbers(batch[:, :, None])]
    held_out = dataset.held_out()
    held = numbers((held_out.images * 255).round().byte())
    for name, frames in (("a", 40), ("b", 25)):
        part = [
            clip
            for clip, group in zip(held, held_out.groups, strict=True)
            if group.startswith(name)
        ]
        assert part
        assert min(map(min, part)) >= 0.75 * frames - 2
    assert max(map(max, found)) < min(
        min(clip) for clip, group in zip(held, held_out.groups, strict=True) if group[0] == "a"
    )
    assert max(alone) <= max(map(max, found))
    assert len(set(alone)) > 15
    assert torch.equal(dataset.held_out().images, held_out.images)
    assert dataset.crops(5, seed=0).shape == (5, 3, SIDE, SIDE)


def test_held_out_is_a_clip_at_least_and_some_clips_at_most(tmp_path: Path) -> None:
    counted(tmp_path / "a.mp4", 100)
    dataset = built(tmp_path, held_out=0.001)
    assert numbers((dataset.held_out().images * 255).round().byte()) == [[95, 96, 97, 98, 99]]
    [notice] = dataset.notices
    assert "the last 0.001 of no video holds a clip (5 frames)" in notice
    assert "the last clip of 1 of 1 videos is held out" in notice
    many = built(tmp_path, frames=2, held_out=0.5).held_out()
    assert len(many.images) == HELD_OUT_CLIPS
    assert many.images.shape[1:] == (3, 2, SIDE, SIDE)


def test_the_cut_does_not_depend_on_clips(tmp_path: Path) -> None:
    counted(tmp_path / "a.mp4", 100)
    for frames, stride in ((1, 1), (5, 1), (17, 1), (5, 4), (25, 1)):
        fields = {"frames": frames, "stride": stride, "held_out": 0.25}
        dataset = built(tmp_path, **fields)
        assert not dataset.notices
        [clip, *_] = shown(list(every(tmp_path, portion="held-out", **fields).batches([[0]])))
        assert clip[0] == 75
        assert max(map(max, shown(drawn(dataset, steps=20)))) < 75
    longer = built(tmp_path, frames=26, held_out=0.25)
    assert "the last clip of 1 of 1 videos is held out" in longer.notices[0]
    assert longer.held_out().groups == ("a.mp4@74",)


def test_videos_whose_share_holds_no_clip_are_not_measured_on(tmp_path: Path) -> None:
    for name, count in (("a", 40), ("b", 16), ("c", 6)):
        counted(tmp_path / f"{name}.mp4", count)
    dataset = built(tmp_path, held_out=0.25)
    [notice] = dataset.notices
    assert "of 2 of 3 videos no clip is held out" in notice
    assert {group.partition("@")[0] for group in dataset.held_out().groups} == {"a.mp4"}
    listed = every(tmp_path, portion="train", held_out=0.25)
    assert [listed.name(i) for i in range(len(listed))] == [
        *(f"a.mp4@{k}" for k in range(0, 30, 5)), "b.mp4@0", "b.mp4@5", "c.mp4@0",
    ]  # fmt: skip
    assert [part.positions for part in listed.parts] == [30, 12, 6]


def test_short_videos_are_held_out_as_a_whole(tmp_path: Path) -> None:
    for number in range(6):
        counted(tmp_path / f"{number}.mp4", 7)
    dataset = built(tmp_path, held_out=0.3)
    (notice,) = dataset.notices
    assert "no video has two clips (10 frames), so 2 of 6 videos are held out as a whole" in notice
    assert dataset.num_images == 4
    assert len(dataset.held_out().groups) == 2
    alone = built(tmp_path / "0.mp4")
    assert "has a single video: it is trained on and measured on" in alone.notices[0]
    assert alone.num_images == len(alone.held_out().groups) == 1


def test_all_frames_are_cropped_at_one_place_by_the_rule_of_images(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 30, 44, 3), dtype=np.uint8)
    still = np.repeat(frames[:1], 12, 0)
    write(tmp_path / "a.mp4", still, options={"crf": "0"})
    (batch,) = drawn(built(tmp_path, frames=6, resize=20), steps=1)
    assert batch.inputs.shape == (4, 3, 6, SIDE, SIDE)
    assert (batch.inputs == batch.inputs[:, :, :1]).all()
    assert not torch.equal(batch.inputs[0], batch.inputs[1])
    with pytest.raises(UsageError, match=r"data\.resize = 8 is smaller than the crop"):
        built(tmp_path, resize=8)


# Where videos come from


def frames_of(path: Path, count: int, *, ending: str = "png", first: int = 0) -> Path:
    path.mkdir(parents=True)
    for number, frame in enumerate(greys(count, first=first)):
        Image.fromarray(frame).save(path / f"{number:03}.{ending}")
    return path


def test_folders_of_frames(tmp_path: Path) -> None:
    frames_of(tmp_path / "one", 12)
    frames_of(tmp_path / "deep" / "two", 16)
    dataset = built(tmp_path, held_out=0.34)
    assert dataset.num_images == 1 + 2
    assert shown(drawn(built(tmp_path / "one"), steps=2))
    names = {dataset.every_image().name(i) for i in range(len(dataset.every_image()))}
    assert names == {"one@0", "one@5", "deep/two@0", "deep/two@5", "deep/two@10"}
    assert not dataset.notices


def test_videos_beside_images_and_folders_of_frames(tmp_path: Path) -> None:
    counted(tmp_path / "a.mp4", 20)
    Image.new("RGB", (20, 20)).save(tmp_path / "poster.jpg")
    frames_of(tmp_path / "frames", 12)
    (tmp_path / "notes.txt").write_text("seen")
    dataset = built(tmp_path, held_out=0.34)
    assert {dataset.every_image().name(i)[:3] for i in range(6)} == {"a.m", "fra"}
    left, taken = dataset.notices
    assert left.endswith("left out 1 images in folders of videos")
    assert "1 folders of images are taken for videos too, frame by frame, such as frames" in taken
    assert set(dataset.notices) <= set(said(drawn(dataset, steps=1)))


def shard(path: Path, *files: Path, extra: dict[str, bytes] | None = None) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in files:
            archive.add(file, arcname=file.name)
        for name, content in (extra or {}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_tar_shards_and_parquet_columns_give_the_clips_of_the_files(
    folder: Path, tmp_path: Path
) -> None:
    files = sorted(folder.iterdir())
    tars, tables = tmp_path / "tars", tmp_path / "tables"
    tars.mkdir()
    tables.mkdir()
    for number, file in enumerate(files):
        shard(tars / f"{number}.tar", file, extra={f"{file.stem}.json": b"{}"})
    cells = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"video": pa.array(cells, type=kind)}), tables / "x.parquet")
    whole = drawn(built(folder), steps=4)
    for path in (tars, tables, f"{tars}/{{0..1}}.tar"):
        if "{" in str(path):
            pytest.importorskip("webdataset")
        found = drawn(built(path, workers=0), steps=4)
        for one, other in zip(whole, found, strict=True):
            assert torch.equal(one.inputs, other.inputs)
    assert {built(tars).every_image().name(i) for i in (0, 8)} == {"0.tar/a.mp4@0", "1.tar/b.mkv@0"}
    assert built(tables).every_image().name(0) == "x.parquet#0@0"
    assert built(tars / "0.tar").num_images == 7
    assert built(tables / "x.parquet", column="video").num_images == built(folder).num_images


def test_what_shards_and_columns_lack_is_named(folder: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    shard(tars / "0.tar", extra={"a.txt": b"", "b.jpg": b"no video"})
    with pytest.raises(DataError, match=r"has no usable video.*no member of which is a video"):
        built(tars)
    with pytest.raises(DataError, match=r"Its members end in txt, jpg; set data\.member"):
        built(tars)
    pq.write_table(pa.table({"clip": [b""], "n": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"no column 'video'.*Set data\.column.*holds the videos"):
        built(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'n' holds int64; videos are binary.*the videos \(clip\)"):
        built(tmp_path / "x.parquet", column="n")
    (tmp_path / "packed").mkdir()
    shutil.copy(tars / "0.tar", tmp_path / "packed" / "0.tar.gz")
    with pytest.raises(UsageError, match=r"0\.tar\.gz is compressed.*unpack it into a plain \.tar"):
        built(tmp_path / "packed")


def test_splits_of_videos(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        counted(tmp_path / split / "a.mp4", 12)
    with pytest.raises(UsageError, match=r"has several splits: test .1., train .1."):
        built(tmp_path)
    assert built(tmp_path, split="train").every_image().name(0) == "train/a.mp4@0"


def test_the_fingerprint_follows_the_videos(tmp_path: Path) -> None:
    frames_of(tmp_path / "one", 12)
    counted(tmp_path / "a.mp4", 12)

    def fingerprint(**fields: Any) -> str:
        data_fingerprint.cache_clear()
        return data_fingerprint(config(tmp_path, **fields))

    first = fingerprint()
    assert fingerprint(workers=3) == first != fingerprint(stride=2)
    Image.new("RGB", (20, 16)).save(tmp_path / "one" / "003.png")
    assert (second := fingerprint()) != first
    counted(tmp_path / "a.mp4", 13)
    assert fingerprint() not in (first, second)


# What cannot be used


def test_what_cannot_be_used_is_left_out_and_told_once(folder: Path) -> None:
    counted(folder / "c.mp4", 4)
    (folder / "d.mp4").write_bytes(b"no video at all")
    whole = (folder / "a.mp4").read_bytes()
    (folder / "e.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(folder / "f.mp4"), "w") as file:
        sound = file.add_stream("aac", rate=16000)
        sound.layout = "mono"
        heard = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        heard.sample_rate = 16000
        file.mux(sound.encode(heard))
        file.mux(sound.encode())
    write(folder / "g.mp4", greys(20, side=8))
    (folder / "h.webm").touch()
    dataset = built(folder, held_out=0.25)
    texts = said(drawn(dataset, steps=12))
    for name, why in (
        ("c.mp4", "4 frames are less than the 5 that a clip goes over"),
        ("d.mp4", "it is damaged, or no video of a known format"),
        ("e.mp4", "it is damaged, or no video"),
        ("f.mp4", "it has no video stream"),
        ("g.mp4", "12×8 pixels are less than the crop of 16×16"),
        ("h.webm", "the file is empty"),
    ):
        [text] = [text for text in texts if f"/{name}:" in text]
        assert why in text
        assert text.endswith("; it is left out")
    assert len(texts) == 6
    assert dataset.num_images == built(folder, held_out=0.25, split="[ab].m*").num_images


def test_a_video_that_ends_early_is_used_up_to_its_end(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    write(tmp_path / "a.mp4", noise, container={"movflags": "faststart"}, options={"g": "6"})
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    dataset = built(tmp_path)
    assert dataset.num_images == 54 // 5
    batches = drawn(dataset, steps=20)
    assert len({batch.inputs.shape for batch in batches}) == 1
    [text] = said(batches)
    assert "a.mp4: it is damaged, and its last frame is at" in text
    assert text.endswith("what comes before is used")
    with pytest.raises(DataError, match=r"held out: none of 1 videos.*its last frame is at"):
        dataset.held_out()
    counted(tmp_path / "b.mp4", 60)
    assert [group[0] for group in built(tmp_path, resize=16).held_out().groups] == ["b"]


def test_a_video_that_ends_early_is_told_once(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    write(tmp_path / "a.mp4", noise, container={"movflags": "faststart"}, options={"g": "6"})
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: len(content) // 2])
    listed = ListedImages(every(tmp_path), {})
    walk = Walk(listed, batch_size=4, runtime=Runtime(device="cpu", precision="fp32"))
    for _ in walk.batches("images", lambda _: None):
        pass
    protocol = walk.protocol()
    [text] = walk.skipped
    assert "a.mp4: it is damaged, and its last frame is at" in text
    assert protocol["skipped"] == 12 - protocol["count"] > 1


def test_the_end_of_an_mpeg_program_stream_is_in_clips(tmp_path: Path) -> None:
    write(tmp_path / "a.mpg", greys(50), codec="mpeg2video", pixels="yuv420p")
    assert len(every(tmp_path)) == 10


def test_sizes_that_change_midway(tmp_path: Path) -> None:
    frames_of(tmp_path / "bad", 40)
    for number in range(20, 40):
        Image.new("RGB", (40, 40)).save(tmp_path / "bad" / f"{number:03}.png")
    frames_of(tmp_path / "good", 20)
    batches = drawn(built(tmp_path, held_out=0.25), steps=10)
    assert len(batches) == 10
    [text] = said(batches)
    assert "bad: its frames" in text
    assert "40×40" in text
    with pytest.raises(DataError, match=r"none of 1 videos in .*bad can be used.*40×40"):
        drawn(built(tmp_path / "bad", frames=30), steps=1)


def test_no_video_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no such file or folder; set data\.path"):
        built(tmp_path / "gone")
    with pytest.raises(UsageError, match="name a video, or a folder of videos: videos:PATH"):
        built("")
    with pytest.raises(DataError, match="has no videos: no file in it or below it ends in"):
        built(tmp_path)
    Image.new("RGB", (20, 20)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png is an image: name a video file, a folder"):
        built(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"none of 1 videos .*5 frames; the longest has 1\. Lower"):
        built(tmp_path)
    for number in range(3):
        counted(tmp_path / f"{number}.mp4", 7 + number)
        (tmp_path / f"{number}.avi").write_bytes(b"none")
    with pytest.raises(
        DataError,
        match=r"none of 3 videos .* goes over 13 frames; the longest has 9\. Lower data\.frames, "
        r"data\.stride\. 3 more cannot be used, such as .*0\.avi",
    ):
        built(tmp_path, stride=3)
    with pytest.raises(
        DataError,
        match=r"none of 6 videos .* can be used: 3 cannot be read, such as .*0\.avi.*; 3 are smaller "
        r"than the crop of 32×32 pixels, the largest of 20×16\. Set data\.image_size to 16",
    ):
        built(tmp_path, image_size=32)
    assert built(tmp_path, image_size=32, resize=32).num_images == 2


def test_processes_that_look_at_videos_say_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "VIDEOS_PER_WORKER", 1)
    counted(tmp_path / "a.mp4", 20)
    write(tmp_path / "b.mp4", greys(20, side=8))
    (tmp_path / "c.mp4").write_bytes(b"none")
    frames_of(tmp_path / "d", 20)
    (tmp_path / "d" / "010.png").unlink()
    alone, shared = (built(tmp_path, held_out=0.25, workers=number) for number in (0, 2))
    assert alone.notices == shared.notices
    _, small, damaged, gap = alone.notices
    assert "b.mp4: 12×8 pixels are less" in small
    assert "c.mp4: it is damaged" in damaged
    assert gap.endswith("d: numbers are missing: 10")
    assert built(tmp_path / "d").every_image().name(0) == "d@0"


def test_a_video_of_one_frame(tmp_path: Path) -> None:
    counted(tmp_path / "a.mp4", 1)
    counted(tmp_path / "b.mp4", 3)
    dataset = built(tmp_path, frames=1)
    assert shown(drawn(dataset, steps=1))
    assert drawn(dataset, steps=1)[0].inputs.shape == (4, 3, 1, SIDE, SIDE)


def test_many_that_cannot_be_used_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rpiae.data.video.dataset.NAMED", 2)
    counted(tmp_path / "a.mp4", 20)
    for number in range(5):
        (tmp_path / f"{number}.mp4").write_bytes(b"none")
    *named, rest = built(tmp_path, held_out=0.25).notices
    assert len(named) == 2
    assert rest == f"3 more videos in {tmp_path} are left out"


def test_no_mixture_of_videos(folder: Path) -> None:
    tree = {
        "name": "mixture", "image_size": SIDE,
        "sources": [{"data": {"name": "videos", "path": str(folder), "image_size": SIDE}}],
    }  # fmt: skip
    mixed = part_config("datasets", tree)
    assert isinstance(mixed, DatasetConfig)
    with pytest.raises(RpiaeError, match=r"data\.sources\[0\] is of videos, which cannot be mixed"):
        mixed.build()


# All clips


def every(path: Path, **fields: Any) -> EveryClip:
    return built(path, **fields).every_image()


def test_every_clip_once_in_order(folder: Path) -> None:
    listed = every(folder, held_out=0.25)
    assert len(listed) == 8 + 5
    assert (listed.frames, listed.image_size, listed.labelled) == (5, SIDE, False)
    assert (
        listed.rule
        == f"clips of 5 frames, short side above 24 shrunk to it, centre crop {SIDE}×{SIDE}"
    )
    batches = list(listed.batches([range(4), range(4, 8), range(8, 13)]))
    assert [sample for batch in batches for sample in batch.samples] == list(range(13))
    found = shown(batches)
    assert found == [list(range(k, k + 5)) for k in (*range(0, 40, 5), *range(0, 25, 5))]
    assert [listed.video(i) for i in range(13)] == [0] * 8 + [1] * 5
    assert [listed.start(i) for i in (0, 7, 8, 12)] == [0, 35, 0, 20]
    assert listed.name(9) == "b.mkv@5"
    assert batches[0].labels is not None
    assert batches[0].labels.tolist() == [-1] * 4
    assert not listed.notices
    assert listed.cropped("centre") is listed
    assert "ADM" in listed.cropped("adm").rule
    assert len(every(folder, workers=2)) == 13


def test_portions_of_videos(folder: Path) -> None:
    train, held = (every(folder, portion=p, held_out=0.25) for p in ("train", "held-out"))
    assert shown(list(train.batches([range(len(train))]))) == [
        list(range(k, k + 5)) for k in (0, 5, 10, 15, 20, 25, 0, 5, 10)
    ]
    assert shown(list(held.batches([range(len(held))]))) == [
        list(range(k, k + 5)) for k in (30, 35, 18)
    ]
    [rest] = held.notices
    assert rest.endswith("2 of 17 frames, at the ends of videos, fill no clip")


def test_clips_that_cannot_be_used_are_told_one_by_one(folder: Path) -> None:
    frames_of(folder / "c", 20)
    (folder / "c" / "012.png").write_bytes(b"none")
    listed = every(folder)
    (batch,) = listed.batches([range(len(listed))])
    assert len(batch.samples) == 8 + 5 + 3
    [text] = batch.skipped
    assert text.startswith("c@10: ")
    (only,) = every(folder / "c", portion="held-out", held_out=0.5).batches([[0]])
    assert only.inputs.shape == (0, 3, 5, SIDE, SIDE)


def test_clips_are_cropped_as_images_are(folder: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    frames_of(tmp_path / "frames", 5)
    for number in range(5):
        Image.fromarray(picture).save(tmp_path / "frames" / f"{number:03}.png")
    images = part_config(
        "datasets",
        {
            "name": "folder", "path": str(tmp_path / "frames"), "image_size": SIDE, "resize": 20,
            "workers": 0,
        },
    ).build()  # fmt: skip
    assert np.array_equal(decode(tmp_path / "frames" / "000.png"), picture)
    (batch,) = images.every_image().batches([[0]])
    (clip,) = every(tmp_path / "frames", resize=20).batches([[0]])
    assert torch.equal(clip.inputs[0, :, 3], batch.inputs[0])


def test_real_videos(shared: Path) -> None:
    dataset = built(shared / "data" / "video", frames=17, image_size=32)
    assert dataset.num_images == 12
    [notice] = dataset.notices
    assert "the last 0.1 of no video holds a clip (17 frames)" in notice
    for frames in (17, 33):
        apart = built(shared / "data" / "video", frames=frames, image_size=32, held_out=0.3)
        assert not apart.notices
        names = set(apart.held_out().groups)
        assert {"bigbuckbunny.mp4@92", "carphone_pristine.mp4@84"} <= names
    (batch,) = drawn(dataset, steps=1)
    assert batch.inputs.shape == (4, 3, 17, 32, 32)
    assert dataset.held_out().groups == ("bigbuckbunny.mp4@115", "carphone_pristine.mp4@103")
    assert evolve(config("x"), frames=9).frames == 9


# Runs


@pytest.mark.parametrize(
    ("bridge", "frames", "latent", "filled"),
    [("tvb4x4", 4, (4, 2, 2, 2), 5), ("tvb4x4", 5, (4, 2, 2, 2), 0), ("vb4", 4, (4, 4, 2, 2), 0)],
)
def test_a_plan_tells_clips_and_with_how_many_frames_they_are_filled(
    folder: Path, bridge: str, frames: int, latent: tuple[int, ...], filled: int
) -> None:
    encoder = {"name": "vit", "width": 32, "depth": 2, "num_heads": 2, "patch": 8}
    tree = {
        "encoder": encoder | {"pretrained": False}, "bridge": bridge, "recipe": "quick",
        "decoder": {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 64},
        "data": {"name": "videos", "path": str(folder), "image_size": SIDE, "frames": frames},
    }  # fmt: skip
    plan = runs.plan(runs.resolve(tree))
    assert (plan.frames, plan.latent) == (frames, latent)
    assert plan.compression == 3 * frames * SIDE**2 / np.prod(latent)
    assert plan.num_images == built(folder, frames=frames).num_images
    notices = [text for text in plan.notices if "data.frames" in text]
    told = [f"data.frames = {frames}: every clip is filled to {filled} with its last frame"]
    assert notices == (told if filled else [])


def test_a_folder_of_videos_is_told_by_its_files(folder: Path) -> None:
    with pytest.raises(UsageError, match=f"videos:{folder}"):
        part_config("datasets", str(folder))
