"""Dit: its sizes, how it begins, grids it was not made for, and torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rpiae.core.config.generation import GeneratorConfig
from rpiae.core.errors import ConfigError, UsageError
from rpiae.core.model.blocks import recomputing, resample_positions, sincos_positions
from rpiae.core.model.resolve import part_config, wire
from rpiae.core.registry.registry import registry
from rpiae.generators.dit import Dit
from rpiae.generators.layers import ModulatedBlock, RotaryPositions, rotated
from tests.toys import GENERATORS

SIZES: dict[str, Any] = {
    "latent_channels": 4, "rows": 4, "columns": 6, "num_classes": 3, "width": 32, "depth": 2,
    "num_heads": 2,
}  # fmt: skip


def moved(**changes: Any) -> Dit:
    """A model that predicts something."""
    torch.manual_seed(0)
    model = Dit(**(SIZES | changes))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn(value.shape))
    return model.eval()


def batch(rows: int = 4, columns: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, rows, columns, generator=draws)
    return latents, torch.tensor([0.1, 0.5, 1.0]), torch.tensor([0, 2, 3])


def of_preset(name: str, channels: int, side: int, num_classes: int) -> GeneratorConfig:
    facts = {"channels": channels, "rows": side, "columns": side, "num_classes": num_classes}
    wires: dict[str, tuple[Any, str]] = {f"latents.{n}": (v, "a test") for n, v in facts.items()}
    config, problems = wire(part_config("generators", name), wires, "generator")
    assert problems == []
    assert isinstance(config, GeneratorConfig)
    return config


def test_the_released_size() -> None:
    with torch.device("meta"):
        model = of_preset("dit-xl", 64, 16, 1000).build()
    assert sum(p.numel() for p in model.parameters()) == 675_629_696
    assert model.positions.numel() == 294_912
    assert model.time.frequencies.numel() == 256


@pytest.mark.parametrize("name", sorted(p.name for p in registry("generators").presets()))
def test_presets_are_as_wide_as_they_say(name: str) -> None:
    config = of_preset(name, 8, 16, 10)
    preset = next(p for p in registry("generators").presets() if p.name == name)
    assert preset.summary.startswith(f"{config.width} wide, {config.depth} blocks")
    assert ("wide head" in preset.summary) == bool(config.head_depth)
    assert config.label == name


@pytest.mark.parametrize("name", GENERATORS)
def test_a_fresh_one_gives_zero(name: str) -> None:
    tree = {**GENERATORS[name], "latent_channels": 4, "rows": 4, "columns": 6, "num_classes": 3}
    model = part_config("generators", tree).build()
    assert not model(*batch()).any()


def test_how_it_begins() -> None:
    torch.manual_seed(0)
    model = Dit(**(SIZES | {"width": 96, "num_classes": 999}))
    zero = [model.final.linear, model.final.modulation, *(b.modulation for b in model.blocks)]
    assert not any(layer.weight.any() or layer.bias.any() for layer in zero)
    for layer in (model.blocks[0].attn.qkv, model.blocks[1].mlp.w12, model.blocks[0].attn.proj):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.98 * bound < layer.weight.detach().abs().max() <= bound
        assert not layer.bias.any()
    conv = model.embed.weight.detach().flatten(1)
    assert 0.95 < conv.abs().max() / (6 / sum(conv.shape)) ** 0.5 <= 1
    for weight in (model.labels.weight, model.time.mlp[0].weight, model.time.mlp[2].weight):
        assert weight.detach().std() == pytest.approx(0.02, rel=0.05)
    assert model.time.frequencies.detach().std() == pytest.approx(1, rel=0.15)
    assert (model.blocks[0].norm1.weight == 1).all()
    assert torch.equal(model.positions.flatten(0, 2), sincos_positions(4, 6, 96))


def test_default_initialisation_is_torchs_own() -> None:
    model = Dit(**(SIZES | {"init": "default"}))
    qkv = model.blocks[0].attn.qkv
    assert qkv.weight.abs().max() <= SIZES["width"] ** -0.5
    assert qkv.bias.any()
    assert not model.embed.bias.any()
    assert not model.final.linear.weight.any()


@pytest.mark.parametrize("ratio", [1.0, 2.5, 4.0])
def test_hidden_channels(ratio: float) -> None:
    swiglu = Dit(**(SIZES | {"mlp_ratio": ratio, "width": 80, "num_heads": 4}))
    assert swiglu.blocks[0].mlp.w3.in_features == int(2 / 3 * int(80 * ratio))
    plain = Dit(**(SIZES | {"mlp_ratio": ratio, "swiglu": False}))
    assert plain.blocks[0].mlp.fc1.out_features == int(32 * ratio)


def test_trained_positions_are_resampled_and_fixed_ones_computed() -> None:
    trained, fixed = moved(), moved(positions="fixed")
    wanted = resample_positions(trained.positions, (5, 8), antialias=False).flatten(1, 2)
    assert torch.equal(trained._positions((5, 8)), wanted)
    assert torch.equal(fixed._positions((5, 8)), sincos_positions(5, 8, 32))
    assert "positions" not in fixed.state_dict()
    assert moved(positions="none")._positions((5, 8)) == 0


def test_without_positions_tokens_are_a_set() -> None:
    model = moved(positions="none", rope=False)
    latents, time, labels = batch()
    found = model(latents.flip(-1), time, labels)
    torch.testing.assert_close(found, model(latents, time, labels).flip(-1))


def test_rotary_positions() -> None:
    kept = RotaryPositions(head_width=8, grid=(3, 5))
    computed = RotaryPositions(head_width=8, grid=(1, 1))
    for one, other in zip(kept((3, 5)), computed((3, 5)), strict=True):
        assert torch.equal(one, other)
    cosines, sines = (table.view(3, 5, 8) for table in kept((3, 5)))
    torch.testing.assert_close(cosines**2 + sines**2, torch.ones(3, 5, 8))
    assert (cosines[:, :, :4] == cosines[:, :1, :4]).all(), "the first half is the row's"
    assert (cosines[:, :, 4:] == cosines[:1, :, 4:]).all(), "the second half is the column's"


def test_what_rotation_leaves_of_queries_and_keys_depends_on_distance_alone() -> None:
    rotation = RotaryPositions(head_width=8, grid=(4, 6))((4, 6))
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 1, 24, 8)
    scores = (rotated(q, rotation) @ rotated(k, rotation).mT).view(4, 6, 4, 6)
    torch.testing.assert_close(scores[0, 0, 2, 3], scores[1, 2, 3, 5])
    assert not torch.isclose(scores[0, 0, 2, 3], scores[0, 0, 3, 2])


@pytest.mark.parametrize("head_depth", [0, 1])
def test_recomputing_gives_the_same_gradients(head_depth: int) -> None:
    model = moved(head_depth=head_depth, head_width=48, head_heads=3)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(*batch()).square().mean(), list(model.parameters())))

    plain = gradients()
    with recomputing(True):
        again = gradients()
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    "name", ["dit", *(pytest.param(n, marks=pytest.mark.slow) for n in GENERATORS if n != "dit")]
)
def test_one_graph_with_equal_outputs(name: str) -> None:
    tree = {**GENERATORS[name], "latent_channels": 4, "rows": 4, "columns": 6, "num_classes": 3}
    model: nn.Module = part_config("generators", tree).build().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn(value.shape))
        torch.compiler.reset()
        traced: Any = torch.compile(model, backend="eager", fullgraph=True)
        for sides in ((4, 6), (6, 4)):
            assert torch.equal(traced(*batch(*sides)), model(*batch(*sides)))


def test_norms_and_what_blocks_give_are_in_fp32_under_autocast() -> None:
    model, seen = moved(positions="none", head_depth=1, head_width=48, head_heads=3), []
    for module in model.modules():
        if isinstance(module, (nn.RMSNorm, ModulatedBlock)):
            module.register_forward_hook(lambda _, given, made: seen.extend([given[0], made]))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*batch())
    assert {each.dtype for each in seen} == {torch.float32}
    assert found.dtype == torch.float32
    assert (
        moved()
        .double()(*(each.double() if each.is_floating_point() else each for each in batch()))
        .dtype
        == torch.float64
    )


def test_latents_that_are_no_whole_patches() -> None:
    model = moved(patch=2)
    with pytest.raises(UsageError, match="5×6 cannot be cut into patches of 2"):
        model(*batch(5, 6))
    with pytest.raises(ValueError, match="4×6 cannot be cut into patches of 4"):
        moved(patch=4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 30, "num_heads": 3}, r"width: sin-cos positions need a multiple of 4, got 30"),
        ({"num_heads": 5}, r"num_heads: 5 heads do not divide the width of 384"),
        (
            {"width": 36, "num_heads": 6},
            r"num_heads: rotary .* 6 heads of 36 have 6.* rope = false",
        ),
        (
            {"head_depth": 1, "head_heads": 7},
            r"head_heads: 7 heads do not divide the width of 2048",
        ),
        ({"patch": 3, "rows": 16}, r"patch: patches of 3 do not divide latents of 16 rows"),
    ],
)
def test_sizes_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part_config("generators", {"name": "dit", **values})
