"""The reference's options of sampling, as ours."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from rpiae.core.errors import UsageError
from rpiae.interop.reference.sampling import guided_interval, sampling_of_reference
from rpiae.sampling.configs import SamplingConfig
from rpiae.sampling.guidance import guided
from rpiae.sampling.times import sampling_times


@pytest.mark.parametrize(
    "intervals",
    [[], [(0.0, 0.0)], [(0.0, 1.0)], [(0.0, 0.3)], [(0.75, 1.5)], [(-0.5, 0.25), (0.2, 0.5)]],
)
def test_guidance_acts_where_the_reference_guides(intervals: list[tuple[float, float]]) -> None:
    config = sampling_of_reference(num_steps=9, shift=2.0, scale=1.5, intervals=intervals)
    edges = torch.tensor([edge for each in intervals for edge in each])
    times = torch.cat([torch.linspace(0, 1, 101), edges, edges.nextafter(torch.tensor(0.0))])
    times = times[(times >= 0) & (times <= 1)]
    labels = torch.zeros(len(times), dtype=torch.int64)
    velocity = guided(
        lambda x, t, y: y.float().view(-1, 1, 1, 1).expand_as(x), labels, config, num_classes=1
    )
    scales = 1 - velocity(torch.zeros(len(times), 1, 1, 1), times).flatten()  # w·0 + (1 − w)·1
    assert [float(each) for each in scales] == [_reference(t, intervals) for t in times.tolist()]


def _reference(time: float, intervals: Sequence[tuple[float, float]]) -> float:
    inside = any(low <= time < high for low, high in intervals)
    return 1.0 if inside else 1.5


def test_what_one_interval_cannot_say() -> None:
    with pytest.raises(UsageError, match=r"outside of \[0\.3, 0\.7\) .* in 2 intervals"):
        guided_interval([(0.3, 0.7)])
    with pytest.raises(UsageError, match=r"by another scale \(1\.42\)"):
        sampling_of_reference(num_steps=250, shift=2.0, scale=2.05, guide="g")
    assert guided_interval([(0.0, 2.0)]) is None


def test_the_released_configurations() -> None:
    unguided = sampling_of_reference(num_steps=250, shift=2.0)
    assert (unguided.num_steps, unguided.guidance) == (249, 1.0)
    guided_by = sampling_of_reference(
        num_steps=250, shift=2.0, scale=2.05, intervals=[(0.0, 0.0)], guide="runs/early"
    )
    assert guided_by == SamplingConfig(
        steps=250, points=True, end=unguided.end, guidance=2.05, guide="runs/early"
    )
    times = sampling_times(sampling_of_reference(num_steps=50, shift=2.0), 2.0)
    assert len(times) == 50
    wanted = torch.tensor([1.0, 0.9897, 0.9792, 0.0802, 0.0419, 0.0020])
    torch.testing.assert_close(times[[0, 1, 2, -3, -2, -1]].float(), wanted, rtol=0, atol=6e-5)
    first = sampling_of_reference(num_steps=50, shift=2.0, scale=1.5)
    assert first.interval == (1.0, 1.0), "by default it guides at the very first step alone"
