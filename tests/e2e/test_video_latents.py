"""``rpiae encode``, ``decode`` and ``stats`` of videos as a user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from rpiae.cli import main
from rpiae.core.errors import CheckpointError
from rpiae.core.model.build import build
from rpiae.core.model.folders import load_tokenizer, save_tokenizer
from rpiae.data.video.writing import VideoWriter
from rpiae.latents import LatentDataset
from rpiae.latents.layout import tree_digest
from tests.toys import BRIDGES, DECODERS, ENCODERS

av = pytest.importorskip("av")

RATE = Fraction(30000, 1001)


def write_video(path: Path, frames: int, height: int = 32, width: int = 48) -> None:
    """Squares that move over a gradient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    with VideoWriter(path, rate=RATE, height=height, width=width) as writer:
        for number in range(frames):
            pixels = np.stack([y * 4, x * 4, np.full_like(x, 90)], axis=-1).astype(np.uint8)
            pixels[4:12, number % width : number % width + 8] = 250
            writer.write(pixels[None])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a run's tokenizer, and three videos, one of them damaged."""
    monkeypatch.chdir(tmp_path)
    model = build(encoder=ENCODERS["vit"], bridge=BRIDGES["tvb4x4"], decoder=DECODERS["video-vit"])
    model.trained_size = 32
    save_tokenizer(model, tmp_path / "run" / "tokenizer")
    write_video(tmp_path / "films" / "one.mp4", 23)
    write_video(tmp_path / "films" / "more" / "two.mkv", 6, 40, 40)
    (tmp_path / "films" / "three.mp4").write_bytes(b"no video")
    return tmp_path


def done(*arguments: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main([*arguments, "--device", "cpu"]) == code
    found = capsys.readouterr()
    assert "Traceback" not in found.err
    return found.out, found.err


def frames_of(path: Path) -> tuple[int, tuple[int, int], Fraction]:
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        return len(frames), (frames[0].height, frames[0].width), file.streams.video[0].average_rate


def test_from_videos_to_latents_and_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode = ("encode", "run", "videos:films", "--out", "latents", "--workers", "0")
    out, err = done(*encode, "--shard-size", "5", "--batch-size", "4", capsys=capsys)
    assert "latents: latents of 2 videos, 29 frames, 1 skipped" in out
    assert "skipped: films/three.mp4: it is damaged, or no video" in err
    assert (
        "3 whole videos of films (natural size) → latent of 4 channels, a step per 4 frames" in err
    )
    assert "--shard-size has no effect" in err
    assert "frames/s" in err
    dataset = LatentDataset("latents")
    assert [dataset.name(i) for i in range(2)] == ["more/two.mkv", "one.mp4"]
    assert [tuple(latent.shape) for latent, _ in dataset] == [(4, 3, 10, 10), (4, 7, 8, 12)]

    _, err = done(*encode, capsys=capsys)
    assert "files: 3, 3 of them complete already" in err
    _, err = done(*encode, "--flip", capsys=capsys, code=2)
    assert "flip is false there and true here" in err
    assert err.count("rpiae: ") == 1
    _, err = done(*encode, "--clips", "--set", "data.frames=5", capsys=capsys, code=2)
    assert "holds latents of videos, and these are of clips" in err

    out, err = done("decode", "latents", "--out", "clips", capsys=capsys)
    assert "clips: 2 videos, 29 frames" in out
    assert "decode 29/29" in err
    assert frames_of(Path("clips/one.mp4")) == (23, (32, 48), RATE)
    assert frames_of(Path("clips/more/two.mp4")) == (6, (40, 40), RATE)
    out, _ = done("decode", "latents", "--out", "png", "--frames", "--limit", "1", capsys=capsys)
    assert "png: 1 folders of frames, 6 frames" in out
    assert sorted(p.name for p in Path("png/more/two").iterdir()) == [
        f"{i:05}.png" for i in range(6)
    ]

    direct, _ = done(
        "stats", "run", "videos:films", "--workers", "0", "--dry-run", "--json", capsys=capsys
    )
    out, _ = done("stats", "run", "latents", "--json", capsys=capsys)
    report, measured = json.loads(out), json.loads(direct)
    assert report["mean"] == pytest.approx(measured["mean"])
    assert report["count"] == measured["count"] == 3 * 100 + 7 * 96
    model = load_tokenizer("run")
    assert model.latent_mean is not None
    assert model.latent_mean.tolist() == pytest.approx(report["mean"])
    whole = dataset[1][0][None]
    assert (model.normalise_latent(whole) - dataset.normalised(whole)).abs().max() < 1e-5
    assert (model.denormalise_latent(model.normalise_latent(whole)) - whole).abs().max() < 1e-5


def test_clips_as_training_takes_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = ("--clips", "--set", "data.frames=6", "--set", "data.stride=2", "--workers", "0")
    encode = ("encode", "run", "videos:films", "--out", "latents", *clips)
    out, err = done(*encode, "--shard-size", "1", "--flip", capsys=capsys)
    assert "latents: latents of 2 clips, shards: 2" in out
    assert "2 clips of films (clips of 6 frames" in err
    assert "without labels → latent, latent_flipped 4×3×8×8 in fp32" in err
    dataset = LatentDataset("latents", flip=True)
    assert dataset.latent_shape == (4, 3, 8, 8)
    assert [dataset.name(i) for i in range(2)] == ["one.mp4@0", "one.mp4@11"]
    assert dataset.frame_rate(0) == RATE / 2
    assert dataset.normalised(dataset[0][0]).shape == (4, 3, 8, 8)
    _, err = done(*encode, "--shard-size", "1", "--flip", capsys=capsys)
    assert "shards: 2, 2 of them complete already" in err
    out, _ = done("decode", "latents", "--out", "out", capsys=capsys)
    assert "out: 2 videos, 12 frames" in out
    assert frames_of(Path("out/one@11.mp4")) == (6, (32, 32), RATE / 2)
    direct, _ = done("stats", "run", "videos:films", *clips, "--dry-run", "--json", capsys=capsys)
    assert json.loads(direct)["count"] == 2 * 3 * 64

    index = json.loads(Path("latents/index.json").read_text())
    assert (index["format"], index["frames"]) == (4, 6)
    for changes, wanted in (
        ({"frames": 0}, "its latent_shape has 4 sides"),
        ({"latent_shape": [4, 8, 8]}, "its latent_shape has 3 sides"),
        ({"format": 3}, "not of format 3"),
    ):
        forged = {name: value for name, value in (index | changes).items() if name != "sha256"}
        text = json.dumps(forged | {"sha256": tree_digest(forged)})
        Path("latents/index.json").write_text(text)
        with pytest.raises(CheckpointError, match=wanted):
            LatentDataset("latents")


def test_tiles(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode = ("encode", "run", "videos:films/one.mp4", "--out", "latents", "--tile", "24")
    _, err = done(*encode, "--workers", "0", capsys=capsys)
    assert "1 whole videos of films/one.mp4 (natural size, in tiles of 24)" in err
    decode = ("decode", "latents", "--frames", "--out")
    for out, *more in (("default",), ("same", "--tile", "24"), ("whole", "--tile", "48")):
        done(*decode, out, *more, capsys=capsys)
    frames = {
        name: Path(name, "one", "00003.png").read_bytes() for name in ("default", "same", "whole")
    }
    assert frames["default"] == frames["same"] != frames["whole"]


def test_generated_latents_become_videos(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("made.npy", np.zeros((2, 4, 3, 8, 12), dtype=np.float32))
    out, _ = done(
        "decode", "made.npy", "--run", "run", "--out", "out", "--frame-rate", "30000/1001",
        capsys=capsys,
    )  # fmt: skip
    assert "out: 2 videos, 18 frames" in out
    assert frames_of(Path("out/00001.mp4")) == (9, (32, 48), RATE)


@pytest.mark.parametrize(
    ("arguments", "code", "wanted"),
    [
        ("encode run videos:nowhere --out x", 1, "there is no such file or folder"),
        ("encode run videos:films --out x --crop adm", 2, "leave --crop out, or add --clips"),
        ("encode run videos:films --out x --image-size 16", 2, "data.image_size say what clips"),
        (
            "encode run videos:films --out x --set data.portion='train'",
            2,
            "take clips with --clips",
        ),
        ("encode run videos:films --out x --clips --tile 32", 2, "--tile is for whole videos"),
        ("encode run videos:films/three.mp4 --out x", 1, "none of 1 videos"),
        ("encode run sample --out x --clips", 2, "--clips is for videos, such as videos:PATH"),
        ("encode run sample --out x --tile 32", 2, "--tile is for whole videos"),
        ("decode images.npy --run run --out x --frames", 2, "of images: leave out --frames"),
        ("decode clips.npy --run run --out x --frames --frame-rate 5", 2, "have no frame rate"),
        ("decode clips.npy --run run --out films", 2, "not an empty folder"),
        ("stats run videos:films/three.mp4", 1, "none of 1 videos"),
    ],
)
def test_bad_input_gives_one_clear_message(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: str, code: int, wanted: str
) -> None:
    np.save("images.npy", np.zeros((1, 4, 8, 8), dtype=np.float32))
    np.save("clips.npy", np.zeros((1, 4, 2, 8, 8), dtype=np.float32))
    _, err = done(*arguments.split(), capsys=capsys, code=code)
    assert wanted in err
    assert err.count("rpiae: ") == 1


def test_a_rate_that_nobody_can_write_out_is_refused_at_once(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("decode latents", "reconstruct run clip"):
        arguments = f"{verb} --out x --frame-rate 1e30000000".split()
        _, err = done(*arguments, capsys=capsys, code=2)
        assert "expected frames per second from 0.001 to 1000" in err


def begun(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rpiae", *arguments, "--device", "cpu"], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_encode_goes_on_with_the_next_video(here: Path) -> None:
    for number in range(6):
        write_video(here / "many" / f"{number}.mp4", 40)
    encode = ("encode", "run", "videos:many", "--workers", "0", "--batch-size", "2", "--out")
    out, err = begun(*encode, "whole", folder=here).communicate(timeout=300)
    assert "whole: latents of 6 videos, 240 frames" in out, err
    process = begun(*encode, "latents", folder=here)
    deadline = time.monotonic() + 200
    while len(list(Path("latents").glob("video-*"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    complete = {path: path.stat().st_mtime_ns for path in Path("latents").glob("video-*")}
    assert 2 <= len(complete) < 6
    out, err = begun(*encode, "latents", folder=here).communicate(timeout=300)
    assert f"{len(complete)} of them complete already" in err
    assert all(path.stat().st_mtime_ns == modified for path, modified in complete.items())
    names = sorted(path.name for path in Path("whole").iterdir() if path.name != ".lock")
    assert names == sorted(path.name for path in Path("latents").iterdir() if path.name != ".lock")
    for name in names:
        assert Path("whole", name).read_bytes() == Path("latents", name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_share_the_videos(here: Path) -> None:
    encode = ("encode", "run", "videos:films", "--workers", "0", "--out")
    for folder, *more in (("one",), ("two", "--processes", "2")):
        out, err = begun(*encode, folder, *more, folder=here).communicate(timeout=300)
        assert f"{folder}: latents of 2 videos, 29 frames, 1 skipped" in out, err
    for path in Path("one").iterdir():
        assert path.read_bytes() == Path("two", path.name).read_bytes()
