"""Exponential moving average over the trained parameters only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from rpiae.core.training.schedules import ema_decay


class Ema:
    """Moving average of named parameters, in their own dtype.

    Args:
        parameters: role-prefixed names and parameters.
        decay: the final decay.
        warmup: whether it is approached as ``schedules.ema_decay`` says, or holds from the start.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        decay: float,
        warmup: bool = True,
    ) -> None:
        self._parameters = dict(parameters)
        self._decay = decay
        self._warmup = warmup
        self._step = 0
        self.values = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def begin(self) -> None:
        """Begin anew with the parameters as they are."""
        torch._foreach_copy_(list(self.values.values()), list(self._parameters.values()))
        self._step = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current parameters: ema ← d·ema + (1 − d)·parameter."""
        decay = ema_decay(self._step, decay=self._decay) if self._warmup else self._decay
        torch._foreach_lerp_(list(self.values.values()), list(self._parameters.values()), 1 - decay)
        self._step += 1

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Have the parameters hold the averages inside the ``with`` block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, object]:
        """Averages and step count."""
        return {"values": self.values, "step": self._step}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a saved state."""
        values, step = state["values"], state["step"]
        assert isinstance(values, dict)
        assert isinstance(step, int)
        for name, value in values.items():
            self.values[name].copy_(value)
        self._step = step

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages."""
        for name, parameter in self._parameters.items():
            average: Tensor = self.values[name]
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
