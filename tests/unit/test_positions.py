"""The rule by which each source resamples its positions, against formulas of its own."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.model.blocks import resample_positions
from rpiae.core.model.resolve import part_config
from rpiae.core.registry.registry import registry
from rpiae.encoders.open_clip import ClipTower, OpenClipEncoder
from rpiae.encoders.timm import TimmEncoder

SIZES = {"embed_dim": 32, "depth": 1, "num_heads": 2}

#: Family of presets → antialiasing, kernel, offset; None where positions are rotary alone. The code
#: that says so is named in docs/encoders.md.
RULES: dict[str, tuple[bool, Literal["bicubic", "bilinear"], float] | None] = {
    "clip": (False, "bicubic", 0.0),
    "dino-s8": (False, "bicubic", 0.1),
    "dinov2-noreg": (False, "bicubic", 0.1),
    "dinov2": (True, "bicubic", 0.0),
    "dinov3": None,
    "eupe": None,
    "i-jepa": (False, "bicubic", 0.0),
    "mae": (False, "bicubic", 0.0),
    "pe-core": (False, "bilinear", 0.0),
    "siglip": (False, "bicubic", 0.0),
    "tiny": (True, "bicubic", 0.0),
}


def family(preset: str) -> str:
    if preset.startswith("dinov2") and preset.endswith("-noreg"):
        return "dinov2-noreg"
    return next(name for name in sorted(RULES, key=len, reverse=True) if preset.startswith(name))


def cubic(distance: float, sharpness: float) -> float:
    """The cubic convolution kernel of Keys (1981)."""
    d, a = abs(distance), sharpness
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def axis(stored: int, wanted: int, antialias: bool, mode: str, offset: float) -> Tensor:
    """What each wanted position takes of the stored ones, as a matrix of doubles.

    Without antialiasing, samples beyond the border repeat it; with it, they are left out and the
    others weigh more, the kernel is as wide as a step, and its sharpness is −1/2, not −3/4.
    """
    matrix = torch.zeros(wanted, stored, dtype=torch.float64)
    step = stored / (wanted + offset)
    width = max(step, 1.0) if antialias else 1.0
    for row in range(wanted):
        centre = (row + 0.5) * step - 0.5
        for column in range(math.floor(centre - 3 * width), math.ceil(centre + 3 * width) + 1):
            distance = (column - centre) / width
            if mode == "bilinear":
                weight = max(1 - abs(distance), 0.0)
            else:
                weight = cubic(distance, -0.5 if antialias else -0.75)
            if not antialias:
                matrix[row, min(max(column, 0), stored - 1)] += weight
            elif 0 <= column < stored:
                matrix[row, column] += weight
    return matrix / matrix.sum(1, keepdim=True)


def resampled(stored: Tensor, size: tuple[int, int], rule: tuple[bool, str, float]) -> Tensor:
    if tuple(stored.shape[1:3]) == size:
        return stored.double()
    rows, columns = (
        axis(old, new, *rule) for old, new in zip(stored.shape[1:3], size, strict=True)
    )
    return torch.einsum("yh,xw,bhwd->byxd", rows, columns, stored.double())


@pytest.mark.parametrize("name", [n for n, rule in RULES.items() if rule])
@pytest.mark.parametrize("size", [(7, 7), (12, 5), (3, 9), (7, 10), (16, 16), (1, 2), (37, 37)])
@pytest.mark.parametrize("stored", [7, 16, 37])
def test_each_rule_is_its_formula(name: str, size: tuple[int, int], stored: int) -> None:
    rule = RULES[name]
    assert rule is not None
    torch.manual_seed(0)
    positions = torch.randn(1, stored, stored, 3)
    found = resample_positions(positions, size, antialias=rule[0], mode=rule[1], offset=rule[2])
    torch.testing.assert_close(found.double(), resampled(positions, size, rule), rtol=0, atol=2e-5)


def _positions(encoder: Any) -> tuple[Tensor, Tensor] | None:
    """An encoder's stored positions as a map, and what it adds to the patches of 5×3 tokens."""
    torch.manual_seed(0)
    network = getattr(encoder, "network", encoder)
    name = "positional_embedding" if isinstance(encoder, ClipTower) else "pos_embed"
    table = getattr(network, name)
    if table is None:
        return None
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        table.copy_(torch.randn(table.shape))
    if isinstance(encoder, ClipTower):
        network.ln_pre = torch.nn.Identity()
    else:
        network.norm_pre = torch.nn.Identity()
    _, patch, _ = encoder.patch
    images = torch.zeros(1, 3, 5 * patch, 3 * patch)
    with torch.inference_mode():
        tokens, _ = encoder._embed(images)
    flat = table.detach().reshape(1, -1, encoder.width) if table.ndim < 4 else table.detach()
    if flat.ndim == 3:
        side = math.isqrt(flat.shape[1])
        flat = flat[:, flat.shape[1] - side * side :].reshape(1, side, side, encoder.width)
    prefix = getattr(encoder, "prefix_tokens", 0)
    return flat, tokens[:, prefix:].reshape(1, 5, 3, encoder.width)


@pytest.mark.parametrize("preset", [p.name for p in registry("encoders").presets()])
def test_every_preset_follows_the_rule_of_its_source(preset: str) -> None:
    rule = RULES[family(preset)]
    given = part_config("encoders", preset)
    assert isinstance(given, EncoderConfig)
    model = getattr(given, "model", "")
    if preset == "tiny":
        encoder: Any = given.build()
    elif "/" in model and family(preset) == "clip":
        small = {"width": 32, "layers": 1, "head_width": 16}
        encoder = OpenClipEncoder(model=model, model_args=small).tower
    elif "/" in model:
        encoder = OpenClipEncoder(model=model, model_args=SIZES).tower
    else:
        encoder = TimmEncoder(model=model, model_args=SIZES)
    found = _positions(encoder)
    if rule is None:
        assert found is None
        return
    assert found is not None
    stored, added = found
    torch.testing.assert_close(added.double(), resampled(stored, (5, 3), rule), rtol=0, atol=2e-5)


def test_positions_of_another_grid_are_resampled_by_the_same_rule_on_loading() -> None:
    model, patch = "vit_small_patch14_dinov2", 14
    large = TimmEncoder(model=model, model_args={**SIZES, "img_size": 9 * patch})
    small = TimmEncoder(model=model, model_args={**SIZES, "img_size": 4 * patch})
    state = {n.removeprefix("network."): v for n, v in large.state_dict().items()}
    state["pos_embed"] = torch.randn_like(state["pos_embed"])
    small.load_tensors(state, source="f")
    wanted = resampled(
        state["pos_embed"][:, 1:].reshape(1, 9, 9, 32), (4, 4), (False, "bicubic", 0.1)
    )
    found = small.network.pos_embed.detach()
    torch.testing.assert_close(found[:, 1:].double(), wanted.flatten(1, 2), rtol=0, atol=2e-5)
    assert torch.equal(found[:, :1], state["pos_embed"][:, :1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_resampling_keeps_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    positions = torch.randn(1, 7, 7, 3, dtype=torch.float64).to(dtype)
    found = resample_positions(positions, (5, 4), antialias=True)
    assert found.dtype == dtype
    wanted = resampled(positions, (5, 4), (True, "bicubic", 0.0))
    bound = {torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound)
