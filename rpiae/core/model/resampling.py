"""Maps at other sizes: interpolation, also where a graph is exported.

Exporters fail on the operators of bicubic interpolation, or come close to them: ONNX has none with
antialiasing, and onnxruntime's cubic resize differs. A separable kernel is two matrices, one per side,
and their entries are arithmetic on the two sizes, which may be symbols: in an exported graph a map is
resampled by two matrix products.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Mode: TypeAlias = Literal["bicubic", "bilinear"]


def resample(
    maps: Float[Tensor, "b c h w"],
    size: tuple[int, int],
    *,
    mode: Mode = "bicubic",
    antialias: bool = False,
    offset: float = 0.0,
) -> Float[Tensor, "b c height width"]:
    """Maps interpolated to ``size`` (rows, columns), corners unaligned; unchanged at the size they have.

    Args:
        maps: of a dtype that kernels compute in.
        size: rows and columns wanted; while a graph is exported, they may be symbols.
        mode: the kernel.
        antialias: whether the kernel widens where a side shrinks.
        offset: added to both sides wanted before they divide by those there are; it shifts where
            each value is read.
    """
    there = (maps.shape[-2], maps.shape[-1])
    if torch.compiler.is_exporting():
        return _by_matrices(maps, there, size, mode, antialias, offset)
    if there == tuple(size):
        return maps
    scales = [(side + offset) / old for side, old in zip(size, there, strict=True)]
    return F.interpolate(
        maps, mode=mode, antialias=antialias,
        **({"scale_factor": scales} if offset else {"size": size}),
    )  # fmt: skip


def weights(
    there: int, wanted: int, *, mode: Mode, antialias: bool, offset: float | Tensor = 0.0
) -> Float[Tensor, "wanted there"]:
    """What each of the values of a line counts for in each of those wanted, in fp32.

    Args:
        there, wanted: lengths, which may be symbols.
        mode, antialias, offset: see ``resample``.

    Source: the kernels of torch's ``interpolate``: Keys' cubic (IEEE ASSP 29, 1981) with −0.75, and
    −0.5 where it is antialiased, whose rows are then normalised.
    """
    scale = torch.scalar_tensor(there) / (torch.scalar_tensor(wanted) + offset)
    centres = (scale * (torch.arange(wanted) + 0.5) - 0.5).unsqueeze(1)
    places = torch.arange(there).unsqueeze(0)
    reach = 2 if mode == "bicubic" else 1
    if antialias:
        made = _kernel((places - centres) / scale.clamp(min=1), reach, sharpness=-0.5)
        return made / made.sum(dim=1, keepdim=True)
    first = centres.floor()
    made = torch.zeros_like(places - centres)
    for tap in range(1 - reach, reach + 1):
        value = _kernel(first + tap - centres, reach, sharpness=-0.75)
        made = made + torch.where((first + tap).clamp(0, there - 1) == places, value, 0.0)
    return made


def _by_matrices(
    maps: Tensor,
    there: tuple[int, int],
    size: tuple[int, int],
    mode: Mode,
    antialias: bool,
    offset: float,
) -> Tensor:
    """As ``resample``, in operators that every exporter has and for sizes that may be symbols."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    pairs = list(zip(there, size, strict=True))
    if all(statically_known_true(old == side) for old, side in pairs):
        return maps
    changed = [torch.scalar_tensor(side) != torch.scalar_tensor(old) for old, side in pairs]
    moved = offset * (changed[0] | changed[1]) if offset else 0.0
    rows, columns = (
        weights(old, side, mode=mode, antialias=antialias, offset=moved).to(maps)
        for old, side in pairs
    )
    return rows @ maps @ columns.T


def _kernel(distance: Tensor, reach: int, *, sharpness: float) -> Tensor:
    """The cubic of reach 2, or the triangle of reach 1."""
    x = distance.abs()
    if reach == 1:
        return (1 - x).clamp(min=0)
    near = ((sharpness + 2) * x - (sharpness + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * sharpness - 4 * sharpness
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
