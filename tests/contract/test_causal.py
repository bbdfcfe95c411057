"""The kit's checks of what parts for videos promise about time, on parts that break each promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rpiae.bridges.temporal import TemporalBridge
from rpiae.core.model.contracts import Features
from rpiae.core.model.resolve import part_config, wire
from rpiae.core.model.temporal import Past
from rpiae.decoders.video import VideoDecoder
from rpiae.testing.causal import check_causal_bridge, check_causal_decoder
from tests.contract.test_parts import FACTS
from tests.toys import DECODERS


def built(family: str, tree: Any) -> Any:
    config, problems = wire(part_config(family, tree), FACTS, family)
    assert problems == []
    torch.manual_seed(0)
    return config.build()


@pytest.fixture
def bridge() -> TemporalBridge:
    return built("bridges", {"name": "tvb4x2", "depth": 1, "window": 2})


@pytest.fixture
def decoder() -> VideoDecoder:
    return built("decoders", DECODERS["video-vit"])


def looking_ahead(features: Features) -> Features:
    """Features that know their clip's mean."""
    tokens, grid = features
    return Features(tokens + tokens.mean(1, keepdim=True), grid)


def test_a_bridge_that_looks_ahead(bridge: TemporalBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = bridge.encode
    monkeypatch.setattr(bridge, "encode", lambda f, past=None: encode(looking_ahead(f), past))
    with pytest.raises(AssertionError, match="step 1 changes earlier latents"):
        check_causal_bridge(bridge)


def test_a_bridge_that_looks_ahead_on_the_way_back(
    bridge: TemporalBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = bridge.decode
    monkeypatch.setattr(bridge, "decode", lambda z, past=None: looking_ahead(decode(z, past)))
    with pytest.raises(AssertionError, match="latent 1 changes steps before 1"):
        check_causal_bridge(bridge)


def test_a_bridge_that_loses_a_group(
    bridge: TemporalBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = bridge.decode

    def shorter(latent: Tensor, past: Past | None = None) -> Features:
        tokens, (t, h, w) = decode(latent, past)
        return Features(tokens[:, : (t - t // 4) * h * w], (t - t // 4, h, w))

    monkeypatch.setattr(bridge, "decode", shorter)
    with pytest.raises(AssertionError, match="3 latents come back as 4 steps, not 5"):
        check_causal_bridge(bridge)


@pytest.mark.parametrize(
    ("name", "what"), [("before.0", "a clip encoded"), ("after.0", "latents decoded")]
)
def test_a_bridge_that_forgets(
    bridge: TemporalBridge, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    forget(monkeypatch, name)
    with pytest.raises(AssertionError, match=f"{what} in pieces differ"):
        check_causal_bridge(bridge)


def test_a_decoder_that_looks_ahead(decoder: VideoDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda f, past=None: forward(looking_ahead(f), past))
    with pytest.raises(AssertionError, match="step 1 changes earlier frames"):
        check_causal_decoder(decoder)


def test_a_decoder_that_forgets(decoder: VideoDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "blocks.0")
    with pytest.raises(AssertionError, match="a clip decoded in pieces differs"):
        check_causal_decoder(decoder)


def forget(monkeypatch: pytest.MonkeyPatch, block: str) -> None:
    """Have a past keep nothing of a block."""
    joined = Past.with_earlier

    def with_earlier(self: Past, name: str, values: Tensor, **how: Any) -> Tensor:
        return values if name == block else joined(self, name, values, **how)

    monkeypatch.setattr(Past, "with_earlier", with_earlier)
