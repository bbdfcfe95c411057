"""Every random draw as a pure function of (seed, stage, step, sample index, purpose).

No generator carries state from one draw to the next. So a resumed run draws what the unbroken one
would have drawn, whatever the number of workers or processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def key(seed: int, *labels: int | str) -> int:
    """A 63-bit number for this seed and these labels."""
    text = "/".join(str(label) for label in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *labels: int | str) -> torch.Generator:
    """A torch generator (CPU) for this seed and these labels."""
    return torch.Generator().manual_seed(key(seed, *labels))


def uniform(seed: int, *labels: int | str) -> float:
    """One number from U(0, 1), below 1."""
    return (key(seed, *labels) >> 10) / 2**53


class StepRandomness:
    """The draws of one optimiser step, one stream per sample.

    Args:
        seed: the run's seed.
        stage: name of the stage.
        step: optimiser step within the stage.
        samples: global sample index of every image in this (local) batch.
    """

    def __init__(self, seed: int, stage: str, step: int, samples: Sequence[int]) -> None:
        self._labels = (stage, step)
        self._seed = seed
        self._samples = samples

    def normal_like(self, reference: Tensor, purpose: str) -> Tensor:
        """Standard normal noise of ``reference``'s shape (b, …), in fp32 on its device."""
        noise = torch.empty(reference.shape, dtype=torch.float32)
        for row, sample in zip(noise, self._samples, strict=True):
            torch.randn(
                row.shape, out=row, generator=generator(self._seed, *self._labels, sample, purpose)
            )
        return noise.to(reference.device)

    def uniform(self, purpose: str, device: torch.device) -> Tensor:
        """U(0, 1), one number per sample: (b,)."""
        drawn = [uniform(self._seed, *self._labels, sample, purpose) for sample in self._samples]
        return torch.tensor(drawn, dtype=torch.float32, device=device)
