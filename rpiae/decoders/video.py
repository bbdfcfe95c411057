"""A decoder of images that sees earlier frames."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model.blocks import through
from rpiae.core.model.contracts import Decoder, Features
from rpiae.core.model.geometry import Grid
from rpiae.core.model.temporal import LayeredDecoder, Past, TemporalBlock, TemporalDecoder

#: Blocks along time ahead of a decoder that lets nothing in between its layers.
AHEAD = 2


class VideoDecoder(nn.Module):
    """A decoder of images with blocks along time (``TemporalBlock``) between its layers.

    Where the decoder of images lets nothing in between (it is no ``LayeredDecoder``), they lie ahead of
    it, on the features. The blocks begin as nothing: a new decoder gives what that of images gives,
    frame by frame. With any weights, static features give a static clip.

    Where tokens stand for several frames, each is repeated so often first, plus a linear map of it per
    frame that begins at zero.

    Args:
        image: the decoder of images.
        frames: output frames per token.
        every: layers of the decoder of images from one block along time to the next.
        window: frames that a block along time sees, its own included.
        mlp_ratio: width of the blocks' MLPs over that of the tokens; 0 leaves them out.

    Shapes:
        tokens (b, n, D) on the grid (t, h, w) → (b, 3, t·frames, h·q, w·q)

    Raises:
        ValueError: if the decoder inside sees earlier frames itself, or a width does not suit the
            blocks' heads.

    Source: ours; temporal layers between the layers of an image model as in Video LDM
        (arXiv 2304.08818).
    """

    def __init__(
        self,
        *,
        image: nn.Module,
        frames: int = 1,
        every: int = 2,
        window: int = 8,
        mlp_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        assert isinstance(image, Decoder)
        if isinstance(image, TemporalDecoder):
            raise ValueError(
                f"{type(image).__name__} is no decoder of images: it sees earlier frames"
            )
        self.image = image
        self.features = image.features
        self.patch = (frames, *image.patch[1:])
        self.window = window
        widths = image.layer_widths if isinstance(image, LayeredDecoder) else ()
        # A block's number is that of the layer that it follows.
        self._places = tuple(range(every - 1, len(widths), every)) or tuple(range(len(widths)))[-1:]
        ahead = 0 if self._places else AHEAD
        self.blocks = nn.ModuleList(
            TemporalBlock(
                width=width, num_heads=_heads(width), mlp_hidden=int(width * mlp_ratio),
                window=window,
            )
            for width in [*(widths[i] for i in self._places), *[self.features] * ahead]
        )  # fmt: skip
        self.repeat = nn.Linear(self.features, frames * self.features) if frames > 1 else None
        if self.repeat is not None:
            nn.init.zeros_(self.repeat.weight)
            nn.init.zeros_(self.repeat.bias)

    @property
    def last_weight(self) -> nn.Parameter:
        """Weight of the layer that makes the pixels."""
        assert isinstance(self.image, Decoder)
        return self.image.last_weight

    def forward(self, features: Features, past: Past | None = None) -> Float[Tensor, "b 3 t h w"]:
        """Pixels in the encoder's normalised space."""
        features = self._per_frame(features)
        grid = features.grid

        def along_time(number: int, tokens: Tensor) -> Tensor:
            block = self.blocks[number]
            return through(block, tokens, grid=grid, past=past, name=f"blocks.{number}")

        if not self._places:
            tokens = features.tokens
            for number in range(len(self.blocks)):
                tokens = along_time(number, tokens)
            return self.image(Features(tokens, grid))  # type: ignore[no-any-return]  # nn.Module calls are Any

        def between(layer: int, tokens: Tensor) -> Tensor:
            if layer not in self._places:
                return tokens
            clips = tokens.reshape(len(features.tokens), math.prod(grid), tokens.shape[-1])
            return along_time(self._places.index(layer), clips).view_as(tokens)

        return self.image(features, between)  # type: ignore[no-any-return]  # nn.Module calls are Any

    def _per_frame(self, features: Features) -> Features:
        """Features with a step per frame."""
        if self.repeat is None:
            return features
        tokens, (t, h, w) = features
        frames = self.patch[0]
        steps = tokens.reshape(len(tokens), t, 1, h * w, self.features)
        own = self.repeat(steps).unflatten(-1, (frames, self.features)).squeeze(2).transpose(2, 3)
        grid: Grid = (t * frames, h, w)
        return Features((steps + own).flatten(1, 3), grid)


def _heads(width: int) -> int:
    """Heads of 64 channels, as far as they divide the width into even numbers."""
    heads = max(1, width // 64)
    while width % (2 * heads):
        heads -= 1
    return heads
