"""``rpiae decode``."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from rpiae.cli.options import computing_options, nonempty, positive
from rpiae.cli.progress import Bar
from rpiae.cli.screen import stderr, stdout
from rpiae.core.errors import CheckpointError, UsageError


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
    computing_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Decode a folder or a file of latents into PNG files."""
    from rpiae.core.model.folders import load_tokenizer
    from rpiae.core.runtime.processes import Runtime
    from rpiae.latents import LatentDataset
    from rpiae.latents.decoding import decode_latents, read_tensor
    from rpiae.latents.encoding import TOKENS_PER_BATCH, tokenizer_digest

    source = Path(arguments.latents)
    latents = read_tensor(source) if source.is_file() else LatentDataset(source)
    made_by = latents.index["tokenizer"] if isinstance(latents, LatentDataset) else None
    run = arguments.run or (made_by and made_by["path"])
    if run is None:
        raise UsageError(f"{source} does not say what made it: name a tokenizer with --run")
    try:
        model = load_tokenizer(run)
    except CheckpointError as error:
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
    if arguments.normalised and arguments.normalised_by:
        raise UsageError("--normalised and --normalised-by exclude each other")
    norm = model if arguments.normalised else None
    by = LatentDataset(arguments.normalised_by) if arguments.normalised_by else None
    if isinstance(latents, LatentDataset) and (norm or by):
        raise UsageError(
            f"the latents in {source} are not normalised: leave out --normalised and --normalised-by"
        )
    shape = latents.latent_shape if isinstance(latents, LatentDataset) else latents.shape[1:]
    runtime = Runtime(device=arguments.device, precision=arguments.precision)
    size = arguments.batch_size or max(1, TOKENS_PER_BATCH // max(1, math.prod(shape[1:])))
    started, done = time.perf_counter(), 0
    with Bar("decode") as bar:
        for event in decode_latents(
            model, latents, arguments.out, runtime=runtime, batch_size=size,
            limit=arguments.limit, norm=norm or by,
        ):  # fmt: skip
            done = event.done
            bar.images(done, event.total, done / (time.perf_counter() - started))
    stdout.print(f"{arguments.out}: {done} pictures", soft_wrap=True)
    return 0
