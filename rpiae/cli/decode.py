"""``rpiae decode``."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rpiae.cli.options import computing_options, nonempty, positive, rate
from rpiae.cli.progress import Bar
from rpiae.cli.screen import stderr, stdout
from rpiae.core.errors import CheckpointError, FetchError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from rpiae.core.model.tokenizer import RPiAE
    from rpiae.core.runtime.processes import Runtime
    from rpiae.latents import LatentDataset


def options(parser: argparse.ArgumentParser) -> None:
    """Latents, the tokenizer that decodes them, and how many go where."""
    parser.add_argument("latents", help="what encode wrote, or a .safetensors, .npy or .pt file")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=nonempty)
    parser.add_argument(
        "--run", metavar="FOLDER", type=nonempty, help="the tokenizer (default: its own)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="decode the first N")
    parser.add_argument(
        "--normalised", action="store_true", help="undo the tokenizer's latent_norm first"
    )
    parser.add_argument(
        "--normalised-by", metavar="FOLDER", type=nonempty,
        help="undo the normalisation of a folder of latents first",
    )  # fmt: skip
    parser.add_argument(
        "--frames", action="store_true", help="of videos: a folder of PNG files each, no mp4"
    )
    parser.add_argument(
        "--frame-rate", type=rate, metavar="R",
        help="of videos: frames per second (default: as encoded; 25 where nobody says)",
    )  # fmt: skip
    parser.add_argument(
        "--tile", type=positive, metavar="N",
        help="of videos: decode frames in overlapping tiles of N pixels a side (default: as encoded)",
    )  # fmt: skip
    computing_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decode a folder or a file of latents into PNG files, or those of videos into mp4 files."""
    from rpiae.core.runtime.processes import Runtime
    from rpiae.latents import LatentDataset
    from rpiae.latents.decoding import read_tensor

    source = Path(arguments.latents)
    latents = read_tensor(source) if source.is_file() else LatentDataset(source)
    model = _tokenizer(arguments, latents)
    if arguments.normalised and arguments.normalised_by:
        raise UsageError("--normalised and --normalised-by exclude each other")
    norm = model if arguments.normalised else None
    by = LatentDataset(arguments.normalised_by) if arguments.normalised_by else None
    if isinstance(latents, LatentDataset) and (norm or by):
        raise UsageError(
            f"the latents in {source} are not normalised: leave out --normalised and --normalised-by"
        )
    shape = latents.latent_shape if isinstance(latents, LatentDataset) else latents.shape[1:]
    if arguments.frames and arguments.frame_rate:
        raise UsageError("folders of frames have no frame rate: leave out --frame-rate or --frames")
    runtime = Runtime(device=arguments.device, precision=arguments.precision)
    if len(shape) == 4:
        _decode_videos(arguments, model, latents, runtime, norm or by)
        return 0
    given = {
        "--frames": arguments.frames,
        "--frame-rate": arguments.frame_rate,
        "--tile": arguments.tile,
    }
    if useless := [name for name, value in given.items() if value]:
        raise UsageError(f"{source} holds latents of images: leave out {' and '.join(useless)}")
    _decode_images(arguments, model, latents, runtime, norm or by)
    return 0


def _tokenizer(arguments: argparse.Namespace, latents: LatentDataset | Tensor) -> RPiAE:
    """The tokenizer that made some latents, or the one that is named instead."""
    from rpiae.core.model.folders import load_tokenizer
    from rpiae.core.model.places import recorded_word
    from rpiae.latents import LatentDataset
    from rpiae.latents.encoding import tokenizer_digest

    source = arguments.latents
    made_by = latents.index["tokenizer"] if isinstance(latents, LatentDataset) else None
    run = arguments.run or (made_by and recorded_word(made_by["path"]))
    if run is None:
        raise UsageError(f"{source} does not say what made it: name a tokenizer with --run")
    try:
        model = load_tokenizer(run)
    except (CheckpointError, FetchError) as error:
        if arguments.run is None:
            raise CheckpointError(
                f"the tokenizer that made {source} is gone or damaged ({error}): name it with --run"
            ) from None
        raise
    if made_by and made_by["sha256"] != tokenizer_digest(model):
        # The folder may be somebody else's, and its path means nothing here.
        if arguments.run is None:
            raise CheckpointError(
                f"the tokenizer in {run}, where {source} says that its own is, is another one: name "
                "the right one with --run"
            )
        stderr.print(
            f"note: {source} was made by another tokenizer than the one in {run}",
            soft_wrap=True,
        )
    return model


def _decode_images(
    arguments: argparse.Namespace,
    model: RPiAE,
    latents: LatentDataset | Tensor,
    runtime: Runtime,
    norm: RPiAE | LatentDataset | None,
) -> None:
    from rpiae.latents import LatentDataset
    from rpiae.latents.decoding import decode_latents
    from rpiae.latents.encoding import TOKENS_PER_BATCH

    shape = latents.latent_shape if isinstance(latents, LatentDataset) else latents.shape[1:]
    size = arguments.batch_size or max(1, TOKENS_PER_BATCH // max(1, math.prod(shape[1:])))
    started, done = time.perf_counter(), 0
    with Bar("decode") as bar:
        for event in decode_latents(
            model, latents, arguments.out, runtime=runtime, batch_size=size,
            limit=arguments.limit, norm=norm,
        ):  # fmt: skip
            done = event.done
            bar.images(done, event.total, done / (time.perf_counter() - started))
    stdout.print(f"{arguments.out}: {done} pictures", soft_wrap=True)


def _decode_videos(
    arguments: argparse.Namespace,
    model: RPiAE,
    latents: LatentDataset | Tensor,
    runtime: Runtime,
    norm: RPiAE | LatentDataset | None,
) -> None:
    from rpiae.latents import LatentDataset
    from rpiae.latents.video.decoding import decode_videos

    tile = arguments.tile
    if isinstance(latents, LatentDataset):
        tile = tile or latents.index.get("tile") or None
    started, frames, videos = time.perf_counter(), 0, 0
    with Bar("decode") as bar:
        for event in decode_videos(
            model, latents, arguments.out, runtime=runtime, batch_size=arguments.batch_size,
            limit=arguments.limit, norm=norm, rate=arguments.frame_rate,
            as_frames=arguments.frames, tile=tile,
        ):  # fmt: skip
            frames, videos = event.frames, event.videos
            speed = frames / (time.perf_counter() - started)
            remaining = (event.total - frames) / speed if speed else math.inf
            bar.frames(frames, event.total, speed, remaining)
    kind = "folders of frames" if arguments.frames else "videos"
    stdout.print(f"{arguments.out}: {videos} {kind}, {frames} frames", soft_wrap=True)
