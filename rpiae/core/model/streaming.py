"""Clips of any length through a tokenizer, piece by piece, in memory that does not grow with them.

What a stream gives is what the whole clip would, however it is cut: causal parts remember what they
need (``Past``), frames wait until their group is complete, and frames of images go on their own. In
tiles, each tile is a clip of its own that remembers for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from types import TracebackType
from typing import Protocol

import torch
from attrs import frozen
from jaxtyping import Float
from torch import Tensor

from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import Bridge, Decoder, Encoder, Features, Posterior
from rpiae.core.model.folding import fold
from rpiae.core.model.geometry import Geometry, pad_to
from rpiae.core.model.joining import joined_in_time, no_step_of
from rpiae.core.model.temporal import Past, temporal_downsampling
from rpiae.core.model.tiling import Tiling

#: Tokens that go through the parts at once, as far as whole groups of frames allow.
TOKENS_AT_ONCE = 8192


class Streamed(Protocol):
    """A tokenizer, as far as a stream needs it; ``RPiAE`` is one."""

    encoder: Encoder
    bridge: Bridge
    decoder: Decoder

    def geometry(self, height: int, width: int, frames: int = 1) -> Geometry: ...

    def features(self, images: Float[Tensor, "b 3 ..."]) -> Features: ...

    def posterior(self, features: Features, past: Past | None = None) -> Posterior: ...

    def expand(self, latent: Float[Tensor, "b c t h w"], past: Past | None = None) -> Features: ...

    def decode_features(
        self, features: Features, *, size: Sequence[int], past: Past | None = None
    ) -> Float[Tensor, "b 3 ..."]: ...


@frozen(kw_only=True)
class _Frame:
    """What all frames of a stream have in common: their size and how they are cut into tiles."""

    size: tuple[int, int]
    tiling: Tiling


class Stream:
    """One clip, or several of the same size, encoded and decoded piece by piece, without gradients.

    Encoding and decoding remember apart, so a stream may do one of them or both.

    Args:
        model: a tokenizer whose encoder takes frames one by one.
        tile: side in pixels of square tiles that overlap by at least a quarter, for frames too large
            for one pass; None goes over whole frames.
        size: (H, W) of the frames; only needed where nothing is encoded before it is decoded.

    Raises:
        UsageError: if the encoder takes several frames per token, so that it sees ahead, or tile or
            size are not whole numbers of pixels.
    """

    def __init__(
        self, model: Streamed, *, tile: int | None = None, size: tuple[int, int] | None = None
    ) -> None:
        if model.encoder.patch[0] > 1:
            raise UsageError(
                f"the encoder takes {model.encoder.patch[0]} frames per token and looks at the whole "
                "clip, so there is nothing to stream: encode the clip in one pass"
            )
        if tile is not None and not _is_length(tile):
            raise UsageError(
                f"tile is the side of a tile, a whole number of at least one pixel, not {tile!r}"
            )
        if size is not None and not _is_size(size):
            raise UsageError(
                f"size is (height, width) of the frames, in whole pixels of at least one, not {size!r}"
            )
        self._model = model
        self._tile = tile
        self._group = temporal_downsampling(model.bridge)
        self._frame = None if size is None else self._framed(size)
        self._waiting: Tensor | None = None
        self._latest: Posterior | None = None
        self._groups = 0
        self._frames = 0
        self._finished = self._closed = False
        self._decoded = 0
        self._encoding: list[Past] = []
        self._decoding: list[Past] = []

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Forget what was remembered; the stream is closed."""
        self._closed = True
        self._encoding, self._decoding, self._waiting, self._latest = [], [], None, None

    @property
    def frames(self) -> int:
        """How many frames were given to ``encode``."""
        return self._frames

    @torch.no_grad()
    def encode(self, chunk: Float[Tensor, "b 3 t h w"]) -> Posterior:
        """Posterior over the latents (b, C, k, h, w) that these frames complete; k may be 0.

        The first frame completes one, then every T frames do.

        Args:
            chunk: the next frames, in [0, 1].

        Raises:
            UsageError: if they are no clip, of another size than those before, or the clip is
                finished; the stream is as it was then.
        """
        self._check_open()
        if self._finished:
            raise UsageError("this clip is finished: begin another stream")
        frame = self._checked(chunk)
        self._frames += chunk.shape[2]
        waiting = chunk if self._waiting is None else torch.cat([self._waiting, chunk], dim=2)
        begins = not self._groups
        complete = waiting.shape[2] - (waiting.shape[2] - begins) % self._group
        self._waiting = waiting[:, :, complete:].clone()
        return self._encoded(waiting[:, :, :complete], frame)

    @torch.no_grad()
    def finish(self) -> Posterior:
        """Posterior over the clip's last latent, its group filled with the last frame; of no latent
        where no frame waits for its group.

        Raises:
            UsageError: if nothing was encoded.
        """
        self._check_open()
        if self._waiting is None or self._frame is None:
            raise UsageError("there is no clip: encode its frames first")
        self._finished = True
        waiting = self._waiting
        self._waiting = waiting[:, :, :0]
        if missing := -waiting.shape[2] % self._group:
            waiting = torch.cat([waiting, *[waiting[:, :, -1:]] * missing], dim=2)
        return self._encoded(waiting, self._frame)

    @torch.no_grad()
    def decode(
        self, latent: Float[Tensor, "b c k h w"], *, frames: int | None = None
    ) -> Float[Tensor, "b 3 t height width"]:
        """The frames of the clip's next latents, not clamped: of its first one 1, of others T.

        Args:
            latent: on the grid of ``encode``'s.
            frames: of the whole clip; none beyond are given. Not given, it is as many as were
                encoded, where that is finished.

        Raises:
            UsageError: if these are no latents of such frames, or nobody said how large they are.
        """
        self._check_open()
        frame = self._frame_of(latent)
        if frames is None and self._finished:
            frames = self._frames
        made = [
            self._pixels(piece, frame)
            for piece in torch.split(
                latent, self._at_once(frame, len(latent)) // self._group, dim=2
            )
            if piece.shape[2]
        ]
        empty = latent.new_zeros(len(latent), 3, 0, *frame.size)
        clip = torch.cat(made, dim=2) if made else empty
        left = clip.shape[2] if frames is None else max(0, frames - self._decoded)
        self._decoded += min(left, clip.shape[2])
        return clip[:, :, :left]

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(
                "this stream is closed and has forgotten the clip: begin another one, and use it inside "
                "its with block"
            )

    def _framed(self, size: tuple[int, int]) -> _Frame:
        plan = self._model.geometry(*size)
        (_, height, width), step = plan.padded, self._model.decoder.patch[1:]
        across = [side * self._model.bridge.downsampling for side in step]
        return _Frame(size=size, tiling=Tiling.over((height, width), step=across, tile=self._tile))

    def _checked(self, chunk: Tensor) -> _Frame:
        """How the chunk's frames are cut.

        Raises:
            UsageError: see ``encode``.
        """
        fits = chunk.ndim == 5 and chunk.shape[1] == 3 and chunk.shape[2] > 0
        if not fits or not chunk.is_floating_point():
            raise UsageError(
                "a stream takes the next frames of clips, float tensors (batch, 3, frames, height, "
                f"width) in [0, 1] of at least one frame, not {chunk.dtype} {tuple(chunk.shape)}"
            )
        size = (chunk.shape[3], chunk.shape[4])
        if self._frame is None:
            self._frame = self._framed(size)
        before = self._waiting
        if size != self._frame.size or (before is not None and len(before) != len(chunk)):
            batch = "" if before is None else f"{len(before)} clips of "
            raise UsageError(
                f"these are {len(chunk)} clips of {size[0]}×{size[1]} pixels and the frames before "
                f"{batch}{self._frame.size[0]}×{self._frame.size[1]}: one stream, one size"
            )
        return self._frame

    def _frame_of(self, latent: Tensor) -> _Frame:
        if self._frame is None:
            raise UsageError("how large are the frames? Give the stream their size (H, W)")
        grid, channels = self._frame.tiling.grid, self._model.bridge.latent_channels
        if latent.ndim != 5 or (latent.shape[1], *latent.shape[3:]) != (channels, *grid):
            raise UsageError(
                f"a stream of {self._frame.size[0]}×{self._frame.size[1]} pixels decodes latents "
                f"(batch, {channels}, steps, {grid[0]}, {grid[1]}), not {tuple(latent.shape)}"
            )
        return self._frame

    def _at_once(self, frame: _Frame, clips: int) -> int:
        """Frames of so many clips that go through the parts at once, in whole groups, at least one."""
        tokens = max(1, clips) * math.prod(frame.tiling.own) * self._model.bridge.downsampling**2
        return max(1, TOKENS_AT_ONCE // tokens // self._group) * self._group

    def _encoded(self, clip: Tensor, frame: _Frame) -> Posterior:
        """Posterior of whole groups of frames, some at a time; the first one is one frame."""
        if not clip.shape[2]:
            assert self._latest is not None  # the first frame completes a latent
            return no_step_of(self._latest)
        first = [] if self._groups else [1]
        most = self._at_once(frame, len(clip))
        many, rest = divmod(clip.shape[2] - len(first), most)
        sizes = [*first, *[most] * many, *[rest] * (rest > 0)]
        self._groups += math.ceil(clip.shape[2] / self._group)
        pieces = torch.split(clip, sizes, dim=2)
        self._latest = joined_in_time([self._of_piece(piece, frame) for piece in pieces])
        return self._latest

    def _of_piece(self, clip: Tensor, frame: _Frame) -> Posterior:
        tiling = frame.tiling
        self._encoding = self._encoding or [Past() for _ in tiling.places]
        frames = pad_to(fold(clip), tiling.size)
        tiles = zip(tiling.tiles(frames), self._encoding, strict=True)
        return tiling.stitched(
            [self._model.posterior(self._features(tile, clip), past) for tile, past in tiles]
        )

    def _features(self, frames: Float[Tensor, "bt 3 h w"], clip: Tensor) -> Features:
        """Features of folded frames, which are those of this clip or a tile of them."""
        tokens, (_, h, w) = self._model.features(frames)
        steps = clip.shape[2]
        return Features(tokens.reshape(len(clip), steps * h * w, tokens.shape[-1]), (steps, h, w))

    def _pixels(self, latent: Tensor, frame: _Frame) -> Tensor:
        tiling = frame.tiling
        self._decoding = self._decoding or [Past() for _ in range(2 * len(tiling.places))]
        pasts = zip(self._decoding[::2], self._decoding[1::2], strict=True)
        tiles = []
        for piece, (bridges, decoders) in zip(tiling.latent_tiles(latent), pasts, strict=True):
            features = self._model.expand(piece, bridges)
            size = (features.grid[0], *tiling.tile)
            tiles.append(self._model.decode_features(features, size=size, past=decoders))
        height, width = frame.size
        return tiling.blended(tiles)[..., :height, :width]


def _is_length(value: object) -> bool:
    """Whether it is a whole number of pixels, at least one."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_size(value: object) -> bool:
    """Whether it is a height and a width."""
    return isinstance(value, Sequence) and len(value) == 2 and all(map(_is_length, value))


def reconstructed(
    model: Streamed, chunks: Iterable[Float[Tensor, "b 3 t h w"]], *, tile: int | None = None
) -> Iterator[Float[Tensor, "b 3 t h w"]]:
    """A clip through the posterior's mode and back, clamped to [0, 1]; as many frames as there are.

    Args:
        model: the tokenizer.
        chunks: the clip's frames in [0, 1], in pieces of any length.
        tile: see ``Stream``.

    Yields:
        Pieces of the reconstruction, as soon as they are complete.
    """
    with Stream(model, tile=tile) as stream:
        for chunk in chunks:
            made = stream.decode(stream.encode(chunk).mode())
            if made.shape[2]:
                yield made.clamp(0, 1)
        if stream.frames:
            made = stream.decode(stream.finish().mode())
            if made.shape[2]:
                yield made.clamp(0, 1)
