"""Sampling against the reference: its grid, its trajectories, its guidance inside and outside intervals.

The reference's LightningDiT guides outside of its intervals, and its DDT inside, as ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rpiae.core.config.generation import FlowConfig
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.core.runtime.weights import shapes
from rpiae.interop.reference.lightningdit import Untold, config_of, dit_from_reference
from rpiae.sampling.configs import SamplingConfig
from rpiae.sampling.guidance import LabelledVelocity, guided
from rpiae.sampling.samplers import Velocity, states
from rpiae.sampling.times import sampling_times
from tests.golden.conftest import Golden, Load

#: About five noise floors of the reference's own fp32; the files tell them.
TOLERANCE = 1e-5
WIDE_TOLERANCE = 3e-5
FIRST = 0.001  # where the reference's grids end before the shift


def model_of(state: Mapping[str, Tensor], told: Untold | None = None) -> LatentGenerator:
    config = config_of(shapes(state), told)
    module = config.build().eval()
    module.load_state_dict(dit_from_reference(state, config))
    assert config.latent_channels
    assert config.rows
    assert config.columns
    shape = (config.latent_channels, config.rows, config.columns)
    facts = LatentFacts(shape=shape, tokenizer="", tokenizer_sha256="")
    return LatentGenerator(generator=module, flow=FlowConfig(shift=2.0), facts=facts)


def grid(points: int, shift: float) -> Tensor:
    end = shift * FIRST / (1 + (shift - 1) * FIRST)
    return sampling_times(SamplingConfig(steps=points, points=True, end=end), shift)


def guided_outside(
    main: LabelledVelocity,
    labels: Tensor,
    *,
    scale: float,
    intervals: Sequence[Sequence[float]],
    inside_scale: float,
    num_classes: int,
    guide: LabelledVelocity | None,
) -> Velocity:
    """The reference's LightningDiT, put together from ours: the first sample's time decides for all."""

    def velocity(latents: Tensor, time: Tensor) -> Tensor:
        inside = any(low <= float(time[0]) < high for low, high in intervals)
        chosen = max(inside_scale, 1.0) if inside else scale
        config = SamplingConfig(guidance=chosen)
        return guided(main, labels, config, num_classes=num_classes, guide=guide)(latents, time)

    return velocity


def reference_of(
    call: Mapping[str, Any], models: Golden, labels: Tensor, told: Untold | None = None
) -> Velocity:
    """The velocity of a call of the reference's LightningDiT, with its guidance or without."""
    model = model_of(models.state, told)
    auto = "autoguidance" in (call["method"] + call.get("guidance", ""))
    return guided_outside(
        model.velocity,
        labels,
        scale=call.get("cfg_scale", call.get("scale")),
        intervals=call.get("cfg_interval", ()),
        inside_scale=call.get("interval_cfg", 1.42 if auto else 0.0),
        num_classes=model.num_classes,
        guide=model_of(models.states["state_guide"]).velocity if auto else None,
    )


LIGHTNING = (
    "cfg_outside", "cfg_inside", "cfg_inside_interval_cfg", "cfg_inside_interval_cfg_one",
    "cfg_lower_edge", "cfg_upper_edge", "cfg_empty_interval", "cfg_default_interval_t1",
    "cfg_default_interval", "cfg_two_intervals", "cfg_mixed_t", "ag_outside", "ag_inside",
    "ag_inside_interval_cfg_one",
)  # fmt: skip


@pytest.mark.parametrize("name", LIGHTNING)
@torch.no_grad()
def test_guidance_of_lightningdit(golden: Load, name: str) -> None:
    here = golden("generator_lightningdit")
    call = here.facts["calls"][name]
    velocity = reference_of(call, here, here.inputs[call["y"]][:2])
    found = velocity(here.inputs[call["x"]][:2], here.inputs[call["t"]][:2])
    close(found, here.expected[name][:2])


def test_all_guidance_of_lightningdit_is_looked_at(golden: Load) -> None:
    calls = golden("generator_lightningdit").facts["calls"]
    assert {name for name, call in calls.items() if "cfg_scale" in call} == set(LIGHTNING)


@torch.no_grad()
def test_guidance_of_the_plain_model(golden: Load) -> None:
    here = golden("generator_plain")
    call = here.facts["calls"]["cfg_outside"]
    velocity = reference_of(call, here, here.inputs["cfg_y"][:2], Untold(num_heads=4))
    found = velocity(here.inputs["cfg_x"][:2], here.inputs["cfg_t"][:2])
    close(found, here.expected["cfg_outside"][:2])


@pytest.mark.parametrize("name", ["cfg_inside", "cfg_mixed", "cfg_default", "ag_mixed"])
@torch.no_grad()
def test_guidance_of_the_wide_head(golden: Load, name: str) -> None:
    here = golden("generator_ddt")
    call = here.facts["calls"][name]
    model = model_of(here.state)
    config = SamplingConfig(guidance=call["cfg_scale"], interval=tuple(call["cfg_interval"]))
    auto = name.startswith("ag")
    guide = model_of(here.states["state_guide"], Untold(head_depth=1)).velocity if auto else None
    count = 4 if auto else 2  # with a guide, the reference takes the whole batch
    labels = here.inputs["cfg_y"][:count]
    velocity = guided(model.velocity, labels, config, num_classes=model.num_classes, guide=guide)
    found = velocity(here.inputs["cfg_x"][:count], here.inputs[call["t"]][:count])
    close(found, here.expected[name][:count], WIDE_TOLERANCE)


@pytest.mark.parametrize("points", [8, 50, 250])
def test_grids(golden: Load, points: int) -> None:
    wanted = golden("transport").expected[f"grid_{points}"]
    found = grid(points, 2.0)
    assert len(found) == points
    close(found.float(), wanted, 1e-6)
    # As the command line says it: --end 0.002 --points
    rounded = SamplingConfig(steps=points, points=True, end=0.002)
    close(sampling_times(rounded, 2.0).float(), wanted, 3e-6)


def test_half_of_time_is_shifted_to_two_thirds(golden: Load) -> None:
    assert sampling_times(SamplingConfig(steps=2), 2.0).tolist() == pytest.approx([1, 2 / 3, 0])
    facts = golden("transport").facts["time_shift"]
    for size, wanted in zip(facts["latent_sizes"], facts["shifts"], strict=True):
        channels, rows, columns = size
        assert FlowConfig().shift_of(channels * rows * columns) == pytest.approx(wanted)


TRAJECTORIES = (
    "no_guidance", "cfg_always", "cfg_default_interval", "cfg_interval", "cfg_two_intervals",
    "ag_always", "ag_interval",
)  # fmt: skip


@pytest.mark.parametrize("name", TRAJECTORIES)
@torch.no_grad()
def test_trajectories(golden: Load, name: str) -> None:
    here, models = golden("generator_trajectory"), golden("generator_lightningdit")
    velocity = reference_of(here.facts["calls"][name], models, here.inputs["y"])
    times = grid(here.facts["num_steps"], 2.0)
    close(times.float(), here.expected["times"], 1e-6)
    found = [here.inputs["z"], *states(velocity, here.inputs["z"], times)]
    assert len(found) == 1 + here.facts["network_evaluations"]
    close(torch.stack(found), here.expected[name])


def close(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)
