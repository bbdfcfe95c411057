"""Every registered part through the contract kit, and every preset against its model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rpiae.core.config import (
    BridgeConfig,
    DecoderConfig,
    EncoderConfig,
    EncoderDescription,
    LossConfig,
)
from rpiae.core.registry import registry
from rpiae.core.resolve import part_config, wire
from rpiae.testing import check_bridge, check_decoder, check_encoder, check_loss
from tests.toys import DECODERS, ENCODERS

FACTS: dict[str, tuple[Any, str]] = {
    "encoder.width": (32, "the test"),
    "encoder.output_patch": (4, "the test"),
}
BRIDGES = {"identity": "identity", "variational": "vb4"}


def test_every_part_is_named_to_the_kit() -> None:
    assert {tree["name"] for tree in ENCODERS.values()} == _names("encoders")
    assert set(BRIDGES) == _names("bridges")
    assert {tree["name"] for tree in DECODERS.values()} == _names("decoders")


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


@pytest.mark.parametrize("name", sorted(e.name for e in registry("losses").entries()))
def test_loss(name: str) -> None:
    config = part_config("losses", name)
    assert isinstance(config, LossConfig)
    torch.manual_seed(0)
    check_loss(config, part_config("encoders", ENCODERS["vit"]).build())


@pytest.mark.parametrize("name", [preset.name for preset in registry("encoders").presets()])
def test_encoder_preset_states_what_its_model_is(name: str) -> None:
    config = part_config("encoders", name)
    assert isinstance(config, EncoderConfig)
    facts: EncoderDescription = config.describe()
    with torch.device("meta"):
        module = config.build()
    for field in ("width", "patch", "num_blocks", "mean", "std"):
        assert getattr(module, field) == getattr(facts, field), field
    assert getattr(module, "prefix_tokens", 0) == facts.prefix_tokens


def test_every_entry_has_what_listings_show() -> None:
    for family in ("encoders", "bridges", "decoders", "losses", "datasets"):
        for entry in registry(family).entries():
            assert entry.summary, entry.name
            assert entry.config_class().family == family
    for preset in (*registry("encoders").presets(), *registry("recipes").presets()):
        assert preset.summary, preset.name


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
