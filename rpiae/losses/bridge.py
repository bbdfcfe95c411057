"""Losses on the bridge."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rpiae.core.model.contracts import GaussianPosterior, StepContext
from rpiae.core.model.geometry import at_least_fp32


class KlLoss:
    """The posterior's own KL: mean of mean² + var − 1 − logvar (L_KL of arXiv 2603.19206)."""

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert isinstance(context.posterior, GaussianPosterior)
        return context.posterior.kl()


class FeatureLoss:
    """Mean squared error between ẑ and the clean z, in one space (L_feat of arXiv 2603.19206)."""

    def __call__(self, context: StepContext) -> Float[Tensor, ""]:
        assert context.decoded_features is not None
        decoded = at_least_fp32(context.decoded_features.tokens)
        return F.mse_loss(decoded, at_least_fp32(context.features.tokens))
