"""What the built-in recipes say, do, and want of other parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from PIL import Image

from rpiae import runs
from rpiae.core.errors import ConfigError
from rpiae.core.model.resolve import ResolvedRun, part_config
from rpiae.core.registry.registry import registry
from rpiae.core.training.ema import Ema
from rpiae.core.training.trainer import train
from rpiae.decoders.configs import VitDecoderConfig
from rpiae.decoders.vit import VitDecoder
from rpiae.tasks.tokenizer.path import layers as layers_of
from tests.toys import ENCODERS, toy_run

#: Recipes that train on images as the paper does.
OF_THE_PAPER = ("rpiae", "rpiae-reference", "rae", "unpivoted", "joint", "vae")


def resolved(recipe: str, *overrides: str, **fields: Any) -> ResolvedRun:
    tree = {
        "encoder": ENCODERS["vit"] | {"pretrained": True}, "bridge": "linear4", "decoder": "vit-t",
        "recipe": recipe, "data": "sample",
    }  # fmt: skip
    return runs.resolve(tree | fields, overrides=overrides)


@pytest.mark.parametrize("recipe", OF_THE_PAPER)
@pytest.mark.parametrize(("size", "side"), [(256, 384), (32, 48), (33, 50)])
def test_training_images_have_a_short_side_of_one_and_a_half_crops(
    recipe: str, size: int, side: int
) -> None:
    found = resolved(recipe, f"data.image_size={size}")
    assert getattr(found.config.data, "resize", None) == side
    assert any(f"short side of {side} pixels" in text for text in found.notices)


@pytest.mark.parametrize("recipe", ["rpiae", "quick"])
def test_the_size_that_is_given_stays(recipe: str) -> None:
    found = resolved(recipe, "data.resize=40")
    assert getattr(found.config.data, "resize", None) == 40
    assert not any("short side" in text for text in found.notices)


def test_buckets_say_the_size_themselves(tmp_path: Path) -> None:
    data = {"name": "folder", "path": str(tmp_path), "buckets": 3}
    assert getattr(resolved("rpiae", data=data).config.data, "resize", 0) is None


def test_the_sources_of_a_mixture_are_resized() -> None:
    sources = [{"data": "sample"}, {"data": {"name": "sample", "resize": 60}}]
    data = resolved("rpiae", data={"name": "mixture", "sources": sources}).config.data
    assert [getattr(s.data, "resize", None) for s in getattr(data, "sources", ())] == [48, 60]


def test_small_images_are_enlarged(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (20, 24), (number, 80, 0)).save(tmp_path / f"{number}.png")
    data = {"name": "folder", "path": str(tmp_path), "held_out": 1, "workers": 0, "image_size": 32}
    with_recipe = resolved("rpiae", data=data).config.data
    assert with_recipe is not None
    assert with_recipe.build().crops(4, seed=0).shape == (4, 3, 32, 32)


def test_rae_has_the_papers_batch() -> None:
    (stage,) = resolved("rae").config.recipe.stages
    assert stage.batch_size == 512


def test_the_reference_recipe_is_what_its_first_line_says() -> None:
    own, plain = (resolved(r, bridge="vb4").config for r in ("rpiae-reference", "rpiae"))
    assert isinstance(own.decoder, VitDecoderConfig)
    assert (own.decoder.positions, own.decoder.stored_grid) == ("trained", (8, 8))
    assert isinstance(plain.decoder, VitDecoderConfig)
    assert plain.decoder.stored_grid == ()
    for stage, other in zip(own.recipe.stages, plain.recipe.stages, strict=True):
        assert (stage.ema, stage.ema_warmup) == (0.9978, False)
        assert other.ema_warmup
    layers = [t.adaptive.layer for t in own.recipe.stages[0].terms if t.adaptive]
    assert layers == ["encoder-last", "decoder"]
    assert own.recipe.stages[1].posterior == "mode"
    assert own.recipe.stages[1].optimiser.decay_epochs == 16
    said = own.recipe.summary
    for words in ("positions trained", "EMA", "last parameter", "posterior mean", "epoch 16"):
        assert words in said


def test_what_a_user_says_of_positions_stays() -> None:
    config = resolved("rpiae-reference", "decoder.positions=fixed", bridge="vb4").config
    assert getattr(config.decoder, "stored_grid", None) == ()


def test_a_reference_run_trains_its_positions(tmp_path: Path) -> None:
    inputs = toy_run(tmp_path, "timm", "vb4", "vit", "rpiae-reference", "recipe.batch_size=2")
    decoder = inputs.task.model.decoder
    assert isinstance(decoder, VitDecoder)
    before = decoder.positions.detach().clone()
    one = evolve(inputs.recipe, stages=inputs.recipe.stages[:1], max_steps=1)
    list(train(evolve(inputs, recipe=one)))
    assert (decoder.positions - before).abs().max() > 0
    copy = VitDecoder(
        features=32, patch=decoder.patch[1], width=32, depth=1, num_heads=2, mlp_hidden=64,
        positions="trained", stored_grid=before.shape[1:3],
    )  # fmt: skip
    copy.load_state_dict(decoder.state_dict())


def test_trained_positions_pass_gradients_at_any_grid() -> None:
    decoder = VitDecoder(
        features=8, patch=2, width=16, depth=1, num_heads=1, mlp_hidden=16,
        positions="trained", stored_grid=(4, 4),
    )  # fmt: skip
    from rpiae.core.model.contracts import Features

    for rows, columns in ((4, 4), (3, 6)):
        decoder.zero_grad()
        decoder(Features(torch.randn(1, rows * columns, 8), (1, rows, columns))).sum().backward()
        assert isinstance(decoder.positions, torch.nn.Parameter)
        assert decoder.positions.grad is not None
        assert decoder.positions.grad.abs().sum() > 0


def test_the_decay_of_averages_is_fixed_where_a_stage_says_so() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    ema = Ema([("a", parameter)], decay=0.9978, warmup=False)
    with torch.no_grad():
        parameter.fill_(1.0)
    ema.update()
    torch.testing.assert_close(ema.values["a"], torch.tensor([1 - 0.9978]))


def test_the_last_parameter_of_dinov2_is_its_second_layer_scale(tmp_path: Path) -> None:
    model = toy_run(tmp_path, "timm", "vb4", "vit", "quick").task.model
    layers = layers_of(model)
    (name,) = (
        n
        for n, p in model.roles["encoder"].named_parameters()
        if p is layers["encoder-last"].weight
    )
    assert name.endswith("blocks.2.ls2.gamma")
    assert layers["encoder"].weight is model.encoder.last_weight


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("decoder.stored_grid=[-1,1]", "decoder.stored_grid"),
        ("decoder.stored_grid=[0,4]", "decoder.stored_grid"),
        ("decoder.stored_grid=[4]", "decoder.stored_grid"),
        ("decoder.stored_grid=[100000,100000]", "decoder.stored_grid"),
        ("decoder.patch=0", "decoder.patch"),
        ("decoder.patch=1000000000000000", "decoder.patch"),
        ("decoder.width=6", "decoder.width"),
        ("decoder.width=-4", "decoder.width"),
        ("decoder.num_heads=7", "decoder.num_heads"),
        ("decoder.num_heads=0", "decoder.num_heads"),
        ("decoder.depth=1000000000", "decoder.depth"),
        ("decoder.mlp_hidden=100000000", "decoder.mlp_hidden"),
        ("bridge.latent_channels=0", "bridge.latent_channels"),
        ("bridge.latent_channels=99999999", "bridge.latent_channels"),
        ("bridge.decoder_layers=-1", "bridge.decoder_layers"),
        ("bridge.decoder_mlp_ratio=1e300", "bridge.decoder_mlp_ratio"),
    ],
)
def test_a_size_that_cannot_be_is_refused_by_its_field(setting: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved("quick", setting, bridge="vb4")
    assert any(problem.startswith(f"{field}: ") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("changed", "field"),
    [({"kernel": 4}, "kernel"), ({"layers": [7]}, "layers"), ({"image_size": 2}, "image_size")],
)
def test_a_critic_that_cannot_be_is_refused_by_its_field(
    changed: dict[str, Any], field: str
) -> None:
    backbone = {"name": "vit", "width": 32, "depth": 3, "num_heads": 2}
    with pytest.raises(ConfigError) as caught:
        part_config("critics", {"name": "dino", "backbone": backbone, "layers": [0]} | changed)
    assert any(problem.startswith(f"{field}: ") for problem in caught.value.problems)


def test_every_recipe_has_a_first_line() -> None:
    assert all(preset.summary for preset in registry("recipes").presets())
