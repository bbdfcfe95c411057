"""The noise that samples start from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rpiae.core.runtime.draws import generator


def noise_of(
    seed: int, indices: Sequence[int], shape: tuple[int, int, int]
) -> Float[Tensor, "n c h w"]:
    """Standard normal noise in fp32 on the CPU, a function of the seed and of each sample's index alone.

    Args:
        seed: of all samples.
        indices: which samples.
        shape: (C, h, w).
    """
    noise = torch.empty(len(indices), *shape)
    for row, index in zip(noise, indices, strict=True):
        row.normal_(generator=generator(seed, "sample", index))
    return noise
