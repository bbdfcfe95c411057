"""Videos through a tokenizer and back, piece by piece."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.streaming import reconstructed
from rpiae.core.model.tokenizer import RPiAE
from rpiae.data.images import Pixels
from rpiae.data.video.contracts import Frame

#: Pixels of the frames that are brought to the device at a time, and the most frames of them.
PIXELS_AT_ONCE, FRAMES_AT_ONCE = 1 << 21, 32

#: Tokens in one pass, for an encoder that looks at the whole clip; attention grows with their square.
MOST_CLIP_TOKENS = 1 << 14


def reconstructed_frames(
    model: RPiAE, frames: Iterable[Frame], *, tile: int | None = None, name: str = "the clip"
) -> Iterator[tuple[Pixels, Pixels]]:
    """The frames of a video and their reconstructions, as 8-bit pieces in step with each other.

    Memory does not grow with the video's length, except where the encoder takes several frames per
    token: it looks at the whole clip, which goes through in one pass then.

    Args:
        model: a tokenizer of clips, or of images, which goes frame by frame.
        frames: of one size.
        tile: side in pixels of overlapping tiles; None goes over whole frames.
        name: what messages call the video.

    Yields:
        Originals and reconstructions, (t, h, w, 3) each; together as many as there are.

    Raises:
        UsageError: if the encoder looks at the whole clip, and that is too long or to be tiled.
    """
    waiting: deque[Pixels] = deque()
    pieces = _pieces(frames, waiting, model.device)
    if model.encoder.patch[0] > 1:
        if tile is not None:
            raise UsageError(
                f"{name}: this tokenizer's encoder looks at the whole clip, which goes through in one "
                "pass: leave tiles out"
            )
        made = iter([_in_one_pass(model, pieces, name)])
    else:
        made = reconstructed(model, pieces, tile=tile)
    for piece in made:
        pixels = (piece[0] * 255).round().byte().permute(1, 2, 3, 0).cpu().numpy()
        originals = np.stack([waiting.popleft() for _ in range(len(pixels))])
        yield originals, np.ascontiguousarray(pixels)


def _pieces(
    frames: Iterable[Frame], waiting: deque[Pixels], device: torch.device
) -> Iterator[Float[Tensor, "1 3 t h w"]]:
    """Frames as clips in [0, 1]; each is put to those that wait for their reconstruction."""
    rest = iter(frames)
    while (first := next(rest, None)) is not None:
        height, width = first.pixels.shape[:2]
        count = max(1, min(FRAMES_AT_ONCE, PIXELS_AT_ONCE // (height * width)))
        piece = [
            frame.pixels for frame in itertools.chain([first], itertools.islice(rest, count - 1))
        ]
        waiting.extend(piece)
        clip = torch.from_numpy(np.stack(piece)).to(device)
        yield clip.permute(3, 0, 1, 2)[None].float() / 255


@torch.no_grad()
def _in_one_pass(model: RPiAE, pieces: Iterator[Tensor], name: str) -> Tensor:
    clip: list[Tensor] = []
    count = 0
    for piece in pieces:
        clip.append(piece)
        count += piece.shape[2]
        height, width = piece.shape[-2:]
        _, rows, columns = model.geometry(height, width).grid
        most = MOST_CLIP_TOKENS // (rows * columns) * model.encoder.patch[0]
        if count > most:
            raise UsageError(
                f"{name}: this tokenizer's encoder looks at the whole clip, which goes through in one "
                f"pass, of {MOST_CLIP_TOKENS:,} tokens at most: take {most} frames of {height}×{width} "
                "pixels or fewer (--frames)"
            )
    return model.reconstruct(torch.cat(clip, dim=2))
