"""How samples are made, as plain data (torch-free)."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Literal, SupportsIndex

from attrs import field, frozen

from rpiae.core.config.fields import refused
from rpiae.core.runtime.names import shown


def _whole(value: SupportsIndex) -> int:
    """Steps as a whole number; numpy's are."""
    try:
        return operator.index(value)
    except TypeError:
        raise refused("steps", f"steps must be a whole number, got {shown(value)}") from None


def _number(name: str, value: float) -> float:
    if not isinstance(value, Real):
        raise refused(name, f"{name} must be a number, got {shown(value)}")
    return float(value)


def _end(value: float) -> float:
    """Where the last step ends, as a number; numpy's are."""
    return _number("end", value)


def _guidance(value: float) -> float:
    """A scale as a number; numpy's are."""
    return _number("guidance", value)


def _interval(value: Sequence[float]) -> tuple[float, float]:
    """Two times; whether they are ones is not checked yet."""
    ends = tuple(value) if isinstance(value, Sequence) else ()
    if len(ends) != 2 or not all(isinstance(end, Real) for end in ends):
        raise refused("interval", f"interval must be two times (low, high), got {shown(value)}")
    return float(ends[0]), float(ends[1])


@frozen(kw_only=True)
class SamplingConfig:
    """How a generator is sampled; t = 1 is noise, t = 0 is data.

    Attributes:
        steps: from noise to the end; ``euler`` asks the model once per step, ``heun`` twice.
        sampler: ``euler`` or ``heun``, of order 1 and 2.
        end: shifted time at which the last step ends.
        points: whether ``steps`` counts the points of the grid, of which there is one more than steps.
            With ``end`` 0.002 this is the grid of the reference at a shift of 2.
        guidance: scale w ≥ 0 of guidance; 1 is none, 0 leaves what is guided away from.
        interval: (low, high) of shifted time inside of which guidance acts, both ends included.
        guide: folder of a weaker generator, or its run, to be guided away from (autoguidance); where it
            is empty, guidance is away from the prediction without a class (classifier-free).

    Source: Heun's steps: arXiv 2206.00364; classifier-free guidance: arXiv 2207.12598; the interval:
    arXiv 2404.07724; autoguidance: arXiv 2406.02507. The released LightningDiT guides outside of its
    intervals.
    """

    steps: int = field(default=50, converter=_whole)
    sampler: Literal["euler", "heun"] = "euler"
    end: float = field(default=0.0, converter=_end)
    points: bool = False
    guidance: float = field(default=1.0, converter=_guidance)
    interval: tuple[float, float] = field(default=(0.0, 1.0), converter=_interval)
    guide: str = ""

    def __attrs_post_init__(self) -> None:
        least = 2 if self.points else 1
        if self.steps < least:
            why = ": points of a grid begin and end it" if self.points else ""
            raise refused("steps", f"steps must be at least {least}{why}, got {shown(self.steps)}")
        if self.sampler not in ("euler", "heun"):
            raise refused("sampler", f"sampler must be euler or heun, got {shown(self.sampler)}")
        if not 0 <= self.end < 1:
            raise refused(
                "end", f"end is a time from 0 (data) to below 1 (noise), got {shown(self.end)}"
            )
        if not (self.guidance >= 0 and math.isfinite(self.guidance)):
            raise refused(
                "guidance",
                f"guidance must be 0 or more, got {shown(self.guidance)}; 1 is none, and more follows "
                "the class more closely",
            )
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise refused(
                "interval",
                f"interval must be two times from 0 (data) to 1 (noise), the lower one first, got "
                f"{shown(low)} and {shown(high)}; guidance acts inside of it",
            )

    @property
    def num_steps(self) -> int:
        """Steps that are taken, whatever ``steps`` counts."""
        return self.steps - 1 if self.points else self.steps
