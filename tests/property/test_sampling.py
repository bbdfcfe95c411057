"""What holds of sampling whatever the generator: where steps end, what guidance does, who matters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rpiae.core.config.generation import FlowConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.sampling.configs import SamplingConfig
from rpiae.sampling.guidance import check_guidable, guided
from rpiae.sampling.noise import noise_of
from rpiae.sampling.samplers import sample, states
from rpiae.sampling.times import sampling_times

SHIFTS = st.floats(0.05, 50)
STEPS = st.integers(1, 60)
ENDS = st.floats(0, 0.9)
SAMPLERS = st.sampled_from(["euler", "heun"])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(steps=STEPS, shift=SHIFTS, end=ENDS, sampler=SAMPLERS, seed=st.integers(0, 1000))
def test_along_a_straight_line_samples_land_on_the_data(
    steps: int, shift: float, end: float, sampler: str, seed: int
) -> None:
    config = SamplingConfig(steps=steps, end=end, sampler=sampler)  # type: ignore[arg-type]
    data, noise = normal(seed, 3, 2, 2, 3), normal(seed + 1, 3, 2, 2, 3)

    def velocity(latents: Tensor, time: Tensor) -> Tensor:
        t = time.view(-1, 1, 1, 1)
        torch.testing.assert_close(latents, (1 - t) * data + t * noise, atol=1e-5, rtol=0)
        return noise - data

    found = sample(velocity, noise, sampling_times(config, shift), config.sampler)
    torch.testing.assert_close(found, (1 - end) * data + end * noise, atol=1e-5, rtol=0)


@given(steps=STEPS, shift=SHIFTS, end=ENDS, points=st.booleans())
def test_times_fall_from_one_to_the_end(steps: int, shift: float, end: float, points: bool) -> None:
    config = SamplingConfig(steps=steps + points, end=end, points=points)
    times = sampling_times(config, shift)
    assert len(times) == steps + 1 == config.num_steps + 1
    assert (times.diff() < 0).all()
    assert (times[0], times[-1]) == (1, end)
    back = times / (shift - (shift - 1) * times)  # evenly spaced before the one shift
    torch.testing.assert_close(back.diff(), back.diff().mean().expand(steps), atol=1e-9, rtol=1e-9)


@given(steps=STEPS, end=st.sampled_from([0.0, 0.002]))
def test_steps_are_steps(steps: int, end: float) -> None:
    asked = {"euler": 0, "heun": 0}
    noise = normal(0, 1, 1, 1, 1)
    for sampler in ("euler", "heun"):
        config = SamplingConfig(steps=steps, end=end, sampler=sampler)  # type: ignore[arg-type]

        def velocity(latents: Tensor, time: Tensor, sampler: str = sampler) -> Tensor:
            asked[sampler] += 1
            assert time.min() > 0
            return latents

        times = sampling_times(config, 2.0)
        assert len(list(states(velocity, noise, times, config.sampler))) == steps
    assert asked == {"euler": steps, "heun": 2 * steps - (end == 0)}


def test_heun_is_of_second_order() -> None:
    noise = normal(0, 2, 1, 2, 2).double()

    def error(steps: int, sampler: str) -> float:
        config = SamplingConfig(steps=steps, sampler=sampler)  # type: ignore[arg-type]
        found = sample(lambda x, t: x, noise, sampling_times(config, 1.0), config.sampler)
        return float((found - noise * math.exp(-1)).abs().max())

    assert error(40, "euler") / error(80, "euler") == pytest.approx(2, rel=0.1)
    assert error(40, "heun") / error(80, "heun") == pytest.approx(4, rel=0.1)


class Mixer:
    """A velocity that is another one for every class and channel, and counts what it is asked."""

    def __init__(self, seed: int, *, classes: int = 4, channels: int = 3) -> None:
        self.rows = 0
        self.per_class = normal(seed, classes + 1, channels, 1, 1)

    def __call__(self, latents: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        self.rows += len(latents)
        return self.per_class[labels] * (1 + time.view(-1, 1, 1, 1)) + latents.sin()


LABELS = torch.tensor([0, 3, 4, 1])  # 4 is no class


@given(scale=st.floats(0, 20), seed=st.integers(0, 1000), own=st.booleans())
def test_guidance_is_on_all_channels_and_inside_its_interval(
    scale: float, seed: int, own: bool
) -> None:
    main, weak = Mixer(seed), Mixer(seed + 1)
    config = SamplingConfig(guidance=scale, interval=(0.25, 0.5), guide="" if own else "weak")
    velocity = guided(main, LABELS, config, num_classes=4, guide=None if own else weak)
    latents = normal(seed, 4, 3, 2, 2)
    time = torch.tensor([0.25, 0.5, 0.4, 0.75])  # both ends are in, the last one is out
    found = velocity(latents, time)
    strong = main(latents, time, LABELS)
    away = main(latents, time, torch.full((4,), 4)) if own else weak(latents, time, LABELS)
    expected = away + scale * (strong - away)
    expected[3] = strong[3]
    torch.testing.assert_close(found, expected)
    if abs(scale - 1) > 1e-3:
        moved = (found - strong).abs().amin(dim=(2, 3))  # of each sample and channel
        assert (moved[:2] > 0).all()
        assert (moved[2] == 0).all() == own  # away from no class, who has none stays
        assert not moved[3].any()


@given(seed=st.integers(0, 1000))
def test_guidance_of_one_is_the_conditional_prediction_to_the_bit(seed: int) -> None:
    main = Mixer(seed)
    latents, time = normal(seed, 4, 3, 2, 2), torch.full((4,), 0.5)
    velocity = guided(main, LABELS, SamplingConfig(guidance=1), num_classes=4)
    assert torch.equal(velocity(latents, time), main(latents, time, LABELS))
    assert main.rows == 8  # nobody computed a prediction without a class
    nearly = guided(main, LABELS, SamplingConfig(guidance=1 + 1e-9), num_classes=4)
    torch.testing.assert_close(
        nearly(latents, time), main(latents, time, LABELS), atol=1e-6, rtol=1e-6
    )


def test_outside_of_the_interval_nothing_more_is_computed() -> None:
    main = Mixer(0)
    velocity = guided(main, LABELS, SamplingConfig(guidance=2, interval=(0.3, 0.6)), num_classes=4)
    velocity(normal(0, 4, 3, 2, 2), torch.full((4,), 0.9))
    assert main.rows == 4
    velocity(normal(0, 4, 3, 2, 2), torch.full((4,), 0.6))
    assert main.rows == 12


def test_guidance_needs_something_to_be_measured_from() -> None:
    def model(label_dropout: float) -> LatentGenerator:
        stand_in = torch.nn.Module()
        stand_in.latent_channels, stand_in.num_classes, stand_in.patch = 1, 4, (1, 1)
        return LatentGenerator(
            generator=stand_in, flow=FlowConfig(label_dropout=label_dropout),
            facts=LatentFacts(shape=(1, 1, 1), tokenizer="", tokenizer_sha256="", num_classes=4),
        )  # fmt: skip

    with pytest.raises(UsageError, match="these have none"):
        check_guidable(SamplingConfig(guidance=2), [4, 4], model(0.1))
    check_guidable(SamplingConfig(guidance=2), [4, 3], model(0.1))
    with pytest.raises(UsageError, match="trained with the class of every sample"):
        check_guidable(SamplingConfig(guidance=2), [4, 3], model(0.0))
    for config in (SamplingConfig(guidance=2, guide="weak"), SamplingConfig(guidance=1)):
        check_guidable(config, [4, 4], model(0.0))


@given(seed=st.integers(0, 2**40), first=st.integers(0, 2**31), count=st.integers(1, 9))
def test_noise_is_of_seed_and_index_alone(seed: int, first: int, count: int) -> None:
    indices = range(first, first + count)
    together = noise_of(seed, indices, (2, 3, 3))
    for row, index in zip(together, indices, strict=True):
        assert torch.equal(row, noise_of(seed, [index], (2, 3, 3))[0])
    assert len({tuple(row.flatten().tolist()) for row in together}) == count


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1, "points": True}, "at least 2: points of a grid"),
        ({"guidance": -0.5}, "guidance must be 0 or more, got -0.5"),
        ({"guidance": float("nan")}, "guidance must be 0 or more, got nan"),
        ({"guidance": float("inf")}, "guidance must be 0 or more, got inf"),
        ({"interval": (0.8, 0.2)}, "the lower one first, got 0.8 and 0.2"),
        ({"interval": (0.0, float("nan"))}, "interval must be two times"),
        ({"end": 1.0}, "end is a time from 0"),
        ({"end": -0.1}, "end is a time from 0"),
        ({"sampler": "ralston"}, "sampler must be euler or heun, got 'ralston'"),
    ],
)
def test_values_that_make_no_sense(change: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        SamplingConfig(**change)  # type: ignore[arg-type]
