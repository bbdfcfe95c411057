"""Whole videos to latents and their statistics, through a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from jaxtyping import UInt8
from torch import Tensor

from rpiae.core.errors import DataError, UsageError
from rpiae.core.model.contracts import Posterior
from rpiae.core.model.one_pass import beyond_training, check_one_pass
from rpiae.core.model.streaming import TOKENS_AT_ONCE
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.devices import sent
from rpiae.core.runtime.draws import SampleDraws
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.feed import as_floats
from rpiae.data.orders import sampled
from rpiae.latents.encoding import Measured, add_stored, stored_values
from rpiae.latents.layout import Settings
from rpiae.latents.statistics import ChannelStatistics
from rpiae.latents.video.source import WholeVideos

#: Frames that are looked at together, at most; small ones would fill the memory with their bytes.
MOST_FRAMES = 64


def check_streams(model: RPiAE) -> None:
    """Refuse a tokenizer that sees whole clips alone.

    Raises:
        UsageError: if its encoder takes several frames per token.
    """
    frames = model.encoder.patch[0]
    if frames > 1:
        raise UsageError(
            f"the encoder takes {frames} frames per token and looks at whole clips, so videos of any "
            "length cannot be streamed through it: encode clips of one length with --clips"
        )


def check_sizes(
    model: RPiAE, videos: WholeVideos, *, tile: int | None, positions: Iterable[int] | None = None
) -> str:
    """Refuse videos whose frames are too large for one pass, before any of them is encoded; what is
    to be said of the others, if anything.

    The header of every video is read, except where frames go through in tiles. One that cannot be
    read is passed over: it is left out, with the reason, when its turn comes.

    Args:
        model: what encodes.
        videos: the videos.
        tile: side of spatial tiles; see ``Stream``.
        positions: which of the videos; all where not given.

    Raises:
        UsageError: if a frame has too many tokens.
    """
    if tile is not None:
        return ""
    said = ""
    checked: set[tuple[int, int]] = set()
    for position in range(len(videos)) if positions is None else positions:
        try:
            with videos.open(position) as video:
                size = videos.size(video)
        except DataError:
            continue
        if size not in checked:
            check_one_pass(model, *size, name=videos.name(position))
            said = said or beyond_training(model, *size)
            checked.add(size)
    return said


def frames_at_once(model: RPiAE, size: tuple[int, int]) -> int:
    """Frames of this size that are read and encoded together, where nobody says how many."""
    _, rows, columns = model.geometry(*size).grid
    return max(1, min(MOST_FRAMES, TOKENS_AT_ONCE // (rows * columns)))


def latent_pieces(
    model: RPiAE,
    chunks: Iterable[UInt8[Tensor, "1 3 t h w"]],
    *,
    position: int,
    settings: Settings,
    runtime: Runtime,
    tile: int | None = None,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The latents of one video, piece by piece, as soon as they are complete.

    Args:
        model: what encodes, on the runtime's device.
        chunks: its frames, any number at a time.
        position: of the video in its source; it and a latent's step name the random draws.
        settings: what is stored.
        runtime: device and precision.
        tile: see ``Stream``.

    Yields:
        Frames that went in since the last piece, and tensors (1, C, k, h, w) in fp32 on CPU by their
        names; k may be 0.
    """
    suffixes = ("", "_flipped") if settings.flip else ("",)
    step = 0

    def piece(posteriors: Mapping[str, Posterior]) -> dict[str, Tensor]:
        nonlocal step
        found: dict[str, Tensor] = {}
        for suffix, posterior in posteriors.items():
            noise = _noise(settings.seed, position, step, f"posterior{suffix}")
            values = stored_values(posterior, settings, noise)
            found |= {f"{name}{suffix}": v.float().cpu() for name, v in values.items()}
        step += next(iter(found.values())).shape[2]
        return found

    with contextlib.ExitStack() as stack:
        streams = {suffix: stack.enter_context(model.stream(tile=tile)) for suffix in suffixes}
        for chunk in chunks:
            clip = as_floats(sent(chunk, runtime.device))
            with runtime.autocast():
                posteriors = {
                    suffix: stream.encode(clip.flip(-1) if suffix else clip)
                    for suffix, stream in streams.items()
                }
            yield chunk.shape[2], piece(posteriors)
        if streams[""].frames:
            with runtime.autocast():
                posteriors = {suffix: stream.finish() for suffix, stream in streams.items()}
            yield 0, piece(posteriors)


def _noise(seed: int, position: int, first: int, purpose: str) -> Callable[[Tensor], Tensor]:
    """Noise for latents (1, C, k, h, w) of a video from a step on: each step has a draw of its own."""

    def drawn(mode: Tensor) -> Tensor:
        steps = range(first, first + mode.shape[2])
        draws = SampleDraws(seed, ("latents", position), steps)
        return draws.normal_like(mode[0].transpose(0, 1), purpose).transpose(0, 1).unsqueeze(0)

    return drawn


def measure_videos(
    model: RPiAE,
    videos: WholeVideos,
    *,
    runtime: Runtime,
    num_videos: int | None = None,
    settings: Settings,
    batch_size: int | None = None,
    tile: int | None = None,
    progress: Callable[[Measured], None] = lambda _: None,
) -> ChannelStatistics:
    """Statistics of the latents of whole videos, without storing these.

    Args:
        model: what encodes.
        videos: the videos.
        runtime: device and precision.
        num_videos: how many are looked at, drawn at random but always the same; all where not given.
        settings: mode, or samples from the seed.
        batch_size: frames at once.
        tile: see ``Stream``.
        progress: is told after every video.

    Raises:
        DataError: if no video can be used.
        UsageError: if the tokenizer cannot stream, or frames are too large for one pass.
    """
    check_streams(model)
    chosen = sampled(len(videos), num_videos or len(videos))
    check_sizes(model, videos, tile=tile, positions=chosen)
    model = model.to(runtime.device)
    found = ChannelStatistics(model.bridge.latent_channels)
    for done, position in enumerate(chosen, start=1):
        skipped: tuple[str, ...] = ()
        own = ChannelStatistics(model.bridge.latent_channels)
        try:
            with videos.open(position) as video:
                size = batch_size or frames_at_once(model, videos.size(video))
                for _, tensors in latent_pieces(
                    model, videos.chunks(video, size), position=position, settings=settings,
                    runtime=runtime, tile=tile,
                ):  # fmt: skip
                    add_stored(own, tensors, settings)
            found.merge(own)
        except DataError as error:
            skipped = (str(error),)
        progress(Measured(done=done, total=len(chosen), skipped=skipped))
    if not found.count:
        raise DataError(none_usable(videos.location, len(chosen)))
    return found


def none_usable(location: str, number: int) -> str:
    """Message for videos of which none can be used."""
    return f"none of {number} videos of {location} can be used; see above what is wrong with each"
