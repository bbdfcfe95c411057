"""How samples are made, as plain data (torch-free)."""

from __future__ import annotations

import math
from typing import Literal

from attrs import frozen

from rpiae.core.config.fields import refused
from rpiae.core.runtime.names import shown


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

    steps: int = 50
    sampler: Literal["euler", "heun"] = "euler"
    end: float = 0.0
    points: bool = False
    guidance: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
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
