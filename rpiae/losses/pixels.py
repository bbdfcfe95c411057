"""Losses between the reconstruction and the image, in fp32 (or fp64, as the two are)."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import StepContext
from rpiae.core.model.geometry import at_least_fp32


class L1Loss:
    """Mean |x̂ − x|, both in [0, 1] (L_rec of arXiv 2603.19206)."""

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert context.reconstruction is not None
        return F.l1_loss(at_least_fp32(context.reconstruction), at_least_fp32(context.images))


class MseLoss:
    """Mean (x̂ − x)², both in [0, 1]."""

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert context.reconstruction is not None
        return F.mse_loss(at_least_fp32(context.reconstruction), at_least_fp32(context.images))
