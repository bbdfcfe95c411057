"""Tensors by name into modules: checked first, and loaded whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError


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
    """Whether a state fits a model.

    Args:
        model: the model.
        state: tensors by name.
        source: what messages call the state.
        exact: whether floating dtypes have to be the model's own; else they may be converted.

    Raises:
        CheckpointError: if names, shapes or dtypes are of another architecture.
    """
    own = model.state_dict()
    both = sorted(set(own) & set(state))
    check_architecture(
        source,
        missing=sorted(set(own) - set(state)),
        extra=sorted(set(state) - set(own)),
        wrong={
            name: (tuple(state[name].shape), tuple(own[name].shape))
            for name in both
            if own[name].shape != state[name].shape
        },
    )
    for name in both:
        given, wanted = state[name].dtype, own[name].dtype
        convertible = not exact and given.is_floating_point and wanted.is_floating_point
        if given != wanted and not convertible:
            raise CheckpointError(f"{source}: {name} is {given} there and {wanted} here")
        check_values_are_there(state[name], f"{source}: {name}")


def check_values_are_there(tensor: Tensor, what: str) -> None:
    """Whether a tensor holds its values: those of the meta device have a shape alone, sparse ones
    and the like have them elsewhere.

    Raises:
        CheckpointError: if not; the message begins with ``what``.
    """
    if tensor.is_meta or tensor.layout is not torch.strided:
        kind = "of the meta device, without values" if tensor.is_meta else f"{tensor.layout}"
        raise CheckpointError(f"{what} is {kind}, not a plain tensor")


def check_architecture(
    source: str,
    *,
    missing: Sequence[str],
    extra: Sequence[str],
    wrong: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    """Refuse a state with other tensors than the model's.

    Args:
        source: what messages call the state.
        missing, extra: names that only the model has, and that only the state has.
        wrong: the shape there and the one here, of tensors that have another shape.

    Raises:
        CheckpointError: if there are any.
    """
    if not (missing or extra or wrong):
        return
    first = f"for example {(missing or extra)[0]}" if missing or extra else ""
    for name, (there, here) in list(wrong.items())[:1]:
        first = f"{name} is {there} there and {here} here"
    raise CheckpointError(
        f"{source} holds another architecture: {len(missing)} tensors missing, {len(extra)} "
        f"unknown, {len(wrong)} of another shape ({first})"
    )
