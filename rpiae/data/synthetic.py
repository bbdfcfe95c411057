"""Datasets that need no files."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import Batch, HeldOut, StageSteps


class SyntheticImages:
    """Smooth random images as a dataset, the same in every process.

    Args:
        size: side in pixels.
        count: how many.
    """

    notices: tuple[str, ...] = ()

    def __init__(self, size: int, *, count: int = 8) -> None:
        self.num_images = count
        self.image_size = size
        coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.images: Float[Tensor, "n 3 s s"] = F.interpolate(coarse, size=size, mode="bilinear")

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """The images in turn."""
        for samples in steps:
            yield Batch(self.images[[sample % self.num_images for sample in samples]], samples)

    def held_out(self) -> HeldOut:
        """The first two images."""
        names = ("first", "second")
        return HeldOut(self.images[:2], names, dict.fromkeys(names, 1))

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """The first ``count`` images."""
        return self.images[:count]


class SyntheticClips:
    """Clips of a square that moves over a smooth picture that does not, the same in every process.

    Args:
        size: side in pixels.
        frames: of a clip.
        count: how many clips.
    """

    notices: tuple[str, ...] = ()

    def __init__(self, size: int, frames: int, *, count: int = 8) -> None:
        self.num_images = count
        self.image_size = size
        self.frames = frames
        draws = torch.Generator().manual_seed(0)
        still = SyntheticImages(size, count=count).images
        self.clips: Float[Tensor, "n 3 t s s"] = still.unsqueeze(2).repeat(1, 1, frames, 1, 1)
        colours = torch.rand(count, 3, generator=draws)
        places = torch.randint(size, (count, 2), generator=draws)
        speeds = torch.randint(1, 2 + size // 8, (count, 2), generator=draws)
        side = torch.arange(max(1, size // 4))
        for clip, colour, place, speed in zip(self.clips, colours, places, speeds, strict=True):
            for t in range(frames):
                y, x = ((place + speed * t)[:, None] + side) % size
                clip[:, t, y[:, None], x] = colour[:, None, None]

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """The clips in turn; at steps of single frames, a frame of each."""
        for step, samples in enumerate(steps, steps.start):
            clips = self.clips[[sample % self.num_images for sample in samples]]
            if steps.of_frames(step):
                times = [sample // self.num_images % self.frames for sample in samples]
                clips = clips[range(len(samples)), :, times]
            yield Batch(clips, samples)

    def held_out(self) -> HeldOut:
        """The first two clips."""
        names = ("first", "second")
        return HeldOut(self.clips[:2], names, dict.fromkeys(names, 1))

    def crops(self, count: int, *, seed: int) -> Float[Tensor, "n 3 s s"]:
        """The first frame of the first ``count`` clips."""
        return self.clips[:count, :, 0]


class SyntheticLatents:
    """Noise as latents with labels, the same in every process.

    Args:
        shape: (C, h, w) of a latent.
        num_classes: of the labels, which take turns; 0 for latents without.
        count: how many.
    """

    notices: tuple[str, ...] = ()

    def __init__(self, shape: tuple[int, int, int], *, num_classes: int, count: int = 8) -> None:
        self.num_images = count
        self.num_classes = num_classes
        draws = torch.Generator().manual_seed(0)
        self.latents: Float[Tensor, "n c h w"] = torch.randn(count, *shape, generator=draws)

    def batches(self, steps: StageSteps) -> Iterator[Batch]:
        """The latents in turn."""
        for samples in steps:
            rows = [sample % self.num_images for sample in samples]
            labels = torch.tensor(rows) % self.num_classes if self.num_classes else None
            yield Batch(self.latents[rows], samples, labels=labels)
