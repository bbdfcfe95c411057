"""``rpiae reconstruct``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rpiae.cli.screen import stderr, stdout
from rpiae.core.errors import RunError, UsageError

#: Tokens above which one pass is refused: attention grows with their square.
MOST_TOKENS = 4096


def options(parser: argparse.ArgumentParser) -> None:
    """A tokenizer, a photograph, and where the picture goes."""
    parser.add_argument("run", help="a run's or tokenizer's folder")
    parser.add_argument("photo")
    parser.add_argument("--out", required=True, metavar="PNG", help="side-by-side picture")
    parser.add_argument("--tile", action="store_true", help="in blended, overlapping tiles")
    parser.add_argument("--device", default="auto")


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct one photograph and write it beside the original."""
    import torch

    from rpiae.core.model.folders import load_tokenizer
    from rpiae.core.model.geometry import to_8_bits
    from rpiae.core.runtime.devices import choose_device
    from rpiae.data.images import decode
    from rpiae.evaluation.pictures import side_by_side
    from rpiae.evaluation.pixels import psnr_of
    from rpiae.evaluation.tiles import reconstruct_tiled

    out = Path(arguments.out)
    if not out.parent.is_dir():
        raise UsageError(f"cannot write {out}: there is no folder {out.parent}")
    photo = Path(arguments.photo)
    if out.exists() and photo.exists() and out.samefile(photo):
        raise UsageError(f"--out {out} is the photograph itself: name another file")
    device = choose_device(arguments.device)
    model = load_tokenizer(arguments.run).to(device)
    pixels = torch.from_numpy(decode(photo).copy())
    image = pixels.permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[-2:]
    _, rows, columns = model.geometry(height, width).grid
    trained = model.trained_size
    if not arguments.tile:
        if rows * columns > MOST_TOKENS:
            raise UsageError(
                f"{arguments.photo} is {height}×{width} pixels, {rows * columns:,} tokens in one "
                f"pass; more than {MOST_TOKENS:,} are refused. Add --tile to go over it in blended, "
                "overlapping tiles"
            )
        if trained and max(height, width) > 2 * trained:
            stderr.print(
                f"note: this tokenizer was trained on {trained}×{trained} crops; in one pass, "
                f"{height}×{width} has positions it never saw. --tile keeps to what it knows."
            )
    with torch.no_grad():
        if arguments.tile:
            made = reconstruct_tiled(model, image.to(device), tile=trained or 256)
        else:
            made = model.reconstruct(image.to(device))
    made = to_8_bits(made.cpu())
    psnr = psnr_of((made.double() - image.double()).square().mean()).item()
    try:
        side_by_side([image[0], made[0]]).save(out)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot write {out}: {error}") from None
    shape = "×".join(map(str, model.latent_shape(height, width)))
    how = "in tiles" if arguments.tile else f"through a latent of {shape}"
    stdout.print(f"{out}: {height}×{width} {how}, PSNR {psnr:.2f} dB")
    return 0
