"""``rpiae reconstruct`` of clips, and the pictures of clips."""

from __future__ import annotations

import os
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rpiae
from rpiae.cli import main
from rpiae.core.errors import UsageError
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.data.video.contracts import Frame
from rpiae.data.video.files import open_video
from rpiae.data.video.writing import VideoWriter
from rpiae.evaluation.clip_pictures import MOST_SHOWN, SpaceTimeSlice, beside
from rpiae.evaluation.clip_reconstruction import reconstructed_frames
from rpiae.evaluation.pictures import GAP
from tests.videos import moving, write

pytest.importorskip("av")

ENCODER = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2}
BRIDGE = {"name": "variational", "latent_channels": 4, "decoder_layers": 1}
DECODER = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "mlp_hidden": 32}


def _tokenizer(kind: str) -> RPiAE:
    torch.manual_seed(0)
    bridge: dict[str, Any] = BRIDGE
    decoder: dict[str, Any] = DECODER
    if kind == "video":
        bridge = BRIDGE | {"name": "temporal-variational", "temporal_downsampling": 4, "depth": 1}
        decoder = {"name": "video", "image": DECODER}
    return rpiae.build(encoder=ENCODER, bridge=bridge, decoder=decoder, pretrained=False).eval()


@pytest.fixture(scope="module", params=["image", "video"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(kind: str) -> RPiAE:
    return _tokenizer(kind)


@pytest.fixture(scope="module")
def folder(tokenizer: RPiAE, kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tokenizer(tokenizer, tmp_path_factory.mktemp("run") / kind))


def _frames(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with open_video(path) as video:
        frames = np.stack([frame.pixels for frame in video.frames()])
        assert video.problem == ""
    return frames


@pytest.mark.parametrize("count", [1, 2, 5, 18, 67])
def test_as_many_frames_come_out_as_go_in(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    clip = write(tmp_path / "clip.mp4", moving(count, 32, 48))
    out = tmp_path / "out.mp4"
    assert main(["reconstruct", folder, str(clip), "--out", str(out)]) == 0
    said = capsys.readouterr()
    frames = f"{count} frame" + "s" * (count > 1)
    assert said.out.startswith(f"{out}: {frames} of 32×48, PSNR ")
    assert "sound" not in said.out
    assert _frames(out).shape == (count, 32, 48, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.mp4"]


def test_a_clip_goes_through_as_the_model_takes_it_whole(tokenizer: RPiAE, tmp_path: Path) -> None:
    originals = moving(70, 30, 44)
    frames = (Frame(pixels, number / 25) for number, pixels in enumerate(originals))
    pieces = list(reconstructed_frames(tokenizer, frames))
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate([original for original, _ in pieces]), originals)
    clip = torch.from_numpy(originals).permute(3, 0, 1, 2)[None].float() / 255
    with torch.no_grad():
        whole = (tokenizer.reconstruct(clip)[0] * 255).round().byte().permute(1, 2, 3, 0).numpy()
    made = np.concatenate([made for _, made in pieces])
    # A value on the edge between two bytes may fall to either side.
    assert np.abs(made.astype(int) - whole).max() <= 1
    assert (made != whole).mean() < 0.001


def test_psnr_is_over_all_frames(
    folder: str, tokenizer: RPiAE, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write(tmp_path / "clip.mp4", moving(9, 32, 48))
    assert main(["reconstruct", folder, str(clip), "--out", str(tmp_path / "out.mp4")]) == 0
    originals = torch.from_numpy(_frames(clip)).permute(3, 0, 1, 2)[None].float() / 255
    with torch.no_grad():
        made = (tokenizer.reconstruct(originals) * 255).round() / 255
    psnr = -10 * (made - originals).square().mean().log10().item()
    assert f"PSNR {psnr:.2f} dB" in capsys.readouterr().out


def test_side_by_side_slice_and_sound(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write(tmp_path / "clip.mp4", moving(50, 33, 47), pixels="yuv444p", sound=True)
    out, over_time = tmp_path / "out.mkv", tmp_path / "slice.png"
    arguments = ["--out", str(out), "--side-by-side", "--slice", str(over_time), "--tile"]
    assert main(["reconstruct", folder, str(clip), *arguments]) == 0
    said = capsys.readouterr().out
    assert "50 frames of 33×47, in tiles, PSNR " in said
    assert "dB, sound copied" in said
    assert f"{over_time}: the middle column over time" in said
    found, originals = _frames(out), _frames(clip)
    assert found.shape == (50, 33, 2 * 47 + GAP, 3)
    assert np.abs(found[:, :, :47].astype(int) - originals).mean() < 3
    with open_video(out) as video:
        assert video.facts.audio
    with Image.open(over_time) as picture:
        assert picture.size == (50, 2 * 33 + GAP)
        columns = np.asarray(picture)
    assert np.array_equal(columns[:33], originals[:, :, 23].transpose(1, 0, 2))


def test_a_part_of_a_clip(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "clip.mp4", moving(50, 32, 48), sound=True)
    out = tmp_path / "out.mp4"
    arguments = ["--out", str(out), "--start", "0.8", "--frames", "10", "--side-by-side"]
    assert main(["reconstruct", folder, str(clip), *arguments]) == 0
    assert "10 frames" in capsys.readouterr().out
    found = _frames(out)[:, :, :48].astype(int)
    distances = np.abs(found[0] - _frames(clip)).mean(axis=(1, 2, 3))
    assert distances.argmin() == 20
    arguments[3] = "7"
    assert main(["reconstruct", folder, str(clip), *arguments]) == 1
    assert "clip.mp4: there is no frame at 7 s or later" in capsys.readouterr().err
    assert len(_frames(out)) == 10


def test_folders_of_frames(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, pixels in enumerate(moving(12, 32, 48)):
        Image.fromarray(pixels).save(frames / f"{number + (number > 5)}.png")
    out = tmp_path / "out.mp4"
    arguments = ["reconstruct", folder, str(frames), "--frame-rate", "30000/1001", "--out"]
    assert main([*arguments, str(out)]) == 0
    said = capsys.readouterr()
    assert "12 frames" in said.out
    assert "numbers are missing: 6" in said.err
    with open_video(out) as video:
        assert video.facts.rate == Fraction(30000, 1001)
    Image.new("RGB", (48, 32)).save(frames / "9.png")
    (frames / "10.mp4").touch()
    assert main([*arguments, str(frames / "10.mp4")]) == 2
    assert "is one of the clip's own frames" in capsys.readouterr().err


def test_an_animated_gif_is_a_clip_or_a_photograph_as_out_says(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [Image.fromarray(pixels) for pixels in moving(6, 32, 48)]
    gif = tmp_path / "a.gif"
    pictures[0].save(gif, save_all=True, append_images=pictures[1:], duration=40, loop=0)
    assert main(["reconstruct", folder, str(gif), "--out", str(tmp_path / "a.mp4")]) == 0
    assert "6 frames of 32×48" in capsys.readouterr().out
    assert main(["reconstruct", folder, str(gif), "--out", str(tmp_path / "a.png")]) == 0
    assert "32×48 through a latent of" in capsys.readouterr().out


def test_a_photograph_goes_through_either_tokenizer(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(moving(1, 33, 47)[0]).save(tmp_path / "a.png")
    for more in ([], ["--tile"]):
        out = tmp_path / "both.png"
        arguments = [str(tmp_path / "a.png"), "--out", str(out), *more]
        assert main(["reconstruct", folder, *arguments]) == 0
        assert "33×47" in capsys.readouterr().out
        with Image.open(out) as picture:
            assert picture.size == (2 * 47 + GAP, 33)


def test_sound_that_is_dropped_is_said(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rpiae.data.video import sound

    monkeypatch.setattr(sound.Sound, "refusal", lambda self, container: "it takes none today")
    clip = write(tmp_path / "clip.mp4", moving(9, 32, 48), sound=True)
    assert main(["reconstruct", folder, str(clip), "--out", str(tmp_path / "out.mp4")]) == 0
    assert "dB, sound dropped: it takes none today" in capsys.readouterr().out


def test_a_varying_rate_and_a_damaged_end_are_said(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write(
        tmp_path / "clip.mp4",
        moving(9, 32, 48),
        times=[0, 40, 80, 600, 640, 680, 720, 760, 800],
        unit=Fraction(1, 1000),
    )
    assert main(["reconstruct", folder, str(clip), "--out", str(tmp_path / "out.mp4")]) == 0
    said = capsys.readouterr()
    assert "9 frames" in said.out
    assert "the frame rate varies" in said.err
    whole = write(tmp_path / "whole.mkv", moving(60, 64, 96))
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert main(["reconstruct", folder, str(cut), "--out", str(tmp_path / "out.mp4")]) == 0
    assert "cut.mkv: it ends at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "out", "more", "code", "message"),
    [
        ("clip.mp4", "clip.mp4", [], 2, "is the clip itself: name another file"),
        ("clip.mp4", "a.png", [], 2, "clip.mp4 is a clip: --out a.png must end in .mp4, .m4v"),
        ("clip.mp4", "a.webm", [], 2, "clip.mp4 is a clip: --out a.webm must end in .mp4"),
        ("frames", "a.png", [], 2, "frames is a clip: --out a.png must end in .mp4"),
        (
            "photo.png",
            "a.mp4",
            [],
            2,
            "photo.png is an image: --out a.mp4 must be the name of a picture, such as a.png",
        ),
        ("photo.png", "a.xyz", [], 2, "cannot write a.xyz: the names of pictures end in .png"),
        ("clip.mp4", "a.mp4", ["--slice", "a.xyz"], 2, "cannot write a.xyz: the names of pictures"),
        ("photo.png", "photo.png", [], 2, "is the photograph itself: name another file"),
        ("photo.png", "a.png", ["--slice", "b.png"], 2, "--slice: for clips, whose --out ends in"),
        (
            "photo.png",
            "a.png",
            ["--frames", "3", "--start", "1"],
            2,
            "--start, --frames: for clips",
        ),
        ("clip.mp4", "none/a.mp4", [], 2, "there is no folder none"),
        ("clip.mp4", "a.mp4", ["--slice", "none/a.png"], 2, "there is no folder none"),
        ("clip.mp4", "a.mp4", ["--slice", "a.mp4"], 2, "--slice and --out are the same file"),
        ("clip.mp4", "a.mp4", ["--slice", "clip.mp4"], 2, "clip.mp4 is the clip itself"),
        ("clip.mp4", "a.mp4", ["--frame-rate", "5"], 2, "--frame-rate is for folders of frames"),
        ("clip.mp4", "a.mp4", ["--frame-rate", "0"], 2, "expected frames per second from 0.001"),
        ("clip.mp4", "a.mp4", ["--start", "-1"], 2, "expected seconds from 0 on"),
        ("clip.mp4", "a.mp4", ["--start", "nan"], 2, "expected seconds from 0 on"),
        ("clip.mp4", "a.mp4", ["--frames", "0"], 2, "expected a whole number of at least 1"),
        ("large.mp4", "a.mp4", [], 2, "Add --tile to go over it in blended"),
        ("none.mp4", "a.mp4", [], 1, "none.mp4: No such file"),
        ("empty.mp4", "a.mp4", [], 1, "empty.mp4: the file is empty"),
    ],
)
def test_what_cannot_be_is_one_clear_message(
    folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    out: str,
    more: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if source == "clip.mp4":
        write(tmp_path / "clip.mp4", moving(3, 32, 48))
    elif source == "large.mp4":
        write(tmp_path / source, moving(2, 320, 400))
    elif source == "photo.png":
        Image.new("RGB", (48, 32)).save(source)
    elif source == "frames":
        Path(source).mkdir()
    elif source == "empty.mp4":
        Path(source).touch()
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["reconstruct", folder, source, "--out", out, *more]) == code
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "unexpected" not in said
    assert {path.name for path in tmp_path.iterdir()} == before


def test_ctrl_c_leaves_no_half_file(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write(tmp_path / "clip.mp4", moving(67, 32, 48))
    write_frames = VideoWriter.write

    def interrupted(self: VideoWriter, frames: Any) -> None:
        write_frames(self, frames)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(VideoWriter, "write", interrupted)
    assert main(["reconstruct", folder, str(clip), "--out", str(tmp_path / "out.mp4")]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "rpiae: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


class _Tubelets(torch.nn.Module):
    """An encoder of two frames per token, as far as they are looked at here."""

    patch = (2, 4, 4)


def _whole_clip_model(tokenizer: RPiAE, monkeypatch: pytest.MonkeyPatch) -> RPiAE:
    monkeypatch.setitem(tokenizer._modules, "encoder", _Tubelets())
    monkeypatch.setattr(tokenizer.decoder, "patch", (2, 4, 4))
    monkeypatch.setattr(tokenizer, "reconstruct", lambda clip: clip)
    return tokenizer


def test_an_encoder_that_looks_at_the_whole_clip_takes_it_in_one_pass(
    tokenizer: RPiAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _whole_clip_model(tokenizer, monkeypatch)
    originals = moving(70, 32, 48)
    frames = [Frame(pixels, number / 25) for number, pixels in enumerate(originals)]
    [(before, after)] = list(reconstructed_frames(model, frames))
    assert np.array_equal(before, originals)
    assert np.array_equal(after, originals)
    with pytest.raises(UsageError, match=r"take 340 frames of 32×48 pixels or fewer \(--frames\)"):
        list(reconstructed_frames(model, frames * 5, name="long.mp4"))
    with pytest.raises(UsageError, match="leave tiles out"):
        list(reconstructed_frames(model, frames, tile=16))


def test_memory_does_not_grow_with_a_clip(tokenizer: RPiAE) -> None:
    """Of a long clip, only the frames of one piece are held."""
    alive = [0, 0]

    def frames() -> Any:
        for number in range(400):
            alive[0] = number + 1
            alive[1] = max(alive[1], alive[0] - given)
            yield Frame(np.zeros((16, 16, 3), np.uint8), number / 25)

    given = 0
    for original, _ in reconstructed_frames(tokenizer, frames()):
        given += len(original)
    assert given == 400
    assert alive[1] <= 2 * 32 + 4


def test_a_slice_shows_time(tmp_path: Path) -> None:
    frames = np.zeros((3 * MOST_SHOWN, 4, 6, 3), np.uint8)
    frames[:, :, 3, 0] = (np.arange(len(frames)) // 64)[:, None]
    over_time = SpaceTimeSlice()
    for first in range(0, len(frames), 100):
        over_time.add(frames[first : first + 100], frames[first : first + 100] + 7)
    shown = np.asarray(over_time.picture())
    assert shown.shape[0] == 2 * 4 + GAP
    assert MOST_SHOWN // 2 <= shown.shape[1] <= MOST_SHOWN
    assert (np.diff(shown[0, :, 0].astype(int)) >= 0).all()
    assert np.array_equal(shown[:4, :, 0] + 7, shown[4 + GAP :, :, 0])
    assert (shown[4 : 4 + GAP] == 255).all()


def test_clips_beside_each_other() -> None:
    one, other = moving(3, 16, 24), moving(3, 16, 24, seed=1)
    both = beside(one, other)
    assert np.array_equal(both[:, :, :24], one)
    assert np.array_equal(both[:, :, 24 + GAP :], other)
    assert (both[:, :, 24 : 24 + GAP] == 255).all()


@pytest.mark.parametrize(
    "name",
    [pytest.param("bigbuckbunny.mp4", marks=pytest.mark.slow), "carphone_pristine.mp4"],
)
def test_real_videos(
    folder: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = tmp_path / "out.mp4"
    arguments = ["--out", str(out), "--start", "1", "--frames", "6", "--tile"]
    assert main(["reconstruct", folder, str(shared / "data" / "video" / name), *arguments]) == 0
    assert "6 frames of " in capsys.readouterr().out
    assert len(_frames(out)) == 6
