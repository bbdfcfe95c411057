"""Latents of clips and videos to video files, or folders of frames, in bounded memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from attrs import frozen
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import RunError
from rpiae.core.model.temporal import temporal_downsampling
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.data.video.files import VIDEO_EXTENSIONS
from rpiae.data.video.writing import VideoWriter
from rpiae.latents.decoding import check_decodable, decodable, file_name, numbers, save_picture
from rpiae.latents.reading import LatentDataset
from rpiae.latents.video.encoding import frames_at_once

#: Frames per second of latents that do not say.
USUAL_RATE = Fraction(25)


@frozen(kw_only=True)
class DecodedFrames:
    """Progress of ``decode_videos``.

    Attributes:
        frames, total: frames, written and to be written.
        videos: videos that are complete.
    """

    frames: int
    total: int
    videos: int


@frozen(kw_only=True)
class _Clip:
    """Latents of one clip or video.

    Attributes:
        name: what messages and its file call it.
        size: (T, H, W) of what it becomes.
        rate: frames per second.
        steps: latent steps.
        read: steps from one to another, (C, k, h, w).
    """

    name: str
    size: tuple[int, int, int]
    rate: Fraction
    steps: int
    read: Callable[[int, int], Tensor]


def decode_videos(
    model: RPiAE,
    latents: LatentDataset | Float[Tensor, "n c t h w"],
    out: str | os.PathLike[str],
    *,
    runtime: Runtime,
    batch_size: int | None = None,
    limit: int | None = None,
    norm: RPiAE | LatentDataset | None = None,
    rate: Fraction | None = None,
    as_frames: bool = False,
    tile: int | None = None,
) -> Iterator[DecodedFrames]:
    """Decode latents of clips or whole videos into mp4 files.

    Those of a dataset get the names of their videos, with ``.mp4`` in place of the ending, and the
    size, length and frame rate that were encoded; others are numbered.

    Args:
        model: what decodes.
        latents: latents, or a folder of them.
        out: a new or empty folder.
        runtime: device and precision.
        batch_size: latent steps at once.
        limit: how many clips or videos are decoded.
        norm: whose normalisation is undone first.
        rate: frames per second; where not given, those that were encoded, and ``USUAL_RATE`` where
            nobody says.
        as_frames: whether each becomes a folder of PNG files instead.
        tile: side of spatial tiles; see ``Stream``.

    Raises:
        UsageError: if they are no latents of this tokenizer, or ``out`` is not empty.
        RunError: if latents are not finite, or a file cannot be written.
    """
    folder = Path(out)
    check_decodable(model, latents, folder, limit, norm, tiled=tile is not None)
    clips = list(itertools.islice(_clips(model, latents, rate), limit))
    model = model.to(runtime.device)
    used: set[str] = set()
    done, total = 0, sum(clip.size[0] for clip in clips)
    for number, clip in enumerate(clips):
        ending = "" if as_frames else ".mp4"
        path = folder / file_name(clip.name, number, used, known=VIDEO_EXTENSIONS, ending=ending)
        pieces = _pieces(model, clip, norm, runtime, batch_size, tile)
        for frames in (_as_pictures if as_frames else _as_video)(path, clip, pieces):
            done += frames
            yield DecodedFrames(frames=done, total=total, videos=number)
        yield DecodedFrames(frames=done, total=total, videos=number + 1)


def _clips(model: RPiAE, latents: LatentDataset | Tensor, rate: Fraction | None) -> Iterator[_Clip]:
    """Every clip or video of some latents."""
    if not isinstance(latents, LatentDataset):
        size = _full_size(model, *latents.shape[2:])
        for name, values in zip(numbers(len(latents)), latents, strict=True):
            yield _Clip(
                name=name, size=size, rate=rate or USUAL_RATE, steps=values.shape[1],
                read=partial(_steps, values),
            )  # fmt: skip
        return
    if latents.windows is None:
        side = latents.index["image_size"]
        for item in range(len(latents)):
            yield _Clip(
                name=_of_clip(latents.name(item)), size=(latents.index["frames"], side, side),
                rate=rate or latents.frame_rate(item) or USUAL_RATE, steps=latents.latent_shape[1],
                read=partial(_item_steps, latents, item),
            )  # fmt: skip
        return
    for video in latents.windows.videos:
        yield _Clip(
            name=video.name, size=(video.frames, video.height, video.width),
            rate=rate or video.frame_rate, steps=video.latent_shape[1],
            read=partial(latents.windows.piece, video, latents.kind),
        )  # fmt: skip


def _of_clip(name: str) -> str:
    """The name of a clip without its video's ending: ``a@17`` of ``a.mp4@17``."""
    video, at, start = name.rpartition("@")
    stem, ending = os.path.splitext(video)
    return f"{stem}{at}{start}" if ending.lower() in VIDEO_EXTENSIONS else name


def _steps(values: Tensor, start: int, stop: int) -> Tensor:
    return values[:, start:stop]


def _item_steps(latents: LatentDataset, item: int, start: int, stop: int) -> Tensor:
    return latents.stored(item)[:, start:stop]


def _full_size(model: RPiAE, steps: int, height: int, width: int) -> tuple[int, int, int]:
    """(T, H, W) of all that latents of this size stand for."""
    frames, *sides = model.decoder.patch
    rows, columns = (
        n * model.bridge.downsampling * side for n, side in zip((height, width), sides, strict=True)
    )
    return (1 + (steps - 1) * temporal_downsampling(model.bridge)) * frames, rows, columns


def _pieces(
    model: RPiAE,
    clip: _Clip,
    norm: RPiAE | LatentDataset | None,
    runtime: Runtime,
    batch_size: int | None,
    tile: int | None,
) -> Iterator[Float[Tensor, "3 t h w"]]:
    """The frames of a clip in order, in fp32, some at a time; none where no frame is complete."""
    frames, height, width = clip.size

    def ready(start: int, stop: int) -> Tensor:
        latent = clip.read(start, stop).unsqueeze(0).to(runtime.device)
        return decodable(model, latent, [clip.name], norm)

    if model.decoder.patch[0] > 1:  # several frames per token are decoded in one pass
        with torch.no_grad(), runtime.autocast():
            made = model.decode(ready(0, clip.steps), size=clip.size)
        yield made[0].float()
        return
    many = batch_size or _steps_at_once(model, height, width)
    with model.stream(tile=tile, size=(height, width)) as stream:
        for start in range(0, clip.steps, many):
            latent = ready(start, min(start + many, clip.steps))
            with runtime.autocast():
                made = stream.decode(latent, frames=frames)
            yield made[0].float()


def _steps_at_once(model: RPiAE, height: int, width: int) -> int:
    """Latent steps that are decoded together, where nobody says how many."""
    frames = frames_at_once(model, (height, width))
    return max(1, frames // temporal_downsampling(model.bridge))


def _as_video(path: Path, clip: _Clip, pieces: Iterable[Tensor]) -> Iterator[int]:
    """Write a clip as a video file; gives the frames of each piece that is written."""
    _, height, width = clip.size
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    with VideoWriter(path, rate=clip.rate, height=height, width=width) as writer:
        for piece in pieces:
            pixels = (piece.clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0)
            writer.write(np.ascontiguousarray(pixels.cpu().numpy()))
            yield len(pixels)


def _as_pictures(path: Path, clip: _Clip, pieces: Iterable[Tensor]) -> Iterator[int]:
    """Write a clip as a folder of numbered PNG files; gives the frames of each piece."""
    names = iter(numbers(clip.size[0]))
    for piece in pieces:
        for image in piece.unbind(1):
            save_picture(image, path / f"{next(names)}.png")
        yield piece.shape[1]
