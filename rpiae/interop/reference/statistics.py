"""Files of the features' statistics: {"mean", "var"}, as the reference keeps them beside its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.tokenizer import NORM_EPS, RPiAE
from rpiae.core.runtime.names import printable, shown
from rpiae.core.runtime.weight_files import named_file, opened
from rpiae.core.runtime.weights import check_finite, check_plain
from rpiae.interop.reference.facts import Facts, Table, located

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
    statistics = {"mean": mean.float().contiguous(), "var": var.float().contiguous()}
    for name, value in statistics.items():
        check_finite(source, name, value)
    return statistics["mean"], statistics["var"]


def statistics_file(params: Table, where: Path | None, facts: Facts) -> str:
    """The file of statistics that features are normalised with, or nothing.

    Args:
        params: the reference's parameters, which may name one.
        where: their file.
        facts: what the user says; a file that is not there is asked for.
    """
    named = params.get("normalization_stat_path")
    if facts.told.stats:
        return facts.told.stats
    if not named:
        facts.notes.append("features are not normalised, as no statistics are named (--stats)")
        return ""
    assert where is not None
    for name in (str(named), Path(str(named)).name):
        if found := located(where, name):
            return str(found)
    facts.asked.append(
        f"the statistics of features, which {where} has in {shown(named)} (--stats FILE, Python: stats)"
    )
    return ""


def normalise(
    model: RPiAE, file: str, params: Table, *, grid: tuple[int, int], facts: Facts
) -> None:
    """Have a tokenizer normalise its features by a file of statistics, where there is one.

    Args:
        model: takes them as its ``feature_norm``.
        file: the file, or nothing.
        params: the reference's parameters, which may have another epsilon.
        grid: that its decoder was trained on.
        facts: where the file is noted.

    Raises:
        CheckpointError: see ``read_statistics``.
        UsageError: if the epsilon is no number.
    """
    if not file:
        return
    said = params.get("eps")
    eps = NORM_EPS if said is None else _number(said)
    if eps is None:
        raise UsageError(f"{facts.source}: eps of its config is {shown(said)}, which is no number")
    assert model.config is not None
    width = model.config.encoder_facts.width
    mean, var = read_statistics(file, width=width, grid=grid, eps=eps)
    model.register_buffer("feature_mean", mean)
    model.register_buffer("feature_var", var)
    facts.note_read(Path(file))


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


def _number(value: Any) -> float | None:
    """A number of a YAML file, which has 1e-5 as a text."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
