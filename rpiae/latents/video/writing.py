"""The latents of a dataset's videos into a folder: video by video, in several processes, going on where
it stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from attrs import frozen

from rpiae.core.config.identity import identity
from rpiae.core.config.tree import Tree
from rpiae.core.errors import CheckpointError, DataError
from rpiae.core.model.places import lasting_name
from rpiae.core.model.resolve import part_config
from rpiae.core.model.temporal import temporal_downsampling
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.processes import Runtime
from rpiae.data.video.contracts import Video
from rpiae.data.video.shown import ShownTimes
from rpiae.latents.encoding import add_stored, check_finite, check_posterior, tokenizer_digest
from rpiae.latents.folders import prepare
from rpiae.latents.index import write_index
from rpiae.latents.layout import DTYPES, Settings
from rpiae.latents.pace import GLANCE
from rpiae.latents.statistics import ChannelStatistics
from rpiae.latents.video.encoding import (
    check_sizes,
    check_streams,
    frames_at_once,
    latent_pieces,
    none_usable,
)
from rpiae.latents.video.files import LatentFile, StoredLatents, check_header
from rpiae.latents.video.layout import StoredVideo, VideoPlan
from rpiae.latents.video.source import WholeVideos
from rpiae.latents.writing import Finished, Notice, Skipped, not_in


@frozen(kw_only=True)
class VideosStarted:
    """What is about to be written.

    Attributes:
        plan: all of it.
        kept: videos of this process that are complete already.
    """

    plan: VideoPlan
    kept: int


@frozen(kw_only=True)
class VideosProgressed:
    """Where things are, in all processes.

    Attributes:
        done: videos, the part of this process's present one that is done included.
        total: videos.
        frames: that this process has encoded in this session.
        frames_per_second: of this process.
        remaining_seconds: at the rate of all of them.
    """

    done: float
    total: int
    frames: int
    frames_per_second: float
    remaining_seconds: float


VideoEvent: TypeAlias = VideosStarted | VideosProgressed | Skipped | Notice | Finished


def make_video_plan(
    model: RPiAE,
    videos: WholeVideos,
    *,
    settings: Settings,
    data: Tree,
    tokenizer: Path,
    tile: int | None = None,
) -> VideoPlan:
    """What a folder of the latents of a dataset's videos is to hold.

    Args:
        model: what encodes.
        videos: the videos.
        settings: what decides the values.
        data: the dataset's fields.
        tokenizer: the folder that ``model`` is from.
        tile: side of spatial tiles; see ``Stream``.

    Raises:
        UsageError: if the settings do not fit, or the tokenizer cannot stream.
    """
    check_posterior(model, settings.posterior)
    check_streams(model)
    return VideoPlan(
        settings=settings,
        tokenizer={"path": lasting_name(tokenizer), "sha256": tokenizer_digest(model)},
        data=data,
        location=videos.location,
        num_videos=len(videos),
        scale=videos.scale,
        tile=tile or 0,
        channels=model.bridge.latent_channels,
        temporal_downsampling=temporal_downsampling(model.bridge),
        source=identity(part_config("datasets", data), times=False),
    )


def encode_videos(
    model: RPiAE,
    videos: WholeVideos,
    folder: str | os.PathLike[str],
    *,
    data: Tree,
    tokenizer: Path,
    settings: Settings,
    runtime: Runtime,
    batch_size: int | None = None,
    tile: int | None = None,
) -> Iterator[VideoEvent]:
    """Encode every video of a dataset, whole and in bounded memory, into a folder with a file for each.

    Videos that are complete there already are kept. Of several processes, each calls this and encodes
    every so many-th video; the first one waits for the others and writes the index.

    Args:
        model: what encodes.
        videos: the videos.
        folder: where to.
        data: the dataset's fields, for the index.
        tokenizer: the folder that ``model`` is from, for the index.
        settings: what decides the values.
        runtime: device, precision and processes.
        batch_size: frames at once; changes the latents by no more than rounding.
        tile: side of spatial tiles; see ``Stream``.

    Yields:
        ``VideosStarted``, then what happens, and in the first process ``Finished``.

    Raises:
        UsageError: if the folder holds anything else or is in use, or frames are too large for a pass.
        DataError: if no video can be used.
        RunError: if latents are not finite, or cannot be written.
    """
    target, said = Path(folder), list[str]()
    with contextlib.ExitStack() as held:

        def begin() -> Tree:
            plan = make_video_plan(
                model, videos, settings=settings, data=data, tokenizer=tokenizer, tile=tile
            )
            said.extend([check_sizes(model, videos, tile=tile), *videos.notices])
            prepare(target, plan, held)
            return plan.as_tree()

        plan = VideoPlan.from_tree(runtime.on_main(begin))
        own = range(runtime.rank, plan.num_files, runtime.num_processes)
        problems = {number: _problem_of(plan, target, number, videos) for number in own}
        missing = [number for number, problem in problems.items() if problem]
        yield from _notices(plan, target, problems, said)
        yield VideosStarted(plan=plan, kept=len(own) - len(missing))
        others = not_in(own, plan.num_files) if runtime.is_main else []
        pace = _Pace(plan, target, kept=len(own) - len(missing), others=others)
        encoder = _Encoder(model.to(runtime.device), videos, target, plan, runtime, batch_size)
        for number in missing:
            yield from encoder.encoded(number, pace)
        if runtime.is_main:
            yield from _finished(target, plan, videos, pace)


def _notices(
    plan: VideoPlan, folder: Path, problems: Mapping[int, str], said: Iterable[str]
) -> Iterator[Notice]:
    """What is to be said first: which files are there and written anew, and ``said``."""
    for number, problem in problems.items():
        if problem and (folder / plan.file(number)).exists():
            yield Notice(text=f"{problem}; it is written anew")
    yield from (Notice(text=text) for text in said if text)


def _finished(
    folder: Path, plan: VideoPlan, videos: WholeVideos, pace: _Pace
) -> Iterator[VideoEvent]:
    """Wait for what other processes write, and write the index."""
    while pace.others_at_work():
        time.sleep(GLANCE)
        yield pace.progressed()
    yield Finished(folder=folder, index=_finished_index(folder, plan, videos))


class _Pace:
    """How far all processes are, as the first one sees it."""

    def __init__(self, plan: VideoPlan, folder: Path, *, kept: int, others: list[int]) -> None:
        self._plan = plan
        self._folder = folder
        self._others = others
        self._waiting = others
        self._glanced = self._started = time.perf_counter()
        self.done = kept
        self.within = 0.0
        self.frames = 0
        self.others_at_work()
        self._before = self._done()

    def others_at_work(self) -> bool:
        """Whether videos of other processes are not there yet."""
        self._waiting = [
            n for n in self._waiting if not (self._folder / self._plan.file(n)).exists()
        ]
        self._glanced = time.perf_counter()
        return bool(self._waiting)

    def progressed(self) -> VideosProgressed:
        """Where things are."""
        now = time.perf_counter()
        if self._waiting and now - self._glanced > GLANCE:
            self.others_at_work()
        done, total = self._done(), self._plan.num_videos
        seconds = max(now - self._started, 1e-9)
        rate = (done - self._before) / seconds
        return VideosProgressed(
            done=done, total=total, frames=self.frames, frames_per_second=self.frames / seconds,
            remaining_seconds=(total - done) / rate if rate else float("inf"),
        )  # fmt: skip

    def _done(self) -> float:
        return self.done + len(self._others) - len(self._waiting) + self.within


class _Encoder:
    """Encodes one video after the other."""

    def __init__(
        self,
        model: RPiAE,
        videos: WholeVideos,
        folder: Path,
        plan: VideoPlan,
        runtime: Runtime,
        batch_size: int | None,
    ) -> None:
        self._model = model
        self._videos = videos
        self._folder = folder
        self._plan = plan
        self._runtime = runtime
        self._batch_size = batch_size

    def encoded(self, number: int, pace: _Pace) -> Iterator[VideoEvent]:
        """Encode a video and write its file; one without latents where it cannot be used."""
        plan, name = self._plan, self._videos.name(number)
        path = self._folder / plan.file(number)
        header = {
            "format": plan.format, "plan": plan.digest(), "position": number,
            "name": printable(name),
        }  # fmt: skip
        file = LatentFile(path, plan.settings.tensors, plan.settings.dtype)
        try:
            with self._videos.open(number) as video:
                times = ShownTimes(video.facts.rate)
                facts = yield from self._latents(number, video, file, pace, times)
                file.finish(header | facts)
                if video.problem:
                    yield Notice(text=f"{video.problem}; it is encoded as far as it goes")
                if varying := times.varying():
                    yield Notice(text=f"{video.name}: {varying}")
        except DataError as error:
            file.discard()
            LatentFile(path, (), plan.settings.dtype).finish(
                header | {"skipped": printable(str(error))}
            )
            yield Skipped(reason=str(error))
        finally:
            file.discard()
        pace.within = 0.0
        pace.done += 1
        yield pace.progressed()

    def _latents(
        self, number: int, video: Video, file: LatentFile, pace: _Pace, times: ShownTimes
    ) -> Generator[VideoEvent, None, dict[str, Any]]:
        """Bring a video's latents into its file, and give what is to be known of them."""
        plan, settings = self._plan, self._plan.settings
        height, width = self._videos.size(video)
        size = self._batch_size or frames_at_once(self._model, (height, width))
        statistics = ChannelStatistics(plan.channels)
        frames, shape = 0, list[int]()
        for count, tensors in latent_pieces(
            self._model, self._videos.chunks(video, size, times), position=number, settings=settings,
            runtime=self._runtime, tile=plan.tile or None,
        ):  # fmt: skip
            stored = {name: values.to(DTYPES[settings.dtype]) for name, values in tensors.items()}
            check_finite(stored, [self._videos.name(number)])
            add_stored(statistics, stored, settings)
            file.add({name: values[0] for name, values in stored.items()})
            shape = list(next(iter(stored.values())).shape[3:])
            frames += count
            pace.frames += count
            pace.within = _share(frames, video)
            yield pace.progressed()
        if not frames:
            raise DataError(f"{video.name}: it has no frames")
        problem = "; ".join(filter(None, [video.problem, times.varying()]))
        return {
            "frames": frames, "height": height,
            "width": width, "rate": str(video.facts.rate), "problem": printable(problem),
            "latent_shape": [plan.channels, file.steps, *shape],
            "statistics": statistics.as_tree(),
        }  # fmt: skip


def _share(frames: int, video: Video) -> float:
    """How much of a video so many frames are, as far as anybody knows."""
    facts = video.facts
    total = facts.frames or (facts.seconds or 0.0) * float(facts.rate)
    return min(frames / total, 1.0) if total else 0.0


def _problem_of(plan: VideoPlan, folder: Path, number: int, videos: WholeVideos) -> str:
    """Why a video has to be encoded, or nothing."""
    path = folder / plan.file(number)
    try:
        metadata = check_header(plan, folder, number)
        StoredLatents(path, metadata).verify()
    except CheckpointError as error:
        return str(error)
    if metadata["name"] != (name := printable(videos.name(number))):
        return f"{path} has {metadata['name']} where the dataset now has {name}"
    return ""


def _finished_index(folder: Path, plan: VideoPlan, videos: WholeVideos) -> dict[str, Any]:
    """Look at the headers of all files, and write the index."""
    found = ChannelStatistics(plan.channels)
    rows, skipped = [], []
    for number in range(plan.num_files):
        metadata = check_header(plan, folder, number)
        if "skipped" in metadata:
            skipped.append(
                {"position": number, "name": metadata["name"], "reason": metadata["skipped"]}
            )
            continue
        found.merge(ChannelStatistics.from_tree(metadata["statistics"]))
        rows.append(_row(plan, number, metadata).as_tree())
    if not found.count:
        raise DataError(none_usable(videos.location, plan.num_videos))
    return write_index(
        folder, plan, complete=True, count=len(rows),
        statistics={"count": found.count, "mean": found.mean.tolist(), "std": found.std.tolist()},
        videos=rows, skipped=skipped,
    )  # fmt: skip


def _row(plan: VideoPlan, number: int, metadata: Mapping[str, Any]) -> StoredVideo:
    return StoredVideo(
        position=number, file=plan.file(number), name=metadata["name"],
        frames=metadata["frames"], height=metadata["height"], width=metadata["width"],
        rate=metadata["rate"], latent_shape=tuple(metadata["latent_shape"]),
        problem=metadata["problem"], sha256=metadata["sha256"],
    )  # fmt: skip
