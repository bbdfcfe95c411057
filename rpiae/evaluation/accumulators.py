"""What metrics gather: sums that stay where the images are until a walk ends, and rows on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rpiae.core.errors import RunError
from rpiae.core.runtime.processes import Runtime


class Accumulator(Protocol):
    """What a metric gathers; can be pickled."""

    def merge(self, other: Any) -> None:
        """Add all that another one of its kind has gathered."""


class Gathered:
    """Base of accumulators that add up tensors on the images' device.

    Adding waits for no result, so an accelerator works on while the next images are loaded. What was
    gathered comes to the CPU once, at the end.
    """

    def settle(self) -> None:
        """Bring all that was gathered to the CPU."""
        for name, value in vars(self).items():
            setattr(self, name, _settled(value))


def _settled(value: Any) -> Any:
    if isinstance(value, Gathered):
        value.settle()
    elif isinstance(value, Tensor):
        return value.cpu()
    elif isinstance(value, dict):
        return {name: _settled(each) for name, each in value.items()}
    return value


def merge(accumulators: Sequence[Accumulator], runtime: Runtime) -> None:
    """Have every process hold what all have gathered, merged in the order of processes, on the CPU."""
    for accumulator in accumulators:
        if isinstance(accumulator, Gathered):
            accumulator.settle()
    if runtime.num_processes == 1:
        return
    everyone = runtime.gather(list(accumulators))
    for position, accumulator in enumerate(accumulators):
        merged = everyone[0][position]
        for theirs in everyone[1:]:
            merged.merge(theirs[position])
        vars(accumulator).update(vars(merged))


class Mean(Gathered):
    """The mean of numbers, one per image; in float64."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Add numbers (n,)."""
        self.total = self.total + values.detach().double().sum()
        self.count += values.numel()

    def merge(self, other: Mean) -> None:
        """Add all that another one has seen."""
        self.total = self.total + other.total
        self.count += other.count

    @property
    def value(self) -> float:
        """The mean; NaN where nothing was added."""
        return float(self.total) / self.count if self.count else float("nan")


class Ratio(Gathered):
    """A weighted mean: the sum of some numbers over that of others; in float64."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.weight: Tensor | float = 0.0

    def add(self, values: Tensor, weights: Tensor) -> None:
        """Add numbers, their weights multiplied in, and these weights."""
        self.total = self.total + values.detach().double().sum()
        self.weight = self.weight + weights.detach().double().sum()

    def merge(self, other: Ratio) -> None:
        """Add all that another one has seen."""
        self.total = self.total + other.total
        self.weight = self.weight + other.weight

    @property
    def value(self) -> float:
        """The mean; NaN where nothing of any weight was added."""
        return float(self.total) / (float(self.weight) or math.nan)


class ByFrame(Gathered):
    """Means of numbers, one per frame of a clip, by the frame's place in it; in float64.

    Attributes:
        totals, counts: sum and number by frame, (t,), as far as the longest clip goes.
    """

    def __init__(self) -> None:
        self.totals = torch.zeros(0, dtype=torch.float64)
        self.counts = torch.zeros(0, dtype=torch.float64)

    def add(self, values: Float[Tensor, "b t"]) -> None:
        """Add the numbers of some clips."""
        values = values.detach().double()
        self._join(values.sum(0), torch.full_like(values[0], len(values)))

    def merge(self, other: ByFrame) -> None:
        """Add all that another one has seen."""
        self._join(other.totals, other.counts)

    @property
    def means(self) -> Float[Tensor, " t"]:
        """By frame."""
        return self.totals / self.counts

    def mean(self, frames: slice = slice(None)) -> float:
        """Over some of the frames; NaN where there are none."""
        return float(self.totals[frames].sum()) / (float(self.counts[frames].sum()) or math.nan)

    def _join(self, totals: Tensor, counts: Tensor) -> None:
        longest = max(len(self.totals), len(totals))

        def filled(values: Tensor) -> Tensor:
            return F.pad(values, (0, longest - len(values)))

        self.totals = filled(self.totals.to(totals.device)) + filled(totals)
        self.counts = filled(self.counts.to(counts.device)) + filled(counts)


class Faults(Gathered):
    """How many values of a tokenizer's tokens and images are not finite."""

    def __init__(self) -> None:
        self.tokens: Tensor | int = 0
        self.images: Tensor | int = 0

    def in_tokens(self, values: Tensor) -> None:
        """Look at some tokens."""
        self.tokens = self.tokens + (~values.isfinite()).sum()

    def in_images(self, values: Tensor) -> None:
        """Look at some decoded images."""
        self.images = self.images + (~values.isfinite()).sum()

    def merge(self, other: Faults) -> None:
        """Add those that another one has seen."""
        self.tokens = self.tokens + other.tokens
        self.images = self.images + other.images

    def check_none(self, tokenizer: str) -> None:
        """Refuse numbers about a tokenizer whose output is no number itself.

        Args:
            tokenizer: what it is called.

        Raises:
            RunError: if a value was not finite.
        """
        for part, count in (("encoder", self.tokens), ("decoder", self.images)):
            if count:
                raise RunError(f"the {part} of {tokenizer} gives numbers that are not finite")


class Once(Gathered):
    """An accumulator that is made when the first images tell its size; a process may see none.

    Attributes:
        made: the accumulator; None before that.
    """

    def __init__(self) -> None:
        self.made: Any = None

    def merge(self, other: Once) -> None:
        """Add all that another one has gathered."""
        if self.made is None:
            self.made = other.made
        elif other.made is not None:
            self.made.merge(other.made)


class Rows:
    """Tensors of images, kept on the CPU by the images' positions.

    They can be as large as the dataset, so every batch is brought there at once.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, dict[str, Tensor]]] = []

    def add(self, positions: Int[Tensor, " b"], **tensors: Tensor) -> None:
        """Add tensors (b, …) of some images, by name."""
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self._parts.append((positions.cpu(), kept))

    def merge(self, other: Rows) -> None:
        """Add all that another one has kept."""
        self._parts += other._parts

    def joined(self) -> dict[str, Tensor]:
        """All tensors (n, …) by name, in the order of positions."""
        if len(self._parts) > 1:
            positions = torch.cat([positions for positions, _ in self._parts])
            order = torch.argsort(positions)
            place = torch.empty_like(order)
            place[order] = torch.arange(len(order))
            whole = {
                name: torch.empty(len(order), *tensor.shape[1:], dtype=tensor.dtype)
                for name, tensor in self._parts[0][1].items()
            }
            done = 0
            while self._parts:  # each part is let go once it is copied: these can be large
                part, kept = self._parts.pop(0)
                for name, tensor in kept.items():
                    whole[name][place[done : done + len(part)]] = tensor
                done += len(part)
            self._parts = [(positions[order], whole)]
        return dict(self._parts[0][1]) if self._parts else {}
