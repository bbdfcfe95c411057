"""Causal compression of time around a bridge of images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rpiae.core.model import temporal
from rpiae.core.model.blocks import through
from rpiae.core.model.contracts import Bridge, Features, Fit, Fittable, Posterior
from rpiae.core.model.geometry import at_least_fp32
from rpiae.core.model.temporal import Past, TemporalBlock


class TemporalBridge(nn.Module):
    """A bridge of images that merges T frames of features before it and spreads them behind it.

    The first frame stands alone, then come groups of T: 1 + k·T steps give 1 + k latents. A group is
    merged to its last frame plus an MLP of the other frames' differences from it; a latent is spread
    to the T steps from its predecessor to itself, interpolated linearly, plus what an MLP makes of the
    two. On both sides, blocks along time (``TemporalBlock``) work at the rate of the latents, causally:
    a frame has a say in its own group and in what follows.

    All that is added to the bridge of images begins as nothing, and is nothing where nothing moves: a
    new bridge gives that bridge's latents of frames 0, T, 2T, …; and, with any weights, a static clip
    comes back static, an image being the shortest one.

    Args:
        image: the bridge of images; its blocks see each latent step on its own.
        temporal_downsampling: steps of tokens per latent step, T.
        window: latent steps that a block along time sees, its own included.
        depth: blocks along time each way.
        mlp_ratio: width of the MLPs over that of the features.

    Raises:
        ValueError: if the bridge inside compresses time itself, the features' channels do not suit the
            blocks' heads, or frames do not make whole groups.

    Source: ours; groups of 1 + k·T frames as in CogVideoX's and Wan's causal autoencoders.
    """

    def __init__(
        self,
        *,
        image: nn.Module,
        temporal_downsampling: int = 4,
        window: int = 4,
        depth: int = 2,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        assert isinstance(image, Bridge)
        if isinstance(image, temporal.TemporalBridge):
            raise ValueError(
                f"{type(image).__name__} compresses time itself, it is no bridge of images"
            )
        self.image = image
        self.features = width = image.features
        self.latent_channels = image.latent_channels
        self.gaussian = image.gaussian
        self.downsampling = image.downsampling
        self.temporal_downsampling = temporal_downsampling
        self.merge = Merge(width=width, steps=temporal_downsampling, hidden=int(width * mlp_ratio))
        self.before, self.after = (
            nn.ModuleList(
                TemporalBlock(
                    width=width, num_heads=min(8, max(1, width // 64)),
                    mlp_hidden=int(width * mlp_ratio), window=window,
                )
                for _ in range(depth)
            )
            for _ in range(2)
        )  # fmt: skip
        self.spread = Spread(
            width=width, steps=temporal_downsampling, hidden=int(width * mlp_ratio)
        )

    def encode(self, features: Features, past: Past | None = None) -> Posterior:
        """Posterior over the latents of 1 + k·T steps; with a past that has begun, of k·T."""
        tokens, (t, h, w) = features
        begins = past is None or past.get("encoded") is None
        if (t - begins) % self.temporal_downsampling:
            raise ValueError(
                f"{t} steps are not {'1 + ' if begins else ''}a multiple of "
                f"{self.temporal_downsampling}"
            )
        if past is not None:
            past.keep("encoded", tokens.new_ones(()))
        merged = self.merge(tokens.reshape(len(tokens), t, h * w, self.features), begins=begins)
        grid = (merged.shape[1], h, w)
        tokens = merged.flatten(1, 2)
        for i, block in enumerate(self.before):
            tokens = through(block, tokens, grid=grid, past=past, name=f"before.{i}")
        return self.image.encode(Features(tokens, grid))

    def decode(self, latent: Float[Tensor, "b c t h w"], past: Past | None = None) -> Features:
        """Features ẑ of 1 + k·T steps; with a past that has begun, of k·T."""
        tokens, grid = self.image.decode(latent)
        tokens = tokens.to(latent.dtype)
        for i, block in enumerate(self.after):
            tokens = through(block, tokens, grid=grid, past=past, name=f"after.{i}")
        (t, h, w), last = grid, None if past is None else past.get("decoded")
        ends = tokens.reshape(len(tokens), t, h * w, self.features)
        if past is not None:
            past.keep("decoded", ends[:, -1:])
        steps = at_least_fp32(self.spread(ends, last=last))
        return Features(steps.flatten(1, 2), (steps.shape[1], h, w))


class FittableTemporalBridge(TemporalBridge):
    """One around a bridge with an analytic fit, which a new one leaves as it is."""

    @property
    def fitted(self) -> Tensor:
        """Whether the bridge of images was fitted."""
        assert isinstance(self.image, Fittable)
        return self.image.fitted

    def fit(self, batches: Iterable[Features]) -> Fit:
        """Fit the bridge of images."""
        assert isinstance(self.image, Fittable)
        return self.image.fit(batches)


class Merge(nn.Module):
    """T steps of tokens to one: the last, plus an MLP of the others' differences from it.

    Args:
        width: channels of the tokens.
        steps: T; with 1 there is nothing to merge, and no MLP.
        hidden: width of the MLP's hidden layer.

    Shapes:
        (b, 1 + k·T, n, width) → (b, 1 + k, n, width), where the clip begins; else without the 1
    """

    def __init__(self, *, width: int, steps: int, hidden: int) -> None:
        super().__init__()
        self.steps = steps
        # Without biases, so that no differences give nothing.
        self.fc1 = nn.Linear((steps - 1) * width, hidden, bias=False) if steps > 1 else None
        self.fc2 = _nothing_yet(hidden, width) if steps > 1 else None

    def forward(
        self, tokens: Float[Tensor, "b t n w"], *, begins: bool
    ) -> Float[Tensor, "b k n w"]:
        """``begins``: whether the first step stands alone; it counts as T of its kind."""
        if self.fc1 is None or self.fc2 is None:
            return tokens
        if begins:
            tokens = torch.cat([*[tokens[:, :1]] * (self.steps - 1), tokens], dim=1)
        b, t, n, w = tokens.shape
        groups = tokens.view(b, t // self.steps, self.steps, n, w)
        last = groups[:, :, -1]
        others = (groups[:, :, :-1] - last.unsqueeze(2)).transpose(2, 3).flatten(3)
        return last + self.fc2(F.gelu(self.fc1(others)))  # type: ignore[no-any-return]  # nn.Module calls are Any


class Spread(nn.Module):
    """One step of tokens to T: on the way from the step before to it, straight, plus W(gelu(a + c) −
    gelu(a)), c a linear map of the change and a one of the step.

    Args:
        width: channels of the tokens.
        steps: T; with 1 nothing is spread, and there are no weights.
        hidden: width of the hidden layer.

    Shapes:
        (b, 1 + k, n, width) → (b, 1 + k·T, n, width), where the clip begins; else without the 1
    """

    def __init__(self, *, width: int, steps: int, hidden: int) -> None:
        super().__init__()
        self.steps = steps
        self.norm = nn.LayerNorm(width) if steps > 1 else None
        self.here = nn.Linear(width, hidden) if steps > 1 else None
        self.change = nn.Linear(width, hidden, bias=False) if steps > 1 else None
        self.out = _nothing_yet(hidden, steps * width) if steps > 1 else None

    def forward(
        self, ends: Float[Tensor, "b k n w"], *, last: Float[Tensor, "b 1 n w"] | None
    ) -> Float[Tensor, "b t n w"]:
        """``last``: the step before the first; where there is none, the first stands alone."""
        if self.norm is None or self.here is None or self.change is None or self.out is None:
            return ends
        first = ends[:, :1] if last is None else ends[:, :0]
        starts = torch.cat([first if last is None else last, ends], dim=1)[:, :-1]
        if last is None:
            starts, ends = starts[:, 1:], ends[:, 1:]
        change = ends - starts
        here = self.here(self.norm(ends))
        curved = self.out(F.gelu(here + self.change(change)) - F.gelu(here))
        b, k, n, w = ends.shape
        missing = 1 - torch.arange(1, self.steps + 1, device=ends.device) / self.steps
        straight = ends.unsqueeze(2) - missing.to(ends).view(-1, 1, 1) * change.unsqueeze(2)
        steps = straight + curved.view(b, k, n, self.steps, w).transpose(2, 3)
        return torch.cat([first, steps.flatten(1, 2)], dim=1)


def _nothing_yet(inputs: int, outputs: int) -> nn.Linear:
    """A linear map that begins at zero and has no bias."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
