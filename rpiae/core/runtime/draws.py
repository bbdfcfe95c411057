"""Every random draw as a pure function of (seed, stage, step, sample index, purpose).

No generator carries state from one draw to the next. So a resumed run draws what the unbroken one
would have drawn, whatever the number of workers or processes. Noise is drawn on the device that uses
it; single numbers come from a hash of their labels and are sent there without waiting for it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from rpiae.core.runtime.devices import sent

S = TypeVar("S", bound="SampleDraws")


def key(seed: int, *labels: int | str) -> int:
    """A 63-bit number for this seed and these labels."""
    text = "/".join(str(label) for label in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *labels: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for this seed and these labels.

    Args:
        seed, labels: name the stream of numbers.
        device: where it draws; the CPU's numbers are not those of a card, nor one kind of card's those
            of another.
    """
    return torch.Generator(device).manual_seed(key(seed, *labels))


def uniform(seed: int, *labels: int | str) -> float:
    """One number from U(0, 1), below 1."""
    return (key(seed, *labels) >> 10) / 2**53


class SampleDraws:
    """The draws of some samples: each has streams of its own, whoever else is in the batch.

    So they are the same for any number of processes and for any part of a batch.

    Args:
        seed: of all of them.
        labels: what they are for.
        samples: what tells one sample from another; one per row of what is drawn.
    """

    def __init__(self, seed: int, labels: Sequence[int | str], samples: Sequence[int]) -> None:
        self._seed = seed
        self._labels = labels
        self._samples = samples

    def of_frames(self: S, frames: int) -> S:
        """The draws of so many frames of each sample, sample by sample, as ``fold`` puts them: every
        frame has its clip's."""
        found = copy.copy(self)
        found._samples = [sample for sample in self._samples for _ in range(frames)]
        return found

    def normal_like(self, reference: Tensor, purpose: str) -> Tensor:
        """Standard normal noise of ``reference``'s shape (b, …), in fp32, drawn on its device."""
        noise = torch.empty(reference.shape, dtype=torch.float32, device=reference.device)
        drawing = "cpu" if noise.is_meta else noise.device
        for row, sample in zip(noise, self._samples, strict=True):
            row.normal_(
                generator=generator(self._seed, *self._labels, sample, purpose, device=drawing)
            )
        return noise

    def uniform(self, purpose: str, device: torch.device | str) -> Tensor:
        """U(0, 1), one number per sample: (b,); the same numbers on every device."""
        drawn = [uniform(self._seed, *self._labels, sample, purpose) for sample in self._samples]
        return sent(torch.tensor(drawn, dtype=torch.float32), torch.device(device))


class StepRandomness(SampleDraws):
    """The draws of one optimiser step, or of a part of its batch.

    Args:
        seed: the run's seed.
        stage: name of the stage.
        step: optimiser step within the stage.
        samples: global sample index of every image in this (local) batch.
    """

    def __init__(self, seed: int, stage: str, step: int, samples: Sequence[int]) -> None:
        super().__init__(seed, (stage, step), samples)
