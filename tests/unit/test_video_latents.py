"""Latents of whole videos: streamed to disk, gone on with, read in windows, and decoded again."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from rpiae.core.errors import CheckpointError, DataError, RunError, UsageError
from rpiae.core.model.build import build
from rpiae.core.model.contracts import StageSteps
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.core.runtime.processes import Runtime
from rpiae.data.images import Pixels
from rpiae.data.video.contracts import Frame, Video, VideoFacts
from rpiae.latents import LatentDataset
from rpiae.latents.decoding import read_tensor
from rpiae.latents.layout import Settings, tree_digest
from rpiae.latents.video import writing
from rpiae.latents.video.decoding import decode_videos
from rpiae.latents.video.encoding import measure_videos
from rpiae.latents.video.files import LatentFile
from rpiae.latents.video.layout import STEPS_PER_DIGEST
from rpiae.latents.video.source import WholeVideos
from rpiae.latents.video.writing import encode_videos
from rpiae.latents.writing import Finished, Notice, Skipped
from tests.toys import BRIDGES, DECODERS, ENCODERS

RUNTIME = Runtime(device="cpu", precision="fp32")

#: (frames, height, width) of the videos of most tests: more than one block of digests, one frame
#: alone, and a size that is no multiple of the patch.
SIZES = ((70, 32, 32), (1, 32, 32), (6, 20, 33))


class MadeVideo(Video):
    """Frames in memory; ``broken_at`` is one that cannot be decoded, and ``late_from`` the first that
    is shown a second late."""

    def __init__(
        self,
        name: str,
        frames: Pixels,
        broken_at: int | None,
        problem: str,
        late_from: int | None = None,
    ) -> None:
        self.name = name
        self._late_from = late_from
        self._frames, self._broken_at, self._told = frames, broken_at, problem
        self.facts = VideoFacts(
            frames=None, height=frames.shape[1], width=frames.shape[2],
            rate=Fraction(30000, 1001), seconds=None, audio=False,
        )  # fmt: skip

    def frames(self, start: float = 0.0) -> Iterator[Frame]:
        for number, pixels in enumerate(self._frames):
            if number == self._broken_at:
                raise DataError(f"{self.name}: its frames change their size")
            late = self._late_from is not None and number >= self._late_from
            yield Frame(pixels, number / float(self.facts.rate) + late)
        self.problem = self._told

    def close(self) -> None:
        pass


class MadeVideos:
    """A source of videos in memory."""

    location = "made"
    problems: tuple[str, ...] = ()

    def __init__(self, videos: Sequence[Pixels], names: Sequence[str] = ()) -> None:
        self.videos = list(videos)
        self.names = list(names) or [f"a/{i}.mp4" for i in range(len(videos))]
        self.broken: dict[int, int] = {}
        self.damaged: dict[int, str] = {}
        self.pauses: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, index: int) -> str:
        return self.names[index]

    path = name

    def open(self, index: int) -> Video:
        if not len(self.videos[index]):
            raise DataError(f"{self.names[index]}: it has no video stream")
        return MadeVideo(
            self.names[index], self.videos[index], self.broken.get(index),
            self.damaged.get(index, ""), self.pauses.get(index),
        )  # fmt: skip


def made(*sizes: tuple[int, int, int]) -> MadeVideos:
    draw = np.random.default_rng(0)
    return MadeVideos([draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])


def clip_of(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(3, 0, 1, 2).unsqueeze(0).float() / 255


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("toy") / "tokenizer")


def saved(folder: Path, bridge: str = "tvb4x4", seed: int = 0) -> Path:
    decoder = DECODERS["video-vit" if bridge.startswith("tvb") else "vit"]
    model = build(
        encoder=ENCODERS["vit"], bridge=BRIDGES.get(bridge, bridge), decoder=decoder, seed=seed
    )
    # An untrained bridge's log-variance is nearly constant, and its temporal layers do nothing.
    draw = torch.Generator().manual_seed(seed)
    for values in model.bridge.parameters():  # type: ignore[attr-defined]  # parts are modules
        values.data += 0.05 * torch.randn(values.shape, generator=draw)
    model.trained_size = 32
    return save_tokenizer(model, folder)


def encode(
    tokenizer: Path,
    source: MadeVideos,
    out: Path,
    *,
    rank: int = 0,
    processes: int = 1,
    batch_size: int | None = None,
    resize: int | None = None,
    tile: int | None = None,
    **settings: Any,
) -> list[writing.VideoEvent]:
    runtime = Runtime(device="cpu", precision="fp32")
    runtime.rank, runtime.num_processes = rank, processes
    return list(
        encode_videos(
            load_tokenizer(tokenizer), WholeVideos(source, resize=resize), out,
            data={"name": "sample"}, tokenizer=tokenizer, settings=Settings(**settings),
            runtime=runtime, batch_size=batch_size, tile=tile,
        )
    )  # fmt: skip


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict


def kinds(happened: list[writing.VideoEvent], kind: type) -> list[Any]:
    return [event for event in happened if isinstance(event, kind)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("video-*.safetensors"))


# --- what is stored ----------------------------------------------------------------------------


def test_whole_videos_of_any_length_and_size(toy: Path, tmp_path: Path) -> None:
    source = made(*SIZES)
    (finished,) = kinds(encode(toy, source, tmp_path / "out", batch_size=7), Finished)
    model, index = load_tokenizer(toy), finished.index
    dataset = LatentDataset(tmp_path / "out")
    assert len(dataset) == index["count"] == 3
    values = []
    for i, (frames, height, width) in enumerate(SIZES):
        with torch.no_grad():
            expected = model.encode(clip_of(source.videos[i])).mode()[0]
        latent, label = dataset[i]
        torch.testing.assert_close(latent, expected, atol=1e-5, rtol=0)
        assert label == -1
        assert dataset.name(i) == f"a/{i}.mp4"
        row = index["videos"][i]
        assert (row["frames"], row["height"], row["width"]) == (frames, height, width)
        assert row["latent_shape"] == list(expected.shape)
        assert row["rate"] == "30000/1001"
        values.append(expected.double().flatten(1))
    every = torch.cat(values, dim=1)
    assert index["statistics"]["count"] == every.shape[1]
    torch.testing.assert_close(dataset.mean.flatten().double(), every.mean(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        dataset.std.flatten().double(), every.std(1, correction=0), atol=0, rtol=1e-5
    )
    assert dataset.latent_shape == (4, 0, 0, 0)
    unit = dataset.normalised(dataset[0][0])
    torch.testing.assert_close(dataset.denormalised(unit), dataset[0][0])


def test_an_image_tokenizer_encodes_frame_by_frame(tmp_path: Path) -> None:
    toy = saved(tmp_path / "toy", bridge="vb4")
    source = made((5, 32, 32))
    encode(toy, source, tmp_path / "out")
    model = load_tokenizer(toy)
    with torch.no_grad():
        frames = model.encode(clip_of(source.videos[0])[0].transpose(0, 1)).mode()
    latent, _ = LatentDataset(tmp_path / "out")[0]
    assert latent.shape == (4, 5, 8, 8)
    torch.testing.assert_close(latent, frames.transpose(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("posterior", ["mode", "sample", "moments"])
def test_chunks_change_nothing(toy: Path, tmp_path: Path, posterior: str) -> None:
    """What is drawn depends on the seed, the video and the step alone."""
    source = made(*SIZES)
    settings: dict[str, Any] = {"posterior": posterior, "flip": True, "seed": 3}
    encode(toy, source, tmp_path / "one", batch_size=70, **settings)
    encode(toy, source, tmp_path / "two", batch_size=3, **settings)
    for left, right in zip(files(tmp_path / "one"), files(tmp_path / "two"), strict=True):
        found, again = tensors(left), tensors(right)
        assert set(found) == set(again) == set(Settings(**settings).tensors)
        for name in found:
            torch.testing.assert_close(found[name], again[name], atol=1e-5, rtol=0)
    mirrored = [clip_of(video).flip(-1) for video in source.videos]
    if posterior == "sample":
        encode(toy, source, tmp_path / "other", **settings | {"seed": 4})
        assert not torch.allclose(
            tensors(files(tmp_path / "other")[1])["latent"],
            tensors(files(tmp_path / "one")[1])["latent"],
        )
    elif posterior == "mode":
        with torch.no_grad():
            expected = load_tokenizer(toy).encode(mirrored[0]).mode()[0]
        found = tensors(files(tmp_path / "one")[0])
        torch.testing.assert_close(found["latent_flipped"], expected, atol=1e-5, rtol=0)


def test_every_step_of_every_video_has_a_draw_of_its_own(toy: Path, tmp_path: Path) -> None:
    still = np.full((33, 32, 32, 3), 128, dtype=np.uint8)
    source = MadeVideos([still, still])
    encode(toy, source, tmp_path / "sample", posterior="sample")
    encode(toy, source, tmp_path / "mode")
    drawn, modes = LatentDataset(tmp_path / "sample"), LatentDataset(tmp_path / "mode")
    noise = torch.cat([drawn[i][0] - modes[i][0] for i in range(2)], dim=1)
    steps = noise.transpose(0, 1).flatten(1)
    assert len({tuple(step) for step in steps.tolist()}) == len(steps) == 18
    correlation = torch.corrcoef(steps)
    assert (correlation - torch.eye(18)).abs().max() < 0.4


def test_processes_divide_the_videos_and_change_no_byte(toy: Path, tmp_path: Path) -> None:
    source = made(*SIZES)
    encode(toy, source, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for path in files(tmp_path / "two")[::2]:
        path.unlink()
    happened = encode(toy, source, tmp_path / "two", processes=2)
    assert kinds(happened, writing.VideosStarted)[0].kept == 0
    assert kinds(happened, writing.VideosProgressed)[-1].done == 3
    for path in (*files(tmp_path / "one"), tmp_path / "one" / "index.json"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_stored_types(toy: Path, tmp_path: Path, dtype: str, kind: torch.dtype) -> None:
    source = made((18, 32, 32))
    encode(toy, source, tmp_path / "exact")
    encode(toy, source, tmp_path / "out", dtype=dtype, batch_size=5)
    (path,) = files(tmp_path / "out")
    found = tensors(path)["latent"]
    assert found.dtype == kind
    exact = tensors(files(tmp_path / "exact")[0])["latent"]
    torch.testing.assert_close(found.float(), exact.to(kind).float(), atol=1e-2, rtol=1e-2)
    assert LatentDataset(tmp_path / "out")[0][0].dtype == torch.float32
    dataset = LatentDataset(tmp_path / "out")
    assert dataset.stored(0).dtype == kind
    torch.testing.assert_close(
        dataset.mean.flatten(), found.float().mean((1, 2, 3)), atol=1e-6, rtol=1e-5
    )


def test_frames_are_resized_by_their_short_side(toy: Path, tmp_path: Path) -> None:
    source = made((3, 40, 64))
    (finished,) = kinds(encode(toy, source, tmp_path / "out", resize=20), Finished)
    (row,) = finished.index["videos"]
    assert (row["height"], row["width"]) == (20, 32)
    frames = [
        Image.fromarray(f).resize((32, 20), Image.Resampling.BICUBIC) for f in source.videos[0]
    ]
    with torch.no_grad():
        expected = load_tokenizer(toy).encode(clip_of(np.stack([np.asarray(f) for f in frames])))
    latent, _ = LatentDataset(tmp_path / "out")[0]
    torch.testing.assert_close(latent, expected.mode()[0], atol=1e-5, rtol=0)


def test_tiles_are_part_of_what_latents_are(toy: Path, tmp_path: Path) -> None:
    source = made((6, 48, 64))
    encode(toy, source, tmp_path / "out", tile=32)
    model = load_tokenizer(toy)
    with model.stream(tile=32) as stream:
        parts = [stream.encode(clip_of(source.videos[0])).mode(), stream.finish().mode()]
    latent, _ = LatentDataset(tmp_path / "out")[0]
    torch.testing.assert_close(latent, torch.cat(parts, dim=2)[0], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="tile is 32 there and 0 here"):
        encode(toy, source, tmp_path / "out")


def test_measured_statistics_are_those_of_the_latents(toy: Path, tmp_path: Path) -> None:
    source = made(*SIZES)
    source.broken[2] = 1
    encode(toy, source, tmp_path / "out")
    told: list[Any] = []
    found = measure_videos(
        load_tokenizer(toy), WholeVideos(source), runtime=RUNTIME, settings=Settings(),
        progress=told.append, batch_size=5,
    )  # fmt: skip
    statistics = LatentDataset(tmp_path / "out").index["statistics"]
    assert found.count == statistics["count"]
    np.testing.assert_allclose(found.mean, statistics["mean"], atol=1e-6)
    np.testing.assert_allclose(found.std, statistics["std"], rtol=1e-5)
    assert [event.done for event in told] == [1, 2, 3]
    assert "change their size" in told[-1].skipped[0]
    some = measure_videos(
        load_tokenizer(toy), WholeVideos(made((3, 32, 32), (3, 32, 32))), runtime=RUNTIME,
        settings=Settings(), num_videos=1,
    )  # fmt: skip
    assert some.count == 2 * 64


# --- going on ----------------------------------------------------------------------------------


def test_an_interrupted_call_keeps_complete_videos(toy: Path, tmp_path: Path) -> None:
    source = made((6, 32, 32), (40, 32, 32), (6, 32, 32))
    encode(toy, source, tmp_path / "whole", batch_size=4)
    happened = encode_videos(
        load_tokenizer(toy), WholeVideos(source), tmp_path / "out", data={"name": "sample"},
        tokenizer=toy, settings=Settings(), runtime=RUNTIME, batch_size=4,
    )  # fmt: skip
    for event in happened:
        if isinstance(event, writing.VideosProgressed) and event.frames > 20:
            break
    with pytest.raises(UsageError, match="another rpiae encode is at work"):
        encode(toy, source, tmp_path / "out")
    happened.close()  # type: ignore[attr-defined]  # a generator
    assert [path.name[:11] for path in files(tmp_path / "out")] == ["video-00000"]
    assert not list((tmp_path / "out").glob(".*.part"))
    with pytest.raises(CheckpointError, match="1 of 3 videos are there"):
        LatentDataset(tmp_path / "out")
    kept = files(tmp_path / "out")[0].stat().st_mtime_ns
    rest = encode(toy, source, tmp_path / "out", batch_size=4)
    assert kinds(rest, writing.VideosStarted)[0].kept == 1
    assert files(tmp_path / "out")[0].stat().st_mtime_ns == kept
    for path in (*files(tmp_path / "whole"), tmp_path / "whole" / "index.json"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_what_a_killed_process_left_is_removed(toy: Path, tmp_path: Path) -> None:
    source = made((6, 32, 32))
    encode(toy, source, tmp_path / "out")
    (path,) = files(tmp_path / "out")
    content = path.read_bytes()
    path.unlink()
    left = [path.with_name(f".{path.name}{end}") for end in (".part", ".steps.part")]
    for each in left:
        each.write_bytes(content[:50])
    encode(toy, source, tmp_path / "out")
    assert path.read_bytes() == content
    assert not any(each.exists() for each in left)


@pytest.mark.parametrize("damage", ["cut", "emptied", "a value", "another video"])
def test_damaged_files_are_written_anew(toy: Path, tmp_path: Path, damage: str) -> None:
    source = made((40, 32, 32), (40, 32, 32))
    out = tmp_path / "out"
    encode(toy, source, out)
    path, other = files(out)
    content = bytearray(path.read_bytes())
    if damage == "a value":
        content[-3] ^= 1
        path.write_bytes(content)
        content[-3] ^= 1
    elif damage == "another video":
        shutil.copy(other, path)
    else:
        path.write_bytes(content[:-10] if damage == "cut" else b"")
    with pytest.raises(CheckpointError, match=r"00000-of-00002.*rpiae encode again"):
        LatentDataset(out).verify()
    (notice,) = kinds(encode(toy, source, out), Notice)
    assert "written anew" in notice.text
    assert path.read_bytes() == content


def test_other_settings_tokenizers_and_contents_are_refused(toy: Path, tmp_path: Path) -> None:
    source, out = made((6, 32, 32)), tmp_path / "out"
    encode(toy, source, out)
    for changes, wanted in (
        ({"dtype": "bf16"}, 'dtype is "fp32" there and "bf16" here'),
        ({"resize": 16}, "scale is"),
        ({"posterior": "moments"}, "posterior is"),
    ):
        with pytest.raises(UsageError, match=wanted):
            encode(toy, source, out, **changes)
    with pytest.raises(UsageError, match="tokenizer is"):
        encode(saved(tmp_path / "other", seed=1), source, out)
    with pytest.raises(UsageError, match="num_videos is 1 there and 2 here"):
        encode(toy, made((6, 32, 32), (6, 32, 32)), out)
    assert kinds(encode(toy, source, out, shard_size=7), writing.VideosStarted)[0].kept == 1


def test_renamed_videos_are_encoded_anew(toy: Path, tmp_path: Path) -> None:
    source = made((6, 32, 32))
    encode(toy, source, tmp_path / "out")
    source.names = ["b.mp4"]
    (notice,) = kinds(encode(toy, source, tmp_path / "out"), Notice)
    assert "has a/0.mp4 where the dataset now has b.mp4" in notice.text
    assert LatentDataset(tmp_path / "out").name(0) == "b.mp4"


# --- videos that cannot be used ------------------------------------------------------------------


def test_unusable_videos_are_skipped_and_listed(toy: Path, tmp_path: Path) -> None:
    source = made((6, 32, 32), (0, 32, 32), (40, 32, 32), (9, 32, 32))
    source.broken[2] = 30
    source.damaged[3] = "a/3.mp4: its end is damaged, 2 frames are missing"
    happened = encode(toy, source, tmp_path / "out", batch_size=4)
    assert [event.reason for event in kinds(happened, Skipped)] == [
        "a/1.mp4: it has no video stream", "a/2.mp4: its frames change their size",
    ]  # fmt: skip
    (notice,) = kinds(happened, Notice)
    assert notice.text == f"{source.damaged[3]}; it is encoded as far as it goes"
    index = kinds(happened, Finished)[0].index
    assert [(row["position"], row["name"]) for row in index["skipped"]] == [
        (1, "a/1.mp4"), (2, "a/2.mp4"),
    ]  # fmt: skip
    assert [row["problem"] for row in index["videos"]] == ["", source.damaged[3]]
    dataset = LatentDataset(tmp_path / "out")
    assert [dataset.name(i) for i in range(len(dataset))] == ["a/0.mp4", "a/3.mp4"]
    assert kinds(encode(toy, source, tmp_path / "out"), writing.VideosStarted)[0].kept == 4
    assert not list((tmp_path / "out").glob(".*.part"))


def test_a_rate_that_varies_is_said_and_recorded(toy: Path, tmp_path: Path) -> None:
    source = made((9, 32, 32), (9, 32, 32), (9, 32, 32))
    source.pauses = {1: 6, 2: 6}
    source.damaged[2] = "a/2.mp4: its end is damaged"
    happened = encode(toy, source, tmp_path / "out", batch_size=4)
    varies = "the frame rate varies; every frame is kept, at 29.97 frames/s, up to 1 s from when"
    said = [event.text for event in kinds(happened, Notice)]
    assert len(said) == 3
    assert said[0].startswith(f"a/1.mp4: {varies}")
    assert said[2].startswith(f"a/2.mp4: {varies}")
    first, second, third = kinds(happened, Finished)[0].index["videos"]
    assert first["problem"] == ""
    assert second["problem"].startswith(varies)
    assert third["problem"].startswith(f"{source.damaged[2]}; {varies}")


def test_frames_too_large_for_one_pass_are_refused_first(toy: Path, tmp_path: Path) -> None:
    source = made((6, 32, 32), (0, 32, 32), (2, 300, 400))
    wanted = r"a/2.mp4 is 300×400 pixels, 7,500 tokens in one pass.*Add --tile"
    with pytest.raises(UsageError, match=wanted):
        encode(toy, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    videos = WholeVideos(source)
    with pytest.raises(UsageError, match=wanted):
        measure_videos(load_tokenizer(toy), videos, runtime=RUNTIME, settings=Settings())
    happened = encode(toy, source, tmp_path / "out", resize=32)
    assert [row["height"] for row in kinds(happened, Finished)[0].index["videos"]] == [32, 32]
    assert len(kinds(encode(toy, made((2, 300, 400)), tmp_path / "tiles", tile=64), Finished)) == 1


def test_frames_far_larger_than_the_training_crops_are_said(toy: Path, tmp_path: Path) -> None:
    source = made((2, 32, 68), (2, 32, 32))
    (notice,) = kinds(encode(toy, source, tmp_path / "out"), Notice)
    assert "trained on 32×32 crops; in one pass, 32×68 has positions it never saw" in notice.text
    assert not kinds(encode(toy, source, tmp_path / "tiles", tile=32), Notice)


def test_no_usable_video(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 2 videos of made can be used"):
        encode(toy, made((0, 32, 32), (0, 32, 32)), tmp_path / "out")
    with pytest.raises(DataError, match="none of 1 videos of made can be used"):
        measure_videos(
            load_tokenizer(toy), WholeVideos(made((0, 8, 8))), runtime=RUNTIME, settings=Settings()
        )


def test_encoders_that_look_ahead_take_clips_alone(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tokenizer(toy)
    model.encoder.patch = (2, 4, 4)
    monkeypatch.setattr(f"{__name__}.load_tokenizer", lambda _: model)
    with pytest.raises(UsageError, match=r"takes 2 frames per token.*with --clips"):
        encode(toy, made((6, 32, 32)), tmp_path / "out")


def test_moments_need_a_gaussian(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain", bridge="identity")
    with pytest.raises(UsageError, match="has no Gaussian posterior"):
        encode(plain, made((2, 32, 32)), tmp_path / "out", posterior="moments")


def test_latents_that_are_not_finite(tmp_path: Path) -> None:
    model = load_tokenizer(saved(tmp_path / "toy", bridge="vb4"))
    torch.nn.init.constant_(model.roles["bridge"].encoder.moments.bias, 1e5)  # type: ignore[union-attr,arg-type]  # vb4
    large = save_tokenizer(model, tmp_path / "large")
    with pytest.raises(RunError, match=r"a/0.mp4 is not finite as float16.*--dtype fp32"):
        encode(large, made((2, 32, 32)), tmp_path / "out", dtype="fp16")
    assert not list((tmp_path / "out").glob(".*.part"))


def test_a_full_disk_keeps_complete_videos(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LatentFile._write_tensors

    def full(self: LatentFile, file: Any, **where: int) -> None:
        if "00001" in file.name:
            raise OSError(28, "No space left on device")
        real(self, file, **where)

    monkeypatch.setattr(LatentFile, "_write_tensors", full)
    with pytest.raises(RunError, match=r"No space left.*stay"):
        encode(toy, made((6, 32, 32), (6, 32, 32)), tmp_path / "out")
    assert len(files(tmp_path / "out")) == 1
    assert not list((tmp_path / "out").glob(".*.part"))


# --- reading -----------------------------------------------------------------------------------


def test_windows(toy: Path, tmp_path: Path) -> None:
    source = made((70, 32, 32), (1, 32, 32), (21, 32, 32), (21, 48, 32))
    encode(toy, source, tmp_path / "out")
    whole = LatentDataset(tmp_path / "out")
    steps = [whole[i][0].shape[1] for i in range(4)]
    assert steps == [19, 1, 6, 6]

    first = LatentDataset(tmp_path / "out", frames=6)
    assert [first.name(i) for i in range(len(first))] == ["a/0.mp4", "a/2.mp4", "a/3.mp4"]
    for i, video in enumerate((0, 2, 3)):
        assert torch.equal(first[i][0], whole[video][0][:, :6])
    with pytest.raises(IndexError):
        first[3]

    some = LatentDataset(tmp_path / "out", frames=5, starts="anywhere", size=(8, 8))
    assert len(some) == 15 + 2
    assert some.latent_shape == (4, 5, 8, 8)
    assert some.windows is not None
    for i in (0, 7, 14, 15, 16, -1):
        video, start = some.windows.window(i)
        assert torch.equal(some[i][0], whole[video.position][0][:, start : start + 5])
    assert [some.windows.window(i)[1] for i in (14, 15, 16)] == [14, 0, 1]
    batches = list(
        LatentDataset(
            tmp_path / "out", frames=5, starts="anywhere", size=(8, 8), workers=1
        ).batches(StageSteps(seed=1, stage="s", batch_size=4, start=0, steps=4))
    )
    assert batches[0].inputs.shape == (4, 4, 5, 8, 8)
    seen = torch.cat([batch.inputs for batch in batches]).flatten(1)
    assert len({tuple(row) for row in seen.tolist()}) == 16
    latents, labels = next(iter(DataLoader(some, batch_size=17, num_workers=1)))
    assert latents.shape == (17, 4, 5, 8, 8)
    assert labels.tolist() == [-1] * 17
    assert some.normalised(latents).shape == latents.shape
    for dataset in (whole, first):
        with pytest.raises(UsageError, match="differ in size"):
            next(dataset.batches(StageSteps(seed=1, stage="s", batch_size=2, start=0, steps=1)))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"frames": 99}, "no video in .* has 99 latent steps: the longest has 19 steps"),
        ({"size": (9, 9)}, r"has latents of 9×9: .* the sizes are 8×8 \(2\), 5×9 \(1\)"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"frames": 2, "starts": "middle"}, "no start of windows named 'middle'"),
        ({"starts": "anywhere"}, "need frames"),
        ({"flip": True}, "encode with --flip"),
    ],
)
def test_windows_that_are_not_there(
    toy: Path, tmp_path: Path, options: dict[str, Any], wanted: str
) -> None:
    encode(toy, made(*SIZES), tmp_path / "out")
    with pytest.raises(UsageError, match=wanted):
        LatentDataset(tmp_path / "out", **options)


def test_moments_and_mirrored_videos_are_drawn_when_read(toy: Path, tmp_path: Path) -> None:
    encode(toy, made((17, 32, 32)), tmp_path / "out", posterior="moments", flip=True)
    (path,) = files(tmp_path / "out")
    found = tensors(path)
    exact = LatentDataset(tmp_path / "out", sample=False, frames=2)
    assert torch.equal(exact[0][0], found["mean"][:, :2])
    torch.manual_seed(0)
    plain = LatentDataset(tmp_path / "out", frames=2)
    draws = torch.stack([plain[0][0] for _ in range(1000)])
    torch.testing.assert_close(draws.std(0), (0.5 * found["logvar"][:, :2]).exp(), rtol=0.2, atol=0)
    both = LatentDataset(tmp_path / "out", sample=False, flip=True)
    mirrored = [torch.equal(both[0][0], found["mean_flipped"]) for _ in range(40)]
    assert 5 < sum(mirrored) < 35
    torch.testing.assert_close(
        both.mean.flatten(),
        torch.cat([found["mean"], found["mean_flipped"]], dim=1).mean((1, 2, 3)),
        atol=1e-6, rtol=0,
    )  # fmt: skip


def test_a_window_is_read_and_checked_without_the_rest(toy: Path, tmp_path: Path) -> None:
    encode(toy, made((4 * 40 + 1, 16, 16)), tmp_path / "out")
    (path,) = files(tmp_path / "out")
    intact = LatentDataset(tmp_path / "out")[0][0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the last step of the last channel
    path.write_bytes(content)
    dataset = LatentDataset(tmp_path / "out", frames=5, starts="anywhere")
    for start in (0, STEPS_PER_DIGEST - 2, 2 * STEPS_PER_DIGEST - 5, 0):
        assert torch.equal(dataset[start][0], intact[:, start : start + 5])
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3][0], intact[:, 3:8])
    with pytest.raises(
        CheckpointError, match="its latent is not what was written, in steps from 32"
    ):
        dataset[2 * STEPS_PER_DIGEST - 4]


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_byte_is_found(toy: Path, tmp_path: Path, seed: int) -> None:
    encode(toy, made((6, 16, 16), (6, 16, 16)), tmp_path / "out")
    before = [LatentDataset(tmp_path / "out")[i][0] for i in range(2)]
    draw = np.random.default_rng(seed)
    path = [*files(tmp_path / "out"), tmp_path / "out" / "index.json"][seed % 3]
    content = bytearray(path.read_bytes())
    content[int(draw.integers(len(content)))] ^= 1 << int(draw.integers(8))
    path.write_bytes(content)
    try:
        dataset = LatentDataset(tmp_path / "out")
        after = [dataset[i][0] for i in range(2)]
    except CheckpointError:
        return
    # Only what says nothing, such as the kind of a space, may change unnoticed.
    for latent, other in zip(before, after, strict=True):
        assert torch.equal(latent, other)


def forged(out: Path, change: Any) -> None:
    """Change the index as somebody would who also knows how to digest it."""
    tree = json.loads((out / "index.json").read_text())
    change(tree)
    tree["sha256"] = tree_digest(tree)
    (out / "index.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda t: t["videos"][0].update(file="../x"), "video 0 is"),
        (lambda t: t["videos"][0].update(frames=99), "cannot be"),
        (lambda t: t["videos"][0].update(rate="1/0"), "cannot be"),
        (lambda t: t["videos"][0].update(rate="fast"), "cannot be"),
        (lambda t: t["videos"][0].update(rate="1e30000000"), "cannot be"),
        (lambda t: t["videos"][0].update(latent_shape=[4, 0, 8, 8]), "must be at least 1"),
        (lambda t: t["videos"].pop(), "counts contradict"),
        (lambda t: t.update(num_videos=10**18), "counts contradict"),
        (lambda t: t.update(statistics=None), "counts contradict"),
        (lambda t: t.update(contents="films"), "no such field"),
        (lambda t: t.pop("scale"), "scale"),
        (lambda t: t.update(format=3), "not of format 3"),
    ],
)
def test_a_forged_index(toy: Path, tmp_path: Path, change: Any, wanted: str) -> None:
    encode(toy, made((6, 32, 32), (6, 32, 32)), tmp_path / "out")
    forged(tmp_path / "out", change)
    with pytest.raises(CheckpointError, match=wanted):
        LatentDataset(tmp_path / "out")


def test_an_index_of_forged_sizes_reads_no_other_file(toy: Path, tmp_path: Path) -> None:
    encode(toy, made((6, 32, 32)), tmp_path / "out")
    forged(tmp_path / "out", lambda t: t["videos"][0].update(latent_shape=[4, 3, 99, 8]))
    dataset = LatentDataset(tmp_path / "out")
    with pytest.raises(CheckpointError, match="not those that its index says"):
        dataset[0]


@pytest.mark.parametrize("number", [0, 1])
def test_the_code_in_the_docs_works(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    encode(toy, made((21, 32, 32), (33, 32, 32), (17, 32, 32)), tmp_path / "latents")
    page = (Path(__file__).parents[2] / "docs" / "latents.md").read_text(encoding="utf-8")
    code = page.partition("### Read them")[2].split("```python\n")[number + 1].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {"found": []}
    depth = len(code.rstrip().splitlines()[-1]) - len(code.rstrip().splitlines()[-1].lstrip())
    value = "latent" if number == 0 else "x[None]"
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        exec(code.rstrip() + f"\n{' ' * depth}found.append({value})\n", seen)
    found = torch.cat(seen["found"])
    dataset = LatentDataset("latents", frames=5, sample=False)
    expected = torch.stack([dataset[i][0] for i in range(3)])
    if number == 0:  # shuffled
        expected = dataset.normalised(expected)
        found, expected = (values.flatten(1).sort(dim=0).values for values in (found, expected))
    torch.testing.assert_close(found, expected)


ODD: tuple[Any, ...] = (None, -1, 10**30, "x", [None], {})


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a JSON tree, tables and lists included."""
    if path:
        yield path
    inside = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in inside:
        yield from leaves(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    tree = json.loads(json.dumps(tree))
    place = tree
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return tree


def read_or_refused(folder: Path) -> None:
    try:
        dataset = LatentDataset(folder)
        dataset[0], dataset.name(0), dataset.frame_rate(0)
    except (CheckpointError, UsageError):
        pass


def test_whatever_an_index_or_a_header_says_is_read_or_refused(toy: Path, tmp_path: Path) -> None:
    """By somebody who knows how to digest it."""
    out = tmp_path / "out"
    source = made((6, 16, 16), (5, 16, 16))
    encode(toy, source, out)
    index = json.loads((out / "index.json").read_text())
    for path in leaves(index):
        for odd in ODD:
            forged(out, lambda tree: (tree.clear(), tree.update(replaced(index, path, odd))))  # noqa: B023  # called at once
            read_or_refused(out)
    (out / "index.json").write_text(json.dumps(index))
    file = files(out)[0]
    held = tensors(file)
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["rpiae"])
    for path in leaves(header):
        for odd in ODD:
            described = replaced(header, path, odd)
            described["sha256"] = tree_digest(described)
            save_file(held, file, metadata={"rpiae": json.dumps(described)})
            forged(out, lambda tree: tree["videos"][0].update(sha256=described["sha256"]))  # noqa: B023  # called at once
            read_or_refused(out)
        (out / "index.json").write_text(json.dumps(index))
        assert len(kinds(encode(toy, source, out), Finished)) == 1
        LatentDataset(out).verify()


# --- decoding ----------------------------------------------------------------------------------


def decode(tokenizer: Path, latents: Any, out: Path, **options: Any) -> list[str]:
    list(decode_videos(load_tokenizer(tokenizer), latents, out, runtime=RUNTIME, **options))
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def pictures(folder: Path) -> torch.Tensor:
    frames = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    return clip_of(np.stack(frames))


def test_frames_come_back_as_many_and_as_large(toy: Path, tmp_path: Path) -> None:
    source = made(*SIZES)
    encode(toy, source, tmp_path / "latents")
    names = decode(
        toy, LatentDataset(tmp_path / "latents"), tmp_path / "out", as_frames=True, batch_size=3
    )
    assert len(names) == sum(frames for frames, _, _ in SIZES)
    assert names[0] == "a/0/00000.png"
    model = load_tokenizer(toy)
    for i, video in enumerate(source.videos):
        with torch.no_grad():
            direct = model.reconstruct(clip_of(video))
        assert (pictures(tmp_path / "out" / "a" / str(i)) - direct).abs().max() <= 0.5 / 255 + 1e-4


def test_videos_are_written_as_recorded(toy: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    source = made((9, 32, 48), (1, 32, 32), (6, 20, 33))
    encode(toy, source, tmp_path / "latents", flip=True)
    names = decode(toy, LatentDataset(tmp_path / "latents"), tmp_path / "out")
    assert names == [f"a/{i}.mp4" for i in range(3)]
    for name, video in zip(names, source.videos, strict=True):
        with av.open(str(tmp_path / "out" / name)) as file:
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
            assert file.streams.video[0].average_rate == Fraction(30000, 1001) or len(frames) == 1
        assert np.stack(frames).shape == video.shape
    slow = decode(
        toy, LatentDataset(tmp_path / "latents"), tmp_path / "slow", rate=Fraction(10), limit=1
    )
    with av.open(str(tmp_path / "slow" / slow[0])) as file:
        assert file.streams.video[0].average_rate == 10


def test_generated_latents_become_videos(toy: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    latents = torch.randn(2, 4, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "a.npy", latents.numpy())
    assert torch.equal(read_tensor(tmp_path / "a.npy"), latents)
    assert decode(toy, latents, tmp_path / "out") == ["00000.mp4", "00001.mp4"]
    with av.open(str(tmp_path / "out" / "00001.mp4")) as file:
        shapes = [(frame.height, frame.width) for frame in file.decode(video=0)]
        assert shapes == [(32, 48)] * 9
        assert file.streams.video[0].average_rate == 25

    model = load_tokenizer(toy)
    with pytest.raises(UsageError, match="has no latent_norm: rpiae stats"):
        decode(toy, latents, tmp_path / "x", norm=model)
    model.register_buffer("latent_mean", torch.full((4,), 0.3))
    model.register_buffer("latent_std", torch.full((4,), 2.0))
    encode(toy, made((9, 32, 32)), tmp_path / "latents")
    dataset = LatentDataset(tmp_path / "latents")
    plain = tmp_path / "plain"
    decode(toy, latents, plain, as_frames=True)
    for i, norm in enumerate((model, dataset)):
        unit = model.normalise_latent(latents) if i == 0 else dataset.normalised(latents)
        out = tmp_path / f"unit{i}"
        list(decode_videos(model, unit, out, runtime=RUNTIME, norm=norm, as_frames=True))
        difference = pictures(out / "00001") - pictures(plain / "00001")
        assert difference.abs().max() <= 1.01 / 255


@pytest.mark.parametrize(
    ("latents", "options", "error", "wanted"),
    [
        (torch.zeros(1, 8, 3, 8, 8), {}, UsageError, "have 8 channels, this tokenizer's have 4"),
        (torch.full((1, 4, 3, 8, 8), float("nan")), {}, RunError, "latent 00000 is not finite"),
        (torch.zeros(0, 4, 3, 8, 8), {}, UsageError, "no latents to decode"),
        (torch.zeros(1, 4, 1, 300, 300), {}, UsageError, "in tiles with --tile"),
    ],
)
def test_latents_that_cannot_be_decoded(
    toy: Path, tmp_path: Path, latents: Any, options: Any, error: type[Exception], wanted: str
) -> None:
    with pytest.raises(error, match=wanted):
        decode(toy, latents, tmp_path / "out", as_frames=True, **options)


def test_videos_go_to_an_empty_folder(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not an empty folder"):
        decode(toy, torch.zeros(1, 4, 1, 8, 8), tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"


# --- memory ------------------------------------------------------------------------------------

_MEASURED = """
import json, resource, sys
from pathlib import Path
from rpiae.latents import LatentDataset
from rpiae.latents.video.decoding import decode_videos
from rpiae.core.model.folders import load_tokenizer
from tests.unit import test_video_latents as tests

tokenizer, out = Path(sys.argv[1]), Path(sys.argv[2])
for frames in (100, 600):
    source = tests.LoopedVideos(frames)
    tests.encode(tokenizer, source, out / f"{frames}", flip=True)
    encoded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    latents = LatentDataset(out / f"{frames}")
    made = list(decode_videos(
        load_tokenizer(tokenizer), latents, out / f"{frames}-made", runtime=tests.RUNTIME
    ))
    decoded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([frames, made[-1].frames, encoded, decoded]))
"""


class LoopedVideos(MadeVideos):
    """One video of 64 px that shows eight frames again and again, none of which is kept."""

    def __init__(self, frames: int) -> None:
        super().__init__(made((8, 64, 64)).videos)
        self._number = frames

    def open(self, index: int) -> Video:
        looped = MadeVideo(self.names[index], self.videos[index], None, "")
        shown = [self.videos[index][i % 8] for i in range(self._number)]  # of the same memory
        looped._frames = shown  # type: ignore[assignment]  # frames in order
        return looped


def test_memory_does_not_grow_with_length(toy: Path, tmp_path: Path) -> None:
    """As floats alone, 500 more frames of 64 px would take 25 MB."""
    pytest.importorskip("av")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(toy), str(tmp_path)], cwd=root, check=True,
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    (short, _, *before), (long, shown, *after) = map(json.loads, done.stdout.splitlines())
    assert (short, long, shown) == (100, 600, 600)
    grown = [(b - a) / 1024 for a, b in zip(before, after, strict=True)]  # ru_maxrss is in KiB
    assert max(grown) < 18, f"MiB more: {grown}"
