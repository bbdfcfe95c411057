"""Encoders cast to other types, and traced by torch.compile, beside the toys' own tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rpiae.core.model.resolve import part_config
from tests.toys import ENCODERS

SIZES = {"embed_dim": 64, "depth": 3, "num_heads": 2, "img_size": 56}
ROTARY = {
    "dinov3": {"name": "timm", "model": "vit_small_patch16_dinov3", "model_args": SIZES},
    "eupe": {"name": "timm", "model": "vit_tiny_patch16_dinov3_qkvb", "model_args": SIZES},
    "pe-core": {"name": "timm", "model": "vit_pe_core_base_patch16_224", "model_args": SIZES},
    "eva02": {"name": "timm", "model": "eva02_base_patch16_clip_224", "model_args": SIZES},
}
MORE = {
    **ENCODERS,
    **ROTARY,
    "dinov2-noreg": {"name": "timm", "model": "vit_small_patch14_dinov2", "model_args": SIZES},
}

#: Least cosine of a token to the fp32 one: roundings of 8 and 11 bits in three blocks.
COSINES = {torch.bfloat16: 0.999, torch.float16: 0.99999, torch.float64: 0.999999}


def encoder(name: str) -> Any:
    torch.manual_seed(0)
    return part_config("encoders", {**MORE[name], "pretrained": False}).build().eval()


def images(rows: int, columns: int, patch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, rows * patch, columns * patch, generator=generator)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", COSINES)
@pytest.mark.parametrize("name", MORE)
def test_cast_weights_give_tokens_near_those_of_fp32(name: str, dtype: torch.dtype) -> None:
    module = encoder(name)
    given = images(7, 5, module.patch[1])
    with torch.inference_mode():
        exact = module(given).tokens
        found = module.to(dtype)(given.to(dtype)).tokens
    cosines = F.cosine_similarity(found.double(), exact.double(), dim=-1)
    assert cosines.min() > COSINES[dtype]
    assert found.dtype == torch.promote_types(dtype, torch.float32)  # the last norm is of fp32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ROTARY)
def test_rotary_tables_stay_in_fp32(name: str, dtype: torch.dtype) -> None:
    module = encoder(name)
    exact = module._rotations((1, 40, 64))
    found = module.to(dtype)._rotations((1, 40, 64))
    for one, other in zip(exact, found, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["dinov3", "pe-core", "dinov2-noreg"])
def test_traced_encoders_give_the_same_tokens_at_any_size(name: str) -> None:
    module = encoder(name)
    traced = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for grid in ((7, 5), (3, 6)):
            given = images(*grid, module.patch[1])
            found, wanted = traced(given), module(given)
            assert found.grid == wanted.grid == (1, *grid)
            torch.testing.assert_close(found.tokens, wanted.tokens, rtol=0, atol=1e-6)
