"""The game against a critic: both sides' losses, and the augmentation both look through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.clips import as_clip
from rpiae.core.model.contracts import StepContext
from rpiae.core.model.folding import fold
from rpiae.core.model.geometry import at_least_fp32
from rpiae.core.runtime.draws import StepRandomness

#: Largest shift of the translation, over the side of the image.
SHIFT = 1 / 8

#: Side of the square that is cut out, over the side of the image.
CUT = 1 / 2

Objective = Literal["hinge", "non-saturating"]
Augmentation = Literal["translation", "colour", "cutout"]


class AdversarialLoss:
    """How much the critic takes reconstructions for reconstructions.

    With ``hinge`` (L_gan of arXiv 2603.19206) it is −mean(D(x̂)), and the critic's own loss is
    ½ · (mean relu(1 − D(x)) + mean relu(1 + D(x̂))). With ``non-saturating`` it is
    mean softplus(−D(x̂)) against ½ · (mean softplus(−D(x)) + mean softplus(D(x̂))).

    Args:
        objective: which of the two.
        augment: what is done to every image before the critic sees it, reconstructions included:
            translation, then colour, then cutout, as far as named; differentiable augmentation
            (arXiv 2006.10738). The colours of what a translation brings in change with the image's.
    """

    def __init__(self, *, objective: Objective, augment: Sequence[Augmentation]) -> None:
        self._hinge = objective == "hinge"
        self._augment = tuple(augment)

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert context.reconstruction is not None
        assert context.critic is not None
        made = as_clip(context.reconstruction)
        draws = context.draws.of_frames(made.shape[2])
        shown = self.augmented(fold(made), draws, "critic-model")
        logits = at_least_fp32(context.critic(shown))
        return -logits.mean() if self._hinge else F.softplus(-logits).mean()

    def critic_loss(
        self, real: Float[Tensor, "b k"], made: Float[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        """The critic's own loss, from its logits of images and of reconstructions."""
        if self._hinge:
            return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2
        return (F.softplus(-real).mean() + F.softplus(made).mean()) / 2

    def augmented(
        self, images: Float[Tensor, "b 3 h w"], draws: StepRandomness, purpose: str
    ) -> Float[Tensor, "b 3 h w"]:
        """Every image changed in its own way."""

        def draw(what: str) -> Tensor:
            return draws.uniform(f"{purpose}-{what}", images.device)

        if "translation" in self._augment:
            images = translated(images, draw("down"), draw("right"))
        if "colour" in self._augment:
            images = jittered(images, draw("brightness"), draw("saturation"), draw("contrast"))
        if "cutout" in self._augment:
            images = cut_out(images, draw("top"), draw("left"))
        return images


def jittered(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Brightness ± 0.5, saturation × 0 to 2, contrast × 0.5 to 1.5, in units of [−1, 1] images.

    Args:
        images: (b, 3, h, w) in [0, 1].
        brightness, saturation, contrast: (b,) in [0, 1].
    """
    b, s, c = (v.view(-1, 1, 1, 1) for v in (brightness, saturation, contrast))
    images = images + (b - 0.5) / 2
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * 2 * s
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (c + 0.5)


def translated(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Images moved by up to an eighth of their sides; what comes in is mid-grey.

    Args:
        images: (b, 3, h, w).
        down, right: (b,) in [0, 1); a half is no shift.
    """
    size, height, width = images.shape[0], images.shape[-2], images.shape[-1]
    most_down, most_right = round(height * SHIFT), round(width * SHIFT)
    rows = _offsets(down, most_down) + torch.arange(height, device=images.device)
    columns = _offsets(right, most_right) + torch.arange(width, device=images.device)
    padded = F.pad(images, (most_right, most_right, most_down, most_down), value=0.5)
    each = torch.arange(size, device=images.device).view(-1, 1, 1)
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def cut_out(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Images with a mid-grey square over them, half as long as their sides.

    Args:
        images: (b, 3, h, w).
        top, left: (b,) in [0, 1): position of the square's middle.
    """
    height, width = images.shape[-2], images.shape[-1]
    rows = (torch.arange(height, device=images.device) + 0.5) / height - top[:, None]
    columns = (torch.arange(width, device=images.device) + 0.5) / width - left[:, None]
    hidden = (rows.abs() < CUT / 2)[:, None, :, None] & (columns.abs() < CUT / 2)[:, None, None, :]
    return images.masked_fill(hidden, 0.5)


def _offsets(drawn: Tensor, most: int) -> Tensor:
    return (drawn * (2 * most + 1)).long()[:, None]
