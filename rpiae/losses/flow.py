"""Losses of generators, on velocities."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.generation import FlowContext
from rpiae.core.model.geometry import at_least_fp32


class FlowLoss:
    """Mean (v̂ − v)² over samples, channels and positions, in fp32 at least.

    Source: the released objective of arXiv 2603.19206: velocity prediction without weights.
    """

    def __call__(self, context: FlowContext) -> Float[Tensor, ""]:
        return F.mse_loss(at_least_fp32(context.predicted), at_least_fp32(context.velocity))
