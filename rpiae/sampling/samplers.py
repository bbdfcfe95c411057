"""From noise to data along a velocity: solvers of dx = v(x, t) dt, t from 1 to 0.

Pure functions of the velocity, the noise and the times.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

#: ε − x₁ of latents (b, C, h, w) at times (b,). The times are on the CPU, so that nobody has to wait for
#: a device to know them.
Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def sample(
    velocity: Velocity,
    noise: Float[Tensor, "b c h w"],
    times: Float[Tensor, " n"],
    sampler: Literal["euler", "heun"] = "euler",
) -> Float[Tensor, "b c h w"]:
    """Where noise gets to.

    Args:
        velocity: what is followed.
        noise: the state at the first time.
        times: falling; one more than steps.
        sampler: ``euler``, or ``heun``: the mean of the velocities at both ends of a step.
    """
    state = noise
    for state in states(velocity, noise, times, sampler):  # noqa: B007  # the last one is wanted
        pass
    return state


def states(
    velocity: Velocity,
    noise: Float[Tensor, "b c h w"],
    times: Float[Tensor, " n"],
    sampler: Literal["euler", "heun"] = "euler",
) -> Iterator[Float[Tensor, "b c h w"]]:
    """The state at every time behind the first; see ``sample``.

    A step that ends at 0 is Euler's with ``heun`` too: a model that predicts data has no velocity
    there. Source: arXiv 2206.00364, algorithm 1.
    """
    state = noise
    for before, after in itertools.pairwise(times.tolist()):
        step = after - before
        slope = velocity(state, _of_each(before, state))
        moved = state + step * slope
        if sampler == "heun" and after > 0:
            slope = (slope + velocity(moved, _of_each(after, state))) / 2
            moved = state + step * slope
        state = moved
        yield state


def _of_each(time: float, state: Tensor) -> Float[Tensor, " b"]:
    return torch.full((len(state),), time)
