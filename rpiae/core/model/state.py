"""Tensors that we wrote, by name, into modules: checked first, and loaded whole.

Those of foreign files go through ``rpiae.core.runtime.weights.load_whole``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.runtime.weights import check_architecture, shapes


def written_state(model: nn.Module, rounded_to: torch.dtype | None = None) -> dict[str, Tensor]:
    """A model's state as it is written: on the CPU, its parameters rounded to a dtype where one is given.

    Raises:
        UsageError: if a parameter is too large for that dtype.
    """
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    if rounded_to is None:
        return state
    for name, parameter in model.named_parameters():
        rounded = state[name].to(rounded_to)
        if not rounded.isfinite().all():
            raise UsageError(
                f"{name} has values up to {parameter.detach().abs().max().item():.3g}, more than "
                f"{str(rounded_to).removeprefix('torch.')} can hold: round to bfloat16, or not at all"
            )
        state[name] = rounded
    return state


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, exact: bool = False
) -> None:
    """Load all tensors of a state; see ``check_state``.

    Raises:
        CheckpointError: if names, shapes or dtypes are of another architecture.
    """
    check_state(model, state, source=source, exact=exact)
    model.load_state_dict(state)


def check_state(
    model: nn.Module, state: Mapping[str, Tensor], *, source: str, exact: bool = False
) -> None:
    """Refuse a state that does not fit a model.

    Args:
        model: the model.
        state: tensors by name.
        source: what messages call the state.
        exact: whether floating dtypes have to be the model's own; else they may be converted.

    Raises:
        CheckpointError: if names, shapes or dtypes are of another architecture.
    """
    own = model.state_dict()
    check_architecture(source, shapes(own), shapes(state))
    for name in sorted(own):
        there, here = state[name].dtype, own[name].dtype
        convertible = not exact and there.is_floating_point and here.is_floating_point
        if there != here and not convertible:
            raise CheckpointError(f"{source}: {name} is {there} there and {here} here")
        check_values_are_there(state[name], f"{source}: {name}")


def check_values_are_there(tensor: Tensor, what: str) -> None:
    """Refuse a tensor without its values: one of the meta device has a shape alone, a sparse one and
    the like have them elsewhere.

    Raises:
        CheckpointError: if it is one; the message begins with ``what``.
    """
    if tensor.is_meta or tensor.layout is not torch.strided:
        kind = "of the meta device, without values" if tensor.is_meta else f"{tensor.layout}"
        raise CheckpointError(f"{what} is {kind}, not a plain tensor")
