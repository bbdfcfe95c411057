"""Videos: what holds for every length, clip, share and frame rate."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rpiae.core.errors import DataError
from rpiae.data.crops import Fitting
from rpiae.data.images import Pixels, centre_crop
from rpiae.data.video.clips import VideoReader
from rpiae.data.video.contracts import Frame, Video, VideoFacts
from rpiae.data.video.timing import Length, Part, Timing, parted

TIMINGS = st.builds(Timing, frames=st.integers(1, 20), stride=st.integers(1, 4))


class Shown(Video):
    """Frames of one pixel whose grey is their number, shown at any times."""

    def __init__(self, times: list[float]) -> None:
        self.name = "shown"
        self.times = times
        self.facts = VideoFacts(
            frames=len(times), height=1, width=1, rate=Fraction(10), seconds=len(times) / 10,
            audio=False,
        )  # fmt: skip

    def frames(self, start: float = 0.0) -> Iterator[Frame]:
        for number, seconds in enumerate(self.times):
            if seconds >= start:
                yield Frame(np.full((1, 1, 3), number, np.uint8), seconds)

    def close(self) -> None:
        self.times = []


class One:
    """A source of one video."""

    location, problems = "one", ()

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "shown"

    def path(self, index: int) -> str:
        return "shown"

    def open(self, index: int) -> Video:
        return Shown(self.times)


def whole_picture(picture: object) -> Pixels:
    assert isinstance(picture, np.ndarray)
    return centre_crop(picture, 1, 1)


@given(
    numbers=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    timing=TIMINGS,
    held_out=st.floats(0.001, 0.5),
)
def test_every_video_is_parted_into_what_is_trained_on_and_what_is_not(
    numbers: list[int], timing: Timing, held_out: float
) -> None:
    span = timing.span
    lengths = {i: Length(n, 25.0, n, (8, 8)) for i, n in enumerate(numbers) if n >= span}
    assume(lengths)
    found = parted(lengths, timing, held_out=held_out, location="here")
    assert found.training
    assert found.held_out
    assert all(part.positions >= span for part in (*found.training, *found.held_out))
    trained = {part.video: part for part in found.training}
    measured = {part.video: part for part in found.held_out}
    assert set(trained) | set(measured) == set(lengths)
    for video in set(trained) & set(measured):
        if len(lengths) > 1 or lengths[video].positions >= 2 * span:
            before, after = trained[video], measured[video]
            assert before.first == 0
            assert before.positions == after.first
            assert after.first + after.positions == before.whole == numbers[video]
            assert before.end == after.begin
            assert after.positions >= min(held_out * numbers[video], numbers[video] - span)


@given(
    first=st.integers(0, 50), positions=st.integers(1, 200), rest=st.integers(0, 9),
    timing=TIMINGS, share=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_clips_lie_in_their_part(
    first: int, positions: int, rest: int, timing: Timing, share: float
) -> None:
    assume(positions >= timing.span)
    whole = first + positions + rest
    part = Part(video=0, first=first, positions=positions, rate=25.0, whole=whole)
    start = part.start(share, timing.span)
    assert first <= start <= first + positions - timing.span
    ends = {part.start(s, timing.span) for s in (0.0, 1 - 2**-53)}
    assert ends == {first, first + positions - timing.span}
    cut = part.cut_at((first + positions - 1) / 25)
    assert cut == part
    assert part.cut_at(0.0).positions == (1 if first == 0 else 0)


@given(
    gaps=st.lists(st.integers(1, 40), min_size=2, max_size=30),
    data=st.data(),
    kept=st.booleans(),
    frame_rate=st.sampled_from([4.0, 10.0, 25.0]),
)
def test_clips_are_of_the_frames_that_are_nearest_in_time_and_in_their_part(
    gaps: list[int], data: st.DataObject, kept: bool, frame_rate: float
) -> None:
    times = (np.cumsum([0, *gaps[1:]]) / 100).tolist()
    timing = Timing(frames=data.draw(st.integers(1, 4)), frame_rate=frame_rate)
    whole = round(len(times) / 10 * frame_rate)
    assume(whole >= timing.span)
    first = data.draw(st.integers(0, whole - timing.span))
    positions = data.draw(st.integers(timing.span, whole - first))
    part = Part(video=0, first=first, positions=positions, rate=frame_rate, whole=whole)
    inside = [i for i, time in enumerate(times) if part.begin <= time < part.end]
    fitting = Fitting(image_size=1, resize=None, shrink=False)
    reader = VideoReader(One(times), fitting, timing, kept=kept)
    for start in data.draw(st.permutations(range(first, first + positions - timing.span + 1))):
        if not inside:
            with pytest.raises(DataError, match="no frame is shown between"):
                reader.clip(part, start, timing.frames, whole_picture)
            continue
        clip = reader.clip(part, start, timing.frames, whole_picture)
        for number, frame in enumerate(clip[:, 0, 0, 0].tolist()):
            wanted = (start + number) / frame_rate
            away = min(abs(times[i] - wanted) for i in inside)
            assert frame in inside
            assert abs(times[frame] - wanted) <= away + 1e-5
