"""The times that a sample is taken through, from noise to data."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.sampling.configs import SamplingConfig


def sampling_times(config: SamplingConfig, shift: float) -> Float[Tensor, " n"]:
    """Times from 1 down to ``config.end``, one more than steps, on the CPU in float64.

    They are evenly spaced before the shift, t ← s·t/(1 + (s − 1)·t), which is applied once; the model
    is given shifted times.

    Args:
        config: how many, and where they end.
        shift: s.
    """
    last = config.end / (shift - (shift - 1) * config.end)  # before the shift
    even = torch.linspace(1, last, config.num_steps + 1, dtype=torch.float64)
    times = shift * even / (1 + (shift - 1) * even)
    times[0], times[-1] = 1.0, config.end
    return times
