"""``rpiae stats``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rpiae.cli.encode import dataset, statistics_table, video_options
from rpiae.cli.options import dataset_options, positive
from rpiae.cli.progress import Bar
from rpiae.cli.screen import stderr, stdout
from rpiae.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from rpiae.core.model.tokenizer import RPiAE


def options(parser: argparse.ArgumentParser) -> None:
    """A dataset through a tokenizer, or its latents, and what is done with the numbers."""
    dataset_options(parser)
    video_options(parser)
    parser.add_argument(
        "--images", type=positive, metavar="N",
        help="look at N images, clips or whole videos, always the same",
    )  # fmt: skip
    parser.add_argument("--posterior", choices=["mode", "sample"], default="mode")
    parser.add_argument("--dry-run", action="store_true", help="print and store nothing")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Measure latent_norm, print it, and store it with the tokenizer."""
    from rpiae.core.model.folders import load_tokenizer, save_tokenizer, tokenizer_folder
    from rpiae.core.model.places import is_borrowed
    from rpiae.latents.layout import INDEX_FILE
    from rpiae.latents.statistics import latent_norm

    folder = tokenizer_folder(arguments.run)
    if is_borrowed(folder) and not arguments.dry_run:
        raise UsageError(
            f"{arguments.run} is not yours to write in, so its statistics cannot be stored there: add --dry-run, "
            "or name a copy of it, which rpiae.save(rpiae.load(...), FOLDER) makes"
        )
    model = load_tokenizer(folder)
    made = Path(arguments.data)
    from_latents = (made / INDEX_FILE).is_file()
    mean, std, count = (
        _of_latents(arguments, model) if from_latents else _measured(arguments, model)
    )
    stored_mean, stored_std = latent_norm(mean, std)
    model = model.cpu()
    model.register_buffer("latent_mean", stored_mean)
    model.register_buffer("latent_std", stored_std)
    if not arguments.dry_run:
        save_tokenizer(model, folder)
    if arguments.json:
        report = {
            "tokenizer": str(folder), "data": arguments.data, "count": count,
            "mean": mean.tolist(), "std": std.tolist(), "stored": not arguments.dry_run,
        }  # fmt: skip
        print(json.dumps(report, indent=2))
        return 0
    stdout.print(statistics_table(mean.tolist(), std.tolist()))
    dead = [str(channel) for channel, value in enumerate(std.tolist()) if value == 0]
    if dead:
        stderr.print(f"note: channels that never vary, stored with std 1: {', '.join(dead)}")
    where = "not stored (--dry-run)" if arguments.dry_run else f"stored in {folder} as latent_norm"
    stdout.print(f"over {count} values per channel; {where}", soft_wrap=True)
    return 0


def _measured(arguments: argparse.Namespace, model: RPiAE) -> tuple[Tensor, Tensor, int]:
    from rpiae.core.runtime.processes import Runtime
    from rpiae.latents.encoding import Measured, measure_latents
    from rpiae.latents.layout import Settings
    from rpiae.latents.video.encoding import measure_videos
    from rpiae.latents.video.source import WholeVideos

    found, _ = dataset(arguments, model)
    runtime = Runtime(device=arguments.device, precision=arguments.precision)
    started = time.perf_counter()
    with Bar("stats") as bar:
        for notice in found.notices:
            bar.say(notice)

        def progress(event: Measured) -> None:
            for reason in event.skipped:
                bar.say(f"skipped: {reason}")
            rate = event.done / (time.perf_counter() - started)
            if isinstance(found, WholeVideos):
                bar.show(event.done, event.total, f"{rate:.3g} videos/s")
            else:
                bar.images(event.done, event.total, rate)

        if isinstance(found, WholeVideos):
            settings = Settings(posterior=arguments.posterior, seed=arguments.seed)
            statistics = measure_videos(
                model, found, runtime=runtime, num_videos=arguments.images, settings=settings,
                batch_size=arguments.batch_size, tile=arguments.tile, progress=progress,
            )  # fmt: skip
        else:
            statistics = measure_latents(
                model, found, runtime=runtime, num_images=arguments.images,
                posterior=arguments.posterior, seed=arguments.seed,
                batch_size=arguments.batch_size, progress=progress,
            )  # fmt: skip
    return statistics.mean, statistics.std, statistics.count


def _of_latents(arguments: argparse.Namespace, model: RPiAE) -> tuple[Tensor, Tensor, int]:
    """What ``rpiae encode`` measured while it wrote a folder of latents."""
    import torch

    from rpiae.latents import LatentDataset
    from rpiae.latents.encoding import tokenizer_digest

    latents = LatentDataset(arguments.data)
    about = ("images", "image_size", "resize", "crop", "workers", "tile")
    useless = [f"--{k.replace('_', '-')}" for k in about if getattr(arguments, k) is not None]
    useless += ["--clips"] if arguments.clips else []
    useless += ["--set"] if arguments.overrides else []
    if useless:
        raise UsageError(
            f"{arguments.data} holds latents, whose statistics are known: leave out "
            f"{' and '.join(useless)}"
        )
    if latents.index["tokenizer"]["sha256"] != tokenizer_digest(model):
        raise UsageError(
            f"{arguments.data} was made by another tokenizer ({latents.index['tokenizer']['path']}) "
            f"than the one in {arguments.run}"
        )
    statistics = latents.index["statistics"]
    mean, std = (torch.tensor(statistics[k], dtype=torch.float64) for k in ("mean", "std"))
    return mean, std, int(statistics["count"])
