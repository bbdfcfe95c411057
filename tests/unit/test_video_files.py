"""Frames of video files: as shown, at their own times, the same ones from wherever they are begun."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from rpiae.core.errors import DataError, MissingExtraError
from rpiae.data.video.files import VIDEO_EXTENSIONS, VideoFacts, VideoFile, open_video
from rpiae.data.video.frame_folder import FrameFolder, open_frame_folder
from tests.videos import FULL, LIMITED, moving, write

av = pytest.importorskip("av")

EXACT = {"crf": "0"}
#: Top left red, top right green, bottom left blue, bottom right white.
CORNERS = np.repeat(
    np.repeat(
        np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8), 24, axis=0
    ),
    32,
    axis=1,
)


def _all(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    with open_video(path) as video:
        return [(frame.seconds, frame.pixels) for frame in video.frames()]


def _same_from_everywhere(path: Path, starts: int = 12) -> None:
    whole = _all(path)
    order = list(range(len(whole)))
    random.Random(0).shuffle(order)
    with open_video(path) as video:
        for first in order[:starts]:
            found = []
            for frame in video.frames(whole[first][0]):
                found.append(frame)
                if len(found) == 4:
                    break
            assert [frame.seconds for frame in found] == [t for t, _ in whole[first : first + 4]]
            for frame, (_, pixels) in zip(found, whole[first:], strict=False):
                assert np.array_equal(frame.pixels, pixels)
        assert len(list(video.frames(whole[-3][0]))) == 3
        assert list(video.frames(whole[-1][0] + 60)) == []
        assert video.problem == ""


def test_frames_and_facts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(30), sound=True)
    with open_video(path) as video:
        facts = video.facts
        frames = list(video.frames())
    assert (facts.frames, facts.height, facts.width) == (30, 48, 64)
    assert facts.rate == 25
    assert facts.seconds == pytest.approx(1.2)
    assert facts.audio
    assert [frame.seconds for frame in frames] == [number / 25 for number in range(30)]
    assert frames[0].pixels.shape == (48, 64, 3)
    assert frames[0].pixels.dtype == np.uint8
    assert np.abs(frames[7].pixels.astype(int) - moving(30)[7]).mean() < 12
    assert video.problem == ""


def test_bytes_are_read_as_files_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(5))
    with open_video(path.read_bytes(), name="shard.tar: 7") as video:
        assert not video.facts.audio
        found = [frame.pixels for frame in video.frames()]
    assert np.array_equal(np.stack(found), np.stack([pixels for _, pixels in _all(path)]))


LONG = {"bf": "3", "g": "250", "sc_threshold": "0"}
CODECS: dict[str, dict[str, Any]] = {
    "long-gop.mp4": {"options": LONG},
    "short-gop.mp4": {"options": {"bf": "3", "g": "7"}},
    "open-gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=8:bframes=3"}},
    "open-gop.ts": {"options": {"x264-params": "open-gop=1:keyint=8:bframes=3"}},
    "refreshed.mp4": {"options": {"x264-params": "intra-refresh=1:keyint=8"}},
    "hevc.mkv": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:open-gop=1:keyint=8:bframes=3"},
    },
    "long-gop.mkv": {"options": LONG},
    "long-gop.mov": {"options": LONG},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "g": "9"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2", "g": "9"}},
    "counted.avi": {"options": {"bf": "3", "g": "9"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "9"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "g": "9"}},
    "no-index.webm": {
        "codec": "libvpx-vp9",
        "options": {"deadline": "realtime", "g": "9"},
        "container": {"live": "1"},
    },
    "animated.gif": {"codec": "gif", "pixels": "rgb8", "matrix": None, "colour_range": None},
    "interlaced.mp4": {"options": {"x264-params": "interlaced=1:tff=1:keyint=9:bframes=2"}},
}


@pytest.mark.parametrize("name", CODECS)
def test_a_seek_gives_what_decoding_from_the_start_gives(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, moving(40), **CODECS[name])
    whole = _all(path)
    assert len(whole) == 40
    assert [t for t, _ in whole] == pytest.approx([n / 25 for n in range(40)], abs=0.0051)
    assert path.suffix in VIDEO_EXTENSIONS
    _same_from_everywhere(path)


def test_without_a_seek_frames_are_decoded_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mkv", moving(40), options={"g": "9"})
    whole = _all(path)

    class Refusing:
        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def seek(self, *_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")

    opened = av.open
    monkeypatch.setattr(av, "open", lambda *args, **more: Refusing(opened(*args, **more)))
    with open_video(path) as video:
        frame = next(video.frames(whole[30][0]))
    assert frame.seconds == whole[30][0]
    assert np.array_equal(frame.pixels, whole[30][1])


@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_real_videos_can_be_begun_everywhere(shared: Path, name: str) -> None:
    path = shared / "data" / "video" / name
    with open_video(path) as video:
        facts = video.facts
        times = [frame.seconds for frame in video.frames()]
    assert len(times) == facts.frames
    assert times == [float(n / facts.rate) for n in range(len(times))]
    _same_from_everywhere(path, 4)


def test_a_time_between_two_frames_begins_at_the_later(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(10))
    with open_video(path) as video:
        assert next(video.frames(0.13)).seconds == 0.16
        assert next(video.frames(float(Fraction(3, 25)))).seconds == 0.12
        assert next(video.frames(-1)).seconds == 0
        assert list(video.frames(10)) == []


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.y4m", "rawvideo", "yuv420p"),
        ("a.mxf", "mpeg2video", "yuv420p"),
    ],
)
def test_where_time_is_counted_in_frames_a_video_begins_no_earlier(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    with open_video(write(tmp_path / name, moving(20), codec=codec, pixels=pixels)) as video:
        for number in range(20):
            assert next(video.frames(number / 25)).seconds == number / 25
        assert next(video.frames(0.5)).seconds == 0.52
        assert next(video.frames(0.481)).seconds == 0.52


def test_frames_of_a_variable_rate_keep_their_times(tmp_path: Path) -> None:
    times = [0, 10, 20, 100, 110, 400, 410, 420, 430, 1000]
    path = write(
        tmp_path / "a.mp4", moving(10), times=times, unit=Fraction(1, 1000), options={"bf": "2"}
    )
    assert [seconds for seconds, _ in _all(path)] == [time / 1000 for time in times]
    _same_from_everywhere(path)


def _turned(degrees: float, *, mirrored: bool = False) -> Any:
    return lambda stream: stream.set_display_rotation(degrees, hflip=mirrored)


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_and_mirrored_videos_are_shown_upright(
    tmp_path: Path, ending: str, quarters: int, mirrored: bool
) -> None:
    path = write(
        tmp_path / f"a{ending}",
        [CORNERS] * 3,
        pixels="yuv444p",
        options=EXACT,
        setup=_turned(90 * quarters, mirrored=mirrored),
    )
    expected = np.rot90(CORNERS, quarters)
    if mirrored:  # what is turned already, as FFmpeg writes it
        expected = expected[:, ::-1]
    with open_video(path) as video:
        assert (video.facts.height, video.facts.width) == expected.shape[:2]
        frame = next(video.frames())
    assert np.abs(frame.pixels.astype(int) - expected).max() <= 3


def test_a_video_that_is_turned_by_less_than_a_quarter_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(3), setup=_turned(45))
    with pytest.raises(DataError, match=r"a\.mp4: it is turned by an angle that is no multiple"):
        open_video(path)


COLOUR = (200, 40, 90)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le", "yuv422p10le"])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9, None])
@pytest.mark.parametrize("colour_range", [LIMITED, FULL, None])
def test_colours_come_back(
    tmp_path: Path, pixels: str, matrix: int | None, colour_range: int | None
) -> None:
    frames = np.full((3, 48, 64, 3), COLOUR, np.uint8)
    path = write(
        tmp_path / "a.mp4",
        frames,
        pixels=pixels,
        matrix=matrix,
        colour_range=colour_range,
        options=EXACT,
    )
    for _, found in _all(path):
        assert np.abs(found.astype(int) - COLOUR).max() <= 1


def test_matrices_and_ranges_differ_where_they_are_not_told(tmp_path: Path) -> None:
    """The colours of the test before come back because the tags are read, not because all is one."""
    stored = write(
        tmp_path / "a.mp4",
        np.full((3, 48, 64, 3), COLOUR, np.uint8),
        pixels="yuv444p",
        matrix=1,
        options=EXACT,
    )
    with av.open(str(stored)) as file:
        frame = next(file.decode(video=0))
        frame.colorspace = 5
        other = frame.to_ndarray(format="rgb24")
    assert np.abs(other[0, 0].astype(int) - COLOUR).max() > 5


@pytest.mark.parametrize(("height", "width"), [(47, 63), (48, 63), (47, 64), (1, 1)])
def test_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    frames = np.full((3, height, width, 3), COLOUR, np.uint8)
    path = write(tmp_path / "a.mkv", frames, codec="ffv1", pixels="yuv420p")
    with open_video(path) as video:
        assert (video.facts.height, video.facts.width) == (height, width)
        found = next(video.frames()).pixels
    assert np.abs(found.astype(int) - COLOUR).max() <= 1


@pytest.mark.parametrize(
    ("aspect", "shape"), [(Fraction(4, 3), (48, 85)), (Fraction(8, 9), (54, 64))]
)
def test_pixels_are_made_square(tmp_path: Path, aspect: Fraction, shape: tuple[int, int]) -> None:
    def stretched(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = aspect

    path = write(tmp_path / "a.mp4", [CORNERS] * 3, options=EXACT, setup=stretched)
    with open_video(path) as video:
        assert (video.facts.height, video.facts.width) == shape
        found = next(video.frames()).pixels
    assert found.shape == (*shape, 3)
    assert np.abs(found[10, 10].astype(int) - CORNERS[10, 10]).max() <= 3
    assert np.abs(found[-10, -10].astype(int) - CORNERS[-10, -10]).max() <= 3


def test_pixels_of_no_sensible_shape_are_refused(tmp_path: Path) -> None:
    def stretched(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(10, 1)

    path = write(tmp_path / "a.mp4", moving(3), setup=stretched)
    with pytest.raises(DataError, match=r"a\.mp4: its pixels would be 10 times as wide as high"):
        open_video(path)


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv420p10le"])
def test_interlaced_frames_are_deinterlaced(tmp_path: Path, pixels: str) -> None:
    """The two fields of a frame show an edge at two places; no comb is left, one field's edge is."""
    frames = np.full((6, 48, 64, 3), 40, np.uint8)
    frames[:, 0::2, 20:] = 200
    frames[:, 1::2, 40:] = 200
    path = write(
        tmp_path / "a.mp4",
        frames,
        pixels=pixels,
        options={"crf": "0", "x264-params": "interlaced=1:tff=1"},
    )
    found = _all(path)
    assert len(found) == 6
    for _, shown in found:
        assert shown.shape == (48, 64, 3)
        assert np.ptp(shown[4:-4].astype(int), axis=0).max() <= 3
        assert np.abs(shown[4:-4, :18].astype(int) - 40).max() <= 3
        assert np.abs(shown[4:-4, 42:].astype(int) - 200).max() <= 3


def test_interlaced_colours_come_back(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.mp4",
        np.full((3, 48, 64, 3), COLOUR, np.uint8),
        colour_range=FULL,
        options={"crf": "0", "x264-params": "interlaced=1:tff=1"},
    )
    assert np.abs(_all(path)[0][1].astype(int) - COLOUR).max() <= 1


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    pictures = [Image.new("RGBA", (64, 48), (200, 0, 0, 255)) for _ in range(3)]
    for number, picture in enumerate(pictures):
        picture.paste((0, 0, 0, 0), (8 * number, 0, 32 + 8 * number, 48))
    path = tmp_path / "a.gif"
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=40, loop=0, disposal=2
    )
    found = _all(path)
    assert len(found) == 3
    assert tuple(found[0][1][24, 10]) == (255, 255, 255)
    assert tuple(found[0][1][24, 60]) == (200, 0, 0)


def _joined(tmp_path: Path) -> Path:
    """Two videos of different sizes, one behind the other in one stream."""
    for name, size in (("one", 64), ("two", 32)):
        write(tmp_path / f"{name}.mpg", moving(10, 48, size), codec="mpeg2video")
    path = tmp_path / "joined.mpg"
    path.write_bytes((tmp_path / "one.mpg").read_bytes() + (tmp_path / "two.mpg").read_bytes())
    return path


def test_sizes_that_change_are_one_clear_error(tmp_path: Path) -> None:
    with (
        open_video(_joined(tmp_path)) as video,
        pytest.raises(DataError, match=r"joined\.mpg: its frames are 48×64 .* first and 48×32 at"),
    ):
        list(video.frames())


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.webm"])
def test_of_a_truncated_file_the_beginning_is_given(tmp_path: Path, name: str) -> None:
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mpeg4"}.get(name, "libx264")
    whole = write(
        tmp_path / f"whole_{name}",
        moving(60, 96, 128),
        codec=codec,
        options={"g": "10"},
        container={"movflags": "faststart"} if name == "a.mp4" else None,
    )
    path = tmp_path / name
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    with open_video(path) as video:
        assert video.problem == ""
        count = sum(1 for _ in video.frames())
        assert 5 < count < 60
        assert f"{name}: it ends at" in video.problem
        # What was read before its end is no problem of what is asked.
        assert "of 2.40 s" in video.problem or name == "a.avi"
    with open_video(whole) as video:
        assert sum(1 for _ in video.frames()) == 60
        assert video.problem == ""


def test_a_truncated_mxf_gives_the_same_frames_from_everywhere(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mxf", moving(60, 96, 128), codec="mpeg2video")
    path = tmp_path / "a.mxf"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    found = _all(path)
    assert 5 < len(found) < 60
    with open_video(path) as video:
        for seconds, pixels in found[:: len(found) // 4]:
            frame = next(video.frames(seconds))
            assert frame.seconds == seconds
            assert np.array_equal(frame.pixels, pixels)


def test_an_mp4_without_its_index_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4", moving(20)).read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.mp4: it is damaged, or no video of a known format"):
        open_video(path)


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.mkv", moving(60), options={"g": "10"}).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)
    with open_video(bytes(content), name="damaged.mkv") as video:
        frames = list(video.frames())
    assert len(frames) == 60
    assert video.problem == "damaged.mkv: damaged frames: 1"


def test_a_single_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(1))
    with open_video(path) as video:
        assert video.facts.frames == 1
        assert [frame.seconds for frame in video.frames()] == [0.0]
        assert video.problem == ""


def _sound(path: Path, *, cover: bool = False) -> Path:
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("aac", rate=16000)
        picture: Any = None
        if cover:
            picture = file.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        heard = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        heard.sample_rate, heard.pts = 16000, 0
        stream.layout = "mono"
        file.mux(stream.encode(heard))
        file.mux(stream.encode())
        if cover:
            file.mux(picture.encode(av.VideoFrame(32, 32, "yuvj420p")))
            file.mux(picture.encode())
    return path


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.mp4: it has no video stream"):
        open_video(_sound(tmp_path / "a.mp4"))


def test_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    path = _sound(tmp_path / "a.mp4", cover=True)
    with av.open(str(path)) as file:
        assert len(file.streams.video) == 1
    with pytest.raises(DataError, match=r"a\.mp4: it has no video stream"):
        open_video(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"not a video" * 100, "it is damaged, or no video of a known format"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.ts\n", "it is damaged, or no video"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "it is damaged, or no video"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.mp4: {message}"):
        open_video(path)
    with pytest.raises(DataError, match=f"of a shard: {message}"):
        open_video(content, name="of a shard")


def test_photographs_are_no_videos(tmp_path: Path) -> None:
    for ending in ("png", "jpg", "webp"):
        path = tmp_path / f"a.{ending}"
        Image.new("RGB", (8, 8)).save(path)
        with pytest.raises(DataError, match="no video of a known format"):
            open_video(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, message in (
        (tmp_path / "pipe.mp4", "it is a FIFO"),
        (Path("/dev/null"), "it is a device"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none.mp4", "No such file"),
    ):
        with pytest.raises(DataError, match=message):
            open_video(path)


def test_names_that_are_no_text_can_be_told(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.mp4"))
    path.write_bytes(b"no")
    with pytest.raises(DataError, match=r"caf\\xe9\.mp4: it is damaged"):
        open_video(path)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(write(tmp_path / "a.mp4", moving(20)).read_bytes())
    content[1000:1200] = bytes(200)
    with open_video(bytes(content)) as video:
        list(video.frames())
    found = capfd.readouterr()
    assert (found.out, found.err) == ("", "")


def test_iterators_do_not_take_frames_from_each_other(tmp_path: Path) -> None:
    with open_video(write(tmp_path / "a.mp4", moving(10))) as video:
        first = video.frames()
        next(first)
        list(video.frames())
        with pytest.raises(AssertionError, match="one iterator"):
            next(first)
        last = video.frames()
        next(last)
    with pytest.raises(AssertionError, match="while it is open"):
        next(last)


def test_without_pyav_the_install_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'pip install "rpiae\[video\]"'):
        VideoFile(tmp_path / "a.mp4")


def _numbered(folder: Path, names: list[str], size: tuple[int, int] = (16, 12)) -> Path:
    folder.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        Image.new("RGB", size, (place, 2 * place, 7)).save(folder / name)
    return folder


def _places(video: FrameFolder, start: float = 0.0) -> list[int]:
    return [int(frame.pixels[0, 0, 0]) for frame in video.frames(start)]


def test_a_folder_of_frames_is_a_video(tmp_path: Path) -> None:
    folder = _numbered(tmp_path / "f", [f"take2_{number}.png" for number in range(8, 13)])
    (folder / "notes.txt").write_text("10")
    (folder / "7.png.d").mkdir()
    with open_frame_folder(folder, rate=Fraction(30000, 1001)) as video:
        assert video.facts == VideoFacts(
            frames=5,
            height=12,
            width=16,
            rate=Fraction(30000, 1001),
            seconds=5 * 1001 / 30000,
            audio=False,
        )
        assert video.problem == ""
        assert _places(video) == [0, 1, 2, 3, 4]
        for number, frame in enumerate(list(video.frames())):
            assert frame.seconds == float(Fraction(number * 1001, 30000))
            assert _places(video, frame.seconds) == list(range(number, 5))
        assert _places(video, 0.01) == [1, 2, 3, 4]
        assert _places(video, 9) == []


def test_gaps_doubles_and_images_without_numbers_are_said(tmp_path: Path) -> None:
    names = [
        "1.png",
        "2.png",
        "02.png",
        "4.png",
        "8.png",
        "10.png",
        "20.png",
        "30.png",
        "cover.png",
    ]
    with open_frame_folder(_numbered(tmp_path / "f", names)) as video:
        assert video.facts.frames == 8
        assert video.problem == (
            f"{tmp_path / 'f'}: numbers are missing: 3, 5 to 7, 9 and 2 more; numbers are there "
            "twice: 2; images without a number are left out, such as cover.png"
        )


def test_mixed_sizes_in_a_folder_are_one_clear_error(tmp_path: Path) -> None:
    folder = _numbered(tmp_path / "f", ["1.png", "2.png"])
    Image.new("RGB", (20, 20)).save(folder / "3.png")
    with (
        open_frame_folder(folder) as video,
        pytest.raises(DataError, match=r"f: its frames are 12×16 pixels .* 20×20 in 3\.png"),
    ):
        list(video.frames())


def test_folders_that_are_no_video(tmp_path: Path) -> None:
    for folder, message in (
        (_numbered(tmp_path / "f", ["a.png"]), "there are no images with numbers"),
        (tmp_path / "none", "No such file"),
        (_numbered(tmp_path / "g", []), "there are no images with numbers"),
    ):
        with pytest.raises(DataError, match=f"{folder.name}: {message}"):
            open_frame_folder(folder)
    broken = _numbered(tmp_path / "h", ["1.png", "2.png"])
    (broken / "2.png").write_bytes(b"no")
    with (
        open_frame_folder(broken) as video,
        pytest.raises(DataError, match=r"h/2\.png: not an image"),
    ):
        list(video.frames())
