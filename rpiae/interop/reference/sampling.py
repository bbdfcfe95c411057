"""What the reference's options of sampling mean, as ours.

Its ``num_steps`` counts the points of a grid that ends at 0.001 before the shift. Its LightningDiT guides
*outside* of its intervals; its DiTwDDTHead inside, both ends included, as ours.

Source: the reference implementation of arXiv 2603.19206.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rpiae.core.errors import UsageError
from rpiae.sampling.configs import SamplingConfig

#: Where its grids end, before the shift.
END = 0.001


def sampling_of_reference(
    *,
    num_steps: int,
    shift: float,
    scale: float = 1.0,
    intervals: Sequence[tuple[float, float]] = ((0.0, 1.0),),
    guide: str = "",
) -> SamplingConfig:
    """How the reference samples its LightningDiT, as ours.

    Args:
        num_steps: ``sampler.params.num_steps``.
        shift: of time, √(C·h·w/4096).
        scale: ``guidance.scale``; above 1 it guides.
        intervals: ``guidance.t-min`` and ``t-max``, by default 0 and 1: those guide at t = 1 alone.
        guide: our folder of the weaker model; empty for classifier-free guidance.

    Raises:
        UsageError: if it guides in several intervals, or by two scales.
    """
    found = guided_interval(intervals) if scale > 1 else None
    if found is not None and guide and found != (0.0, 1.0):
        raise UsageError(
            "by a guide, the reference guides inside of its intervals too, by another scale (1.42): ours "
            "has one scale. Its released options have an empty interval, t-min = t-max"
        )
    end = shift * END / (1 + (shift - 1) * END)
    if found is None:
        return SamplingConfig(steps=num_steps, points=True, end=end)
    return SamplingConfig(
        steps=num_steps, points=True, end=end, guidance=scale, interval=found, guide=guide
    )


def guided_interval(intervals: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The interval in which guidance acts, ends included, where the reference has those in which it
    does not: (low, high) with low ≤ t < high. None where it acts nowhere.

    Raises:
        UsageError: if what lies outside of them is more than one interval.
    """
    outside, start = [], 0.0
    for low, high in sorted(each for each in intervals if each[0] < each[1]):
        if low > start:
            outside.append((start, _just_below(low)))
        start = max(start, high)
    if start <= 1:
        outside.append((start, 1.0))
    if len(outside) > 1:
        raise UsageError(
            f"outside of {', '.join(f'[{low:g}, {high:g})' for low, high in intervals)} the reference "
            f"guides in {len(outside)} intervals of time, and ours has one"
        )
    return outside[0] if outside else None


def _just_below(time: float) -> float:
    """The next time below, of those that fp32 has."""
    return float(np.nextafter(np.float32(time), np.float32(0)))
