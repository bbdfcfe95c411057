"""Every registered part through the contract kit, and every preset against its model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from attrs import frozen
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rpiae.core.config.generation import GeneratorConfig
from rpiae.core.config.parts import (
    BridgeConfig,
    CriticConfig,
    DecoderConfig,
    EncoderConfig,
    EncoderDescription,
    LossConfig,
)
from rpiae.core.model.contracts import StepContext
from rpiae.core.model.resolve import part_config, wire
from rpiae.core.registry.registry import registry
from rpiae.testing import (
    check_bridge,
    check_critic,
    check_decoder,
    check_encoder,
    check_generator,
    check_loss,
)
from tests.toys import BRIDGES, CRITICS, DECODERS, ENCODERS, GENERATORS, LOSSES

FACTS: dict[str, tuple[Any, str]] = {
    "encoder.width": (32, "the test"),
    "encoder.output_patch": (4, "the test"),
    "latents.channels": (5, "the test"),
    "latents.rows": (4, "the test"),
    "latents.columns": (6, "the test"),
    "latents.num_classes": (3, "the test"),
}


class Uninitialised(TorchFunctionMode):
    """Leaves out the arithmetic of initialisation, which takes seconds on the meta device."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.__name__ in ("uniform_", "erfinv_", "mul_", "add_", "clamp_") and args:
            return args[0]
        return func(*args, **(kwargs or {}))


def test_every_part_is_named_to_the_kit() -> None:
    assert {tree["name"] for tree in ENCODERS.values()} == _names("encoders")
    assert {part_config("bridges", tree).name for tree in BRIDGES.values()} == _names("bridges")
    assert {tree["name"] for tree in DECODERS.values()} == _names("decoders")
    assert {tree["name"] for tree in CRITICS.values()} == _names("critics")
    assert {tree["name"] for tree in GENERATORS.values()} == _names("generators")


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name: str) -> None:
    config = part_config("encoders", ENCODERS[name])
    assert isinstance(config, EncoderConfig)
    check_encoder(config)


@pytest.mark.parametrize("name", BRIDGES)
def test_bridge(name: str) -> None:
    config, problems = wire(part_config("bridges", BRIDGES[name]), FACTS, "bridge")
    assert problems == []
    assert isinstance(config, BridgeConfig)
    check_bridge(config)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder(name: str) -> None:
    config, problems = wire(part_config("decoders", DECODERS[name]), FACTS, "decoder")
    assert problems == []
    assert isinstance(config, DecoderConfig)
    check_decoder(config)


@pytest.mark.parametrize("name", GENERATORS)
def test_generator(name: str) -> None:
    config, problems = wire(part_config("generators", GENERATORS[name]), FACTS, "generator")
    assert problems == []
    assert isinstance(config, GeneratorConfig)
    check_generator(config)


@pytest.mark.parametrize("name", sorted(e.name for e in registry("losses").entries()))
def test_loss(name: str) -> None:
    config = part_config("losses", LOSSES.get(name, name))
    assert isinstance(config, LossConfig)
    torch.manual_seed(0)
    check_loss(config, part_config("encoders", ENCODERS["vit"]).build())


@frozen(kw_only=True)
class SilentConfig(LossConfig):
    """Config of a loss that says less than it looks at."""

    module: ClassVar[str] = f"{__name__}:Silent"
    needs: ClassVar[frozenset[str]] = frozenset({"pixels"})


class Silent:
    """Looks at the features too."""

    def __call__(self, context: StepContext) -> Tensor:
        return context.reconstruction.mean() + context.features.tokens.mean()


def test_a_loss_that_looks_at_more_than_it_names() -> None:
    with pytest.raises(
        AssertionError, match=r"reaches the tokens, which none of its needs \['pixels'\]"
    ):
        check_loss(SilentConfig(name="silent"))


@pytest.mark.parametrize("name", CRITICS)
def test_critic(name: str) -> None:
    config = part_config("critics", CRITICS[name])
    assert isinstance(config, CriticConfig)
    check_critic(config)


@pytest.mark.parametrize("name", [preset.name for preset in registry("encoders").presets()])
def test_encoder_preset_states_what_its_model_is(name: str) -> None:
    config = part_config("encoders", name)
    assert isinstance(config, EncoderConfig)
    facts: EncoderDescription = config.describe()
    with torch.device("meta"), Uninitialised():
        module = config.build()
    for field in ("width", "num_blocks", "mean", "std"):
        assert getattr(module, field) == getattr(facts, field), field
    assert module.patch == (1, facts.patch, facts.patch)
    assert getattr(module, "prefix_tokens", 0) == facts.prefix_tokens
    row = _documented(name)
    assert row["part"] == f"`{config.name}`"
    assert [int(row[key]) for key in ("channels", "patch", "blocks", "native size")] == [
        facts.width, facts.patch, facts.num_blocks, _native_size(module)
    ]  # fmt: skip
    preset = next(p for p in registry("encoders").presets() if p.name == name)
    assert row["paper"] == preset.paper
    for stated in {"licence": preset.licence, **preset.values}.items():
        if stated[0] in ("licence", "hub_id", "url") and name != "tiny":
            assert str(stated[1]) in row["licence"] + row["source of the weights"], stated


def test_the_page_of_encoders_has_no_other_presets() -> None:
    assert set(_table()) == {preset.name for preset in registry("encoders").presets()}


def test_every_entry_has_what_listings_show() -> None:
    for family in (
        "encoders", "bridges", "decoders", "generators", "losses", "critics", "datasets",
    ):  # fmt: skip
        for entry in registry(family).entries():
            assert entry.summary, entry.name
            assert entry.config_class().family == family
    for preset in (*registry("encoders").presets(), *registry("recipes").presets()):
        assert preset.summary, preset.name


@functools.cache
def _table() -> dict[str, dict[str, str]]:
    """The presets' rows of docs/encoders.md by name."""
    text = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    lines = text.partition("## Presets")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {row[0].strip("`"): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def _documented(name: str) -> dict[str, str]:
    assert name in _table(), f"docs/encoders.md has no row of {name}"
    return _table()[name]


def _native_size(module: Any) -> int:
    network = getattr(getattr(module, "tower", module), "network", None)
    if network is None:
        return int(module.patch[1] * module.pos_embed.shape[1])
    if hasattr(network, "patch_embed"):
        return int(network.patch_embed.img_size[0])
    return int(network.image_size[0])


def _names(family: str) -> set[str]:
    return {entry.name for entry in registry(family).entries()}


def test_the_embedded_pivot_is_small_and_makes_unlike_tokens_for_unlike_images() -> None:
    config = part_config("encoders", "tiny")
    assert isinstance(config, EncoderConfig)
    assert config.fetch().stat().st_size <= 8_000_000
    encoder = config.build()
    config.load_pretrained(encoder)
    with torch.no_grad():
        black, white = encoder(
            torch.tensor([-2.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
        ).tokens
    assert torch.nn.functional.cosine_similarity(black, white).mean() < 0.9
