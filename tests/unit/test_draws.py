"""Random draws as functions of what they are for."""

from __future__ import annotations

import hashlib

import pytest
import torch

from rpiae.core.runtime import draws as draws_module
from rpiae.core.runtime.draws import SampleDraws, StepRandomness, generator

SAMPLES = (12, 13, 14, 15, 16)


def step(samples: tuple[int, ...] = SAMPLES) -> StepRandomness:
    return StepRandomness(3, "tune", 7, samples)


@pytest.mark.parametrize("shape", [(), (1,), (15,), (16,), (4, 9, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_noise_is_what_it_always_was(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    noise = step().normal_like(torch.empty(5, *shape, dtype=dtype), "noise")
    assert noise.dtype == torch.float32
    for row, sample in zip(noise, SAMPLES, strict=True):
        text = f"3/tune/7/{sample}/noise"
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        own = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        assert torch.equal(row, torch.randn(shape, generator=own))


def test_every_split_draws_the_same() -> None:
    reference = torch.empty(5, 3, 4)
    noise = step().normal_like(reference, "noise")
    numbers = step().uniform("level", "cpu")
    for cut in range(1, 5):
        halves = [step(SAMPLES[:cut]), step(SAMPLES[cut:])]
        rows = (reference[:cut], reference[cut:])
        found = [half.normal_like(own, "noise") for half, own in zip(halves, rows, strict=True)]
        assert torch.equal(torch.cat(found), noise)
        assert torch.equal(torch.cat([h.uniform("level", "cpu") for h in halves]), numbers)


def test_every_label_tells_draws_apart() -> None:
    reference = torch.empty(1, 8)
    others = [
        StepRandomness(4, "tune", 7, (12,)), StepRandomness(3, "align", 7, (12,)),
        StepRandomness(3, "tune", 8, (12,)), StepRandomness(3, "tune", 7, (13,)),
    ]  # fmt: skip
    found = [step((12,)).normal_like(reference, purpose) for purpose in ("noise", "posterior")]
    found += [other.normal_like(reference, "noise") for other in others]
    assert len({tuple(noise.flatten().tolist()) for noise in found}) == len(found)
    assert torch.equal(SampleDraws(3, ("tune", 7), (12,)).normal_like(reference, "noise"), found[0])


def test_noise_is_drawn_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(*labels: int | str, device: torch.device | str) -> torch.Generator:
        asked.append((labels, torch.device(device)))
        return generator(*labels)  # type: ignore[arg-type]  # the seed is the first

    monkeypatch.setattr(draws_module, "generator", recorded)
    reference = torch.empty(2, 3)
    step((4, 5)).normal_like(reference, "noise")
    assert asked == [((3, "tune", 7, n, "noise"), reference.device) for n in (4, 5)]


def test_nothing_is_drawn_without_memory() -> None:
    noise = step().normal_like(torch.empty(5, 2, device="meta"), "noise")
    assert noise.is_meta
    assert step().uniform("level", "meta").is_meta
