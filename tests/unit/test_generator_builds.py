"""``check_generator_builds`` looks at the same numbers every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.testing import check_generator_builds

TINY = {"name": "dit", "width": 16, "depth": 1, "num_heads": 2}


def test_it_is_a_function_of_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    velocity = LatentGenerator.velocity

    def recorded(self: LatentGenerator, latents: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        seen.append(torch.cat([latents.detach().flatten(), time.detach().flatten()]))
        return velocity(self, latents, time, labels)

    monkeypatch.setattr(LatentGenerator, "velocity", recorded)
    for seed in (1, 2):
        torch.manual_seed(seed)
        check_generator_builds(TINY)
    half = len(seen) // 2
    assert half
    assert all(torch.equal(*pair) for pair in zip(seen[:half], seen[half:], strict=True))
