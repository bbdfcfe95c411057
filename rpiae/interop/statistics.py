"""Files of the features' statistics: {"mean", "var"}, as the reference keeps them beside its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from rpiae.core.errors import CheckpointError
from rpiae.core.model.tokenizer import NORM_EPS
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weight_files import named_file, opened
from rpiae.core.runtime.weights import check_finite, check_plain

NAMES = ("mean", "var")

#: What the reference takes where one of the two is missing.
_DEFAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.zeros_like,
    "var": torch.ones_like,
}


def read_statistics(
    file: str, *, width: int, grid: tuple[int, int], eps: float = NORM_EPS
) -> tuple[Tensor, Tensor]:
    """Mean and variance of features, for ``RPiAE(feature_norm=…)``.

    Args:
        file: a torch or safetensors file with tensors (D, 1, 1), (D, h, w) or one of these behind a
            batch of one, of which one may be missing.
        width: channels D.
        grid: (h, w).
        eps: what is added to the variance there; ours is ``NORM_EPS``, so the rest goes into the variance.

    Raises:
        CheckpointError: if it is no such file, or of another width or grid.
    """
    path = named_file(file, owner="the features' statistics")
    source = printable(str(path))
    with opened(path) as tables:
        found = {name: get() for name, get in tables[""].items() if name in NAMES}
    if not found:
        raise CheckpointError(f"{source} has neither mean nor var, and is no file of statistics")
    shaped = {name: _shaped(source, name, t, width, grid) for name, t in found.items()}
    known = next(iter(shaped.values()))
    mean, var = (shaped.get(name, _DEFAULTS[name](known)) for name in NAMES)
    mean, var = mean + torch.zeros_like(var), var + torch.zeros_like(mean) + (eps - NORM_EPS)
    if var.min() < 0:
        raise CheckpointError(
            f"{source}: var is {var.min().item():g} at least, and variances are not negative"
        )
    return mean.float().contiguous(), var.float().contiguous()


def write_statistics(path: Path, mean: Tensor, var: Tensor) -> None:
    """A file of statistics; see ``read_statistics``."""
    torch.save({"mean": mean.cpu().clone(), "var": var.cpu().clone()}, path)


def _shaped(source: str, name: str, value: Tensor, width: int, grid: tuple[int, int]) -> Tensor:
    """Statistics as (D, 1, 1) or (D, h, w), in fp64."""
    check_plain(source, name, value)
    check_finite(source, name, value)
    shape = tuple(value.shape[1:] if value.ndim == 4 and len(value) == 1 else value.shape)
    if shape not in ((width, 1, 1), (width, *grid)) or not value.is_floating_point():
        raise CheckpointError(
            f"{source}: {name} is {value.dtype} {tuple(value.shape)}, and the features that it "
            f"normalises are {width} wide on a grid of {grid[0]}×{grid[1]}: expected floats "
            f"({width}, 1, 1) or {(width, *grid)}"
        )
    return value.reshape(shape).double()
