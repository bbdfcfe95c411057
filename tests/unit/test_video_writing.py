"""Videos that are written: whole or not at all, with their colours, and with another file's sound."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rpiae.core.errors import RunError, UsageError
from rpiae.data.video import sound
from rpiae.data.video.files import open_video
from rpiae.data.video.library import demuxed
from rpiae.data.video.writing import WRITTEN, VideoWriter
from tests.videos import moving, write

av = pytest.importorskip("av")

RATE = Fraction(25)


def _written(path: Path, frames: NDArray[np.uint8], *, rate: Fraction = RATE, **more: Any) -> str:
    with VideoWriter(
        path, rate=rate, height=frames.shape[1], width=frames.shape[2], **more
    ) as writer:
        for first in range(0, len(frames), 7):
            writer.write(frames[first : first + 7])
    return writer.audio


def _read(path: Path) -> NDArray[np.uint8]:
    with open_video(path) as video:
        frames = [frame.pixels for frame in video.frames()]
        assert video.problem == ""
    return np.stack(frames)


@pytest.mark.parametrize("ending", WRITTEN)
def test_frames_come_back(tmp_path: Path, ending: str) -> None:
    frames = moving(30, 64, 96)
    path = tmp_path / f"a{ending}"
    assert _written(path, frames) == "none"
    found = _read(path)
    assert found.shape == frames.shape
    assert (
        np.abs(found.astype(int) - frames).mean() < 8
    )  # edges of colours have half the resolution
    assert list(tmp_path.iterdir()) == [path]
    with open_video(path) as video:
        assert video.facts.rate == RATE
        assert [frame.seconds for frame in video.frames()] == pytest.approx(
            [number / 25 for number in range(30)], abs=0.0006
        )


def _without(monkeypatch: pytest.MonkeyPatch, *encoders: str) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - set(encoders))


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 64), (48, 63), (47, 63)])
@pytest.mark.parametrize("colour", [(200, 40, 90), (10, 220, 30), (0, 0, 255), (255, 255, 255)])
def test_colours_and_sizes_come_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    encoder: str,
    height: int,
    width: int,
    colour: tuple[int, int, int],
) -> None:
    if encoder == "mpeg4":
        _without(monkeypatch, "libx264")
    path = tmp_path / "a.mp4"
    _written(path, np.full((5, height, width, 3), colour, np.uint8))
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.name.startswith(
            encoder.replace("libx264", "h264")
        )
    found = _read(path)
    assert found.shape == (5, height, width, 3)
    assert np.abs(found.astype(int) - colour).max() <= 4


@pytest.mark.parametrize(
    "rate", [Fraction(30000, 1001), Fraction(12345678, 514401), Fraction(240), Fraction(1, 2)]
)
@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_any_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: Fraction, encoder: str
) -> None:
    if encoder == "mpeg4":
        _without(monkeypatch, "libx264")
    path = tmp_path / "a.mp4"
    _written(path, moving(9), rate=rate)
    with open_video(path) as video:
        assert float(video.facts.rate) == pytest.approx(float(rate), rel=1e-4)
        assert sum(1 for _ in video.frames()) == 9


def _heard(path: Path) -> NDArray[np.float32]:
    with av.open(str(path)) as file:
        return np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)


@pytest.mark.parametrize("ending", WRITTEN)
def test_sound_is_copied(tmp_path: Path, ending: str) -> None:
    frames = moving(50)
    source = write(tmp_path / "source.mp4", frames, sound=True)
    path = tmp_path / f"a{ending}"
    assert _written(path, frames, audio_from=source) == "copied"
    before, after = _heard(source), _heard(path)
    assert after.shape[1] > 1.8 * 16000
    if ending == ".mkv":  # it has no place to say that the first packet only warms the decoder up
        after = after[:, 1024:]
    assert np.array_equal(before[:, : after.shape[1]], after)
    with open_video(path) as video:
        assert video.facts.audio
        assert next(video.frames()).seconds == 0


def test_sound_is_cut_with_the_frames(tmp_path: Path) -> None:
    source = write(tmp_path / "source.mp4", moving(100), sound=True)
    path = tmp_path / "a.mp4"
    assert _written(path, moving(25), audio_from=source, audio_start=2.0) == "copied"
    after = _heard(path)
    assert abs(after.shape[1] - 16000) <= 2 * 1024
    with av.open(str(source)) as one, av.open(str(path)) as two:
        before = {
            bytes(packet): packet.pts * packet.time_base
            for packet in one.demux(audio=0)
            if packet.size
        }
        kept = [
            (bytes(packet), packet.pts * packet.time_base)
            for packet in two.demux(audio=0)
            if packet.size
        ]
    assert all(abs(float(before[content] - when) - 2.0) < 0.03 for content, when in kept)


def test_sound_that_the_container_does_not_take_is_dropped(tmp_path: Path) -> None:
    source = tmp_path / "source.avi"
    with av.open(str(source), "w") as file:
        stream: Any = file.add_stream("wmav2", rate=44100, layout="mono", bit_rate=64000)
        heard = av.AudioFrame.from_ndarray(
            np.zeros((1, 2048), np.float32), format="fltp", layout="mono"
        )
        heard.sample_rate, heard.pts = 44100, 0
        file.mux(stream.encode(heard))
        file.mux(stream.encode())
    audio = _written(tmp_path / "a.mp4", moving(10), audio_from=source)
    assert audio == "dropped: mp4 files take no wmav2"
    assert len(_read(tmp_path / "a.mp4")) == 10


def test_silent_and_unreadable_sources_of_sound(tmp_path: Path) -> None:
    silent = write(tmp_path / "silent.mp4", moving(5))
    assert _written(tmp_path / "a.mp4", moving(5), audio_from=silent) == "none"
    missing = _written(tmp_path / "a.mp4", moving(5), audio_from=tmp_path / "no.mp4")
    assert missing.startswith("dropped: it cannot be read")
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    bad = _written(tmp_path / "a.mp4", moving(5), audio_from=tmp_path / "bad.mp4")
    assert bad.startswith("dropped: it cannot be read")


def test_sound_is_not_looked_for_in_other_files(tmp_path: Path) -> None:
    write(tmp_path / "other.ts", moving(25), sound=True)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")
    audio = _written(tmp_path / "a.mp4", moving(25), audio_from=playlist)
    assert audio.startswith("dropped: it cannot be read")


def test_sound_that_cannot_be_sought_in_is_read_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "source.mp4", moving(50), sound=True)
    assert _written(tmp_path / "a.mp4", moving(25), audio_from=source, audio_start=1.0) == "copied"
    opened = demuxed

    class Unsought:
        def __init__(self, file: Any) -> None:
            self._container: Any = opened(file)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def seek(self, *_: object, **__: object) -> None:
            raise OSError(errno.EIO, "no index")

    monkeypatch.setattr(sound, "demuxed", Unsought)
    assert _written(tmp_path / "b.mp4", moving(25), audio_from=source, audio_start=1.0) == "copied"
    assert np.array_equal(_heard(tmp_path / "a.mp4"), _heard(tmp_path / "b.mp4"))


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_was_not_finished(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"what was there")

    def _broken_off() -> None:
        with VideoWriter(path, rate=RATE, height=48, width=64) as writer:
            writer.write(moving(60))
            raise error

    with pytest.raises(type(error)):
        _broken_off()
    assert path.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_without_frames_there_is_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"cannot write .*a\.mp4: there are no frames"),
        VideoWriter(tmp_path / "a.mp4", rate=RATE, height=48, width=64),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for path, message in (
        (tmp_path / "none" / "a.mp4", r"cannot write .*a\.mp4: there is no folder .*none"),
        (tmp_path / "file" / "a.mp4", r"cannot write .*a\.mp4: there is no folder .*file"),
        (tmp_path / "folder.mp4", r"cannot write .*folder\.mp4: Is a directory"),
    ):
        with pytest.raises(RunError, match=message):
            _written(path, moving(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.parametrize("name", ["a.webm", "a.gif", "a", "a.png"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"videos end in \.mp4, \.m4v, \.mov, \.mkv"):
        VideoWriter(tmp_path / name, rate=RATE, height=48, width=64)


def test_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, "libx264", "mpeg4")
    with pytest.raises(RunError, match=r"none of the encoders libx264, mpeg4"):
        _written(tmp_path / "a.mp4", moving(3))
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from rpiae.core.errors import RunError
from rpiae.data.video.writing import VideoWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).integers(0, 256, (64, 128, 128, 3), dtype=np.uint8)
try:
    with VideoWriter(Path(sys.argv[1]), rate=Fraction(25), height=128, width=128) as writer:
        writer.write(noise)
except RunError as error:
    print(error)
"""


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"cannot write {path}: {os.strerror(errno.EFBIG)}"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_damaged_sound_stops_no_video(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.ts", moving(50), sound=True).read_bytes()
    said = set()
    for seed in range(20):
        content, draws = bytearray(whole), random.Random(seed)
        for _ in range(50):
            content[draws.randrange(len(content))] = draws.randrange(256)
        (tmp_path / "damaged.ts").write_bytes(content)
        path = tmp_path / "a.mp4"
        said.add(_written(path, moving(50), audio_from=tmp_path / "damaged.ts").partition(":")[0])
        assert len(_read(path)) == 50
    assert said <= {"copied", "dropped", "none"}
    assert "copied" in said
