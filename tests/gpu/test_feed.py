"""Batches and draws on a GPU: copied ahead, and the same for every split."""

from __future__ import annotations

import pytest
import torch

from rpiae.core.model.contracts import StageSteps
from rpiae.core.runtime.draws import StepRandomness, generator
from rpiae.core.training.feed import Feed, as_floats
from rpiae.data.datasets import SampleDataset

pytestmark = pytest.mark.gpu

SAMPLES = tuple(range(20, 26))


def _drawn(card: torch.device, samples: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    draws = StepRandomness(0, "tune", 3, samples)
    reference = torch.empty(len(samples), 257, 96, device=card, dtype=torch.bfloat16)
    return draws.normal_like(reference, "noise"), draws.uniform("level", card)


def test_every_split_and_process_draws_the_same_on_the_card(card: torch.device) -> None:
    noise, level = _drawn(card, SAMPLES)
    assert noise.device.type == level.device.type == card.type
    for cuts in ((3, 3), (1, 5), (2, 2, 2)):
        parts = [
            _drawn(card, tuple(part.tolist())) for part in torch.tensor(SAMPLES).split(list(cuts))
        ]
        assert torch.equal(torch.cat([part[0] for part in parts]), noise)
        assert torch.equal(torch.cat([part[1] for part in parts]), level)
    assert noise.mean().abs() < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_single_numbers_are_those_of_the_processor(card: torch.device) -> None:
    _, level = _drawn(card, SAMPLES)
    assert torch.equal(level.cpu(), _drawn(torch.device("cpu"), SAMPLES)[1])


def test_a_generator_of_the_card_begins_anew(card: torch.device) -> None:
    first, again = (
        torch.randn(1000, device=card, generator=generator(1, "a", device=card)) for _ in "ab"
    )
    assert torch.equal(first, again)


def test_every_byte_becomes_the_float_of_the_processor(card: torch.device) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_floats(every.to(card)).cpu(), as_floats(every))


def test_batches_arrive_whole_while_the_card_computes(card: torch.device) -> None:
    """Copies on a stream of their own are there when their batch is used, and not overwritten."""
    steps = StageSteps(seed=0, stage="tune", batch_size=8, start=0, steps=12)
    data = SampleDataset(image_size=128)
    wanted = [as_floats(batch.inputs) for batch in data.batches(steps)]
    kept = []
    matrix = torch.randn(2048, 2048, device=card)
    for batch in Feed(data.batches(steps), card):
        matrix = torch.tanh(matrix @ matrix)
        kept.append(batch.inputs + 0 * matrix[0, 0])
    for found, expected in zip(kept, wanted, strict=True):
        assert torch.equal(found.cpu(), expected)
