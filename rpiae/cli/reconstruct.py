"""``rpiae reconstruct``."""

from __future__ import annotations

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rpiae.cli.options import nonempty, positive, rate
from rpiae.cli.progress import Bar
from rpiae.cli.screen import duration, stderr, stdout
from rpiae.core.errors import DataError, RunError, UsageError

if TYPE_CHECKING:
    from rpiae.core.model.tokenizer import RPiAE
    from rpiae.data.video.contracts import Video, VideoFacts
    from rpiae.evaluation.clip_pictures import SpaceTimeSlice


def options(parser: argparse.ArgumentParser) -> None:
    """A tokenizer, a photograph or a clip, and where what becomes of it goes."""
    parser.add_argument(
        "run", help="a run's or tokenizer's folder, or user/name[@revision] of the hub"
    )
    parser.add_argument("source", help="a photograph, a video file or a folder of numbered frames")
    parser.add_argument(
        "--out", metavar="FILE", type=nonempty,
        help="side-by-side picture of a photograph (.png), or video of a clip (.mp4, .m4v, .mov, .mkv) "
        "(default: the source's name with -reconstructed, here)",
    )  # fmt: skip
    parser.add_argument("--tile", action="store_true", help="in blended, overlapping tiles")
    parser.add_argument("--device", default="auto")
    clips = parser.add_argument_group("clips")
    clips.add_argument(
        "--side-by-side", action="store_true", help="write the original beside the reconstruction"
    )
    clips.add_argument(
        "--slice", metavar="PNG", type=nonempty,
        help="a picture of the middle column over time, the original's above the reconstruction's",
    )  # fmt: skip
    clips.add_argument("--start", type=seconds, default=0.0, metavar="S", help="begin at S seconds")
    clips.add_argument("--frames", type=positive, metavar="N", help="the first N frames from there")
    clips.add_argument(
        "--frame-rate", type=rate, metavar="FPS", help="of a folder of frames (default: 25)"
    )


def seconds(word: str) -> float:
    """A time from 0 on; the type of an option."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 on, got {word!r}")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Reconstruct a photograph or a clip."""
    from rpiae.core.model.folders import load_tokenizer
    from rpiae.core.runtime.devices import choose_device
    from rpiae.data.video.writing import WRITTEN

    source = Path(arguments.source)
    out = Path(arguments.out) if arguments.out else _own_name(source)
    clip = out.suffix.lower() in WRITTEN
    if clip:
        _check_clip(source, out)
    else:
        _check_photograph(arguments, source, out)
    for written in [out, *([Path(arguments.slice)] if arguments.slice else [])]:
        _check_place(written, source, "clip" if clip else "photograph")
    if arguments.slice and Path(arguments.slice).resolve() == out.resolve():
        raise UsageError(f"--slice and --out are the same file, {out}: name another one")
    _check_picture(Path(arguments.slice) if arguments.slice else None if clip else out)
    model = load_tokenizer(arguments.run).to(choose_device(arguments.device))
    return _clip(arguments, model, source, out) if clip else _photograph(arguments, model, out)


def _own_name(source: Path) -> Path:
    """Where a reconstruction goes when nobody says: into the current folder.

    Raises:
        UsageError: if something is there already.
    """
    from rpiae.data.video.files import VIDEO_EXTENSIONS

    clip = source.is_dir() or source.suffix.lower() in VIDEO_EXTENSIONS
    out = Path(f"{source.stem}-reconstructed{'.mp4' if clip else '.png'}")
    if out.exists():
        raise UsageError(f"{out} is there already: name another file with --out, or remove it")
    return out


def _check_clip(source: Path, out: Path) -> None:
    """Refuse an image where a clip is to be written.

    Raises:
        UsageError: if the source is one.
    """
    from rpiae.data.sources import EXTENSIONS
    from rpiae.data.video.files import VIDEO_EXTENSIONS

    ending = source.suffix.lower()
    if ending in EXTENSIONS and ending not in VIDEO_EXTENSIONS and source.is_file():
        raise UsageError(
            f"{source} is an image: --out {out} must be the name of a picture, such as "
            f"{out.with_suffix('.png')}"
        )


def _check_picture(written: Path | None) -> None:
    """Refuse a name that is of no picture, before anything is made for it.

    Raises:
        UsageError: if no pictures are written that end so.
    """
    from PIL import Image

    if written is None:
        return
    kind = Image.registered_extensions().get(written.suffix.lower())
    if kind not in Image.SAVE:
        raise UsageError(
            f"cannot write {written}: the names of pictures end in .png, .jpg or .webp"
        )


def _check_photograph(arguments: argparse.Namespace, source: Path, out: Path) -> None:
    """Refuse what only clips have.

    Raises:
        UsageError: if the source is a clip, or an option is for clips.
    """
    from rpiae.data.video.files import VIDEO_EXTENSIONS
    from rpiae.data.video.writing import WRITTEN

    moving = source.suffix.lower() in VIDEO_EXTENSIONS and source.suffix.lower() != ".gif"
    if source.is_dir() or moving:
        raise UsageError(f"{source} is a clip: --out {out} must end in {', '.join(WRITTEN)}")
    given = {
        "--side-by-side": arguments.side_by_side, "--slice": arguments.slice,
        "--start": arguments.start, "--frames": arguments.frames,
        "--frame-rate": arguments.frame_rate,
    }  # fmt: skip
    if of_clips := [option for option, value in given.items() if value]:
        raise UsageError(
            f"{', '.join(of_clips)}: for clips, whose --out ends in {', '.join(WRITTEN)}, not for "
            f"the picture {out}"
        )


def _check_place(written: Path, source: Path, kind: str) -> None:
    """Refuse to write where nothing can be, or over the source.

    Raises:
        UsageError: if there is no such folder, or the file is the source or in it.
    """
    if not written.parent.is_dir():
        raise UsageError(f"cannot write {written}: there is no folder {written.parent}")
    if written.exists() and source.exists():
        if written.samefile(source):
            raise UsageError(f"--out {written} is the {kind} itself: name another file")
        if source.is_dir() and written.parent.samefile(source):
            raise UsageError(f"{written} is one of the clip's own frames: name another file")


def _check_tokens(arguments: argparse.Namespace, model: RPiAE, height: int, width: int) -> None:
    """Refuse pictures too large for one pass, and say where a pass is unlike training.

    Raises:
        UsageError: if there are too many tokens, and no tiles.
    """
    from rpiae.core.model.one_pass import beyond_training, check_one_pass

    if arguments.tile:
        return
    check_one_pass(model, height, width, name=arguments.source)
    if text := beyond_training(model, height, width):
        _note(text)


def _note(text: str) -> None:
    stderr.print(f"note: {text}", soft_wrap=True)


def _photograph(arguments: argparse.Namespace, model: RPiAE, out: Path) -> int:
    """Reconstruct one photograph and write it beside the original."""
    import torch

    from rpiae.core.model.geometry import to_8_bits
    from rpiae.data.images import decode
    from rpiae.evaluation.pictures import side_by_side
    from rpiae.evaluation.pixels import psnr_of
    from rpiae.evaluation.tiles import reconstruct_tiled

    pixels = torch.from_numpy(decode(Path(arguments.source)).copy())
    image = pixels.permute(2, 0, 1)[None].float() / 255
    height, width = image.shape[-2:]
    _check_tokens(arguments, model, height, width)
    with torch.no_grad():
        if arguments.tile:
            tile = model.trained_size or 256
            made = reconstruct_tiled(model, image.to(model.device), tile=tile)
        else:
            made = model.reconstruct(image.to(model.device))
    made = to_8_bits(made.cpu())
    psnr = psnr_of((made.double() - image.double()).square().mean()).item()
    try:
        side_by_side([image[0], made[0]]).save(out)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot write {out}: {error}") from None
    shape = "×".join(map(str, model.latent_shape(height, width)))
    how = "in tiles" if arguments.tile else f"through a latent of {shape}"
    stdout.print(f"{out}: {height}×{width} {how}, PSNR {psnr:.2f} dB", soft_wrap=True)
    return 0


def _clip(arguments: argparse.Namespace, model: RPiAE, source: Path, out: Path) -> int:
    """Reconstruct a clip, write it, and say what became of it."""
    from rpiae.data.video.files import USUAL_RATE, open_video
    from rpiae.data.video.frame_folder import open_frame_folder
    from rpiae.evaluation.clip_pictures import SpaceTimeSlice

    folder = source.is_dir()
    if arguments.frame_rate and not folder:
        raise UsageError(f"--frame-rate is for folders of frames; {source} says its own")
    video: Video = (
        open_frame_folder(source, rate=arguments.frame_rate or USUAL_RATE)
        if folder
        else open_video(source)
    )
    over_time = SpaceTimeSlice() if arguments.slice else None
    with video:
        _check_tokens(arguments, model, video.facts.height, video.facts.width)
        summary = _written(arguments, model, video, out, over_time)
        if video.problem:
            _note(video.problem)
    stdout.print(summary, soft_wrap=True)
    if over_time is not None:
        _save(over_time, Path(arguments.slice))
    return 0


def _written(
    arguments: argparse.Namespace, model: RPiAE, video: Video, out: Path,
    over_time: SpaceTimeSlice | None,
) -> str:  # fmt: skip
    """Reconstruct and write a clip piece by piece; what is to be said of it."""
    import numpy as np

    from rpiae.data.video.shown import ShownTimes
    from rpiae.data.video.writing import VideoWriter
    from rpiae.evaluation.clip_pictures import beside
    from rpiae.evaluation.clip_reconstruction import reconstructed_frames
    from rpiae.evaluation.pictures import GAP
    from rpiae.evaluation.pixels import psnr_of

    facts, count, errors = video.facts, 0, 0.0
    tile = (model.trained_size or 256) if arguments.tile else None
    if model.encoder.patch[0] > 1:
        _note("this tokenizer's encoder looks at the whole clip: it goes in one pass")
    writer = VideoWriter(
        out, rate=facts.rate, height=facts.height,
        width=2 * facts.width + GAP if arguments.side_by_side else facts.width,
        audio_from=Path(arguments.source) if facts.audio else None, audio_start=arguments.start,
    )  # fmt: skip
    times = ShownTimes(facts.rate)
    frames = times.watched(itertools.islice(video.frames(arguments.start), arguments.frames))
    total, began = _expected(arguments, facts), time.monotonic()
    with writer, Bar("frames") as bar:
        for original, made in reconstructed_frames(model, frames, tile=tile, name=video.name):
            errors += np.square(made.astype(np.float64) - original).sum().item()
            count += len(made)
            writer.write(beside(original, made) if arguments.side_by_side else made)
            if over_time is not None:
                over_time.add(original, made)
            speed = count / max(time.monotonic() - began, 1e-6)
            left = duration(max(0, total - count) / speed)
            bar.show(count, max(total, count), f"{speed:.3g} frames/s · {left} left")
        if not count:
            raise DataError(f"{video.name}: there is no frame at {arguments.start:g} s or later")
    if varying := times.varying():
        _note(varying)
    psnr = psnr_of(errors / (count * facts.height * facts.width * 3 * 255**2)).item()
    how = ", in tiles" if arguments.tile else ""
    sound = {"none": ""}.get(writer.audio, f", sound {writer.audio}")
    return (
        f"{out}: {count} frame{'s' * (count > 1)} of {facts.height}×{facts.width}{how}, PSNR "
        f"{psnr:.2f} dB{sound}"
    )


def _expected(arguments: argparse.Namespace, facts: VideoFacts) -> int:
    """How many frames there will be, as far as anybody knows."""
    known = facts.frames or round((facts.seconds or 0.0) * float(facts.rate))
    left: int = max(0, known - round(arguments.start * float(facts.rate)))
    most: int | None = arguments.frames
    return left if most is None else min(left, most)


def _save(over_time: SpaceTimeSlice, path: Path) -> None:
    try:
        over_time.picture().save(path)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot write {path}: {error}") from None
    stdout.print(
        f"{path}: the middle column over time, original above reconstruction", soft_wrap=True
    )
