"""Tensors that we wrote, by name, into modules: checked first, and loaded whole.

Those of foreign files go through ``rpiae.core.runtime.weights.load_whole``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError
from rpiae.core.runtime.weights import check_architecture, shapes


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
