"""Initial values: as torch's own modules have them, and those that the method states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rpiae.bridges.variational import VariationalBridge
from rpiae.core.model.blocks import Block, SelfAttention
from rpiae.decoders.vit import VitDecoder

WIDTH, HEADS = 128, 2


def attentions() -> list[SelfAttention]:
    bridge = VariationalBridge(features=WIDTH, latent_channels=8)
    return [module for module in bridge.modules() if isinstance(module, SelfAttention)]


def test_the_bridges_seven_attentions_start_as_torchs() -> None:
    torch.manual_seed(0)
    torch_own = nn.MultiheadAttention(WIDTH, HEADS)
    bound = math.sqrt(6 / (WIDTH + 3 * WIDTH))
    assert torch_own.in_proj_weight.abs().max() <= bound
    found = attentions()
    assert len(found) == 7
    for attention in found:
        weight = attention.qkv.weight
        assert weight.shape == torch_own.in_proj_weight.shape
        assert 0.99 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(torch_own.in_proj_weight.std().item(), rel=0.02)
        assert weight.mean().abs() < 1e-3
        assert not attention.qkv.bias.any()
        assert not attention.proj.bias.any()
        assert attention.proj.weight.abs().max() <= 1 / math.sqrt(WIDTH)
    weights = [attention.qkv.weight for attention in found]
    assert not torch.equal(weights[1], weights[2])  # each its own draws


def test_the_draws_are_torchs_own() -> None:
    torch.manual_seed(3)
    wanted = nn.MultiheadAttention(WIDTH, HEADS)
    attention = VariationalBridge(features=WIDTH, latent_channels=8).encoder.attn
    torch.manual_seed(3)
    nn.Linear(WIDTH, WIDTH)  # torch draws the projection out before the one in
    nn.init.xavier_uniform_(attention.qkv.weight)
    assert torch.equal(attention.qkv.weight, wanted.in_proj_weight)


def test_a_layer_of_the_bridge_starts_as_torchs_transformer_layer() -> None:
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    )
    block = VariationalBridge(features=WIDTH, latent_channels=8).decoder.blocks[0]
    assert isinstance(block, Block)
    pairs: list[tuple[Tensor, Tensor]] = [
        (block.norm1.weight, layer.norm1.weight),
        (block.norm1.bias, layer.norm1.bias),
        (block.norm2.weight, layer.norm2.weight),
        (block.attn.qkv.bias, layer.self_attn.in_proj_bias),
        (block.attn.proj.bias, layer.self_attn.out_proj.bias),
    ]
    for own, other in pairs:
        assert torch.equal(own, other)
    drawn: list[tuple[Tensor, Tensor]] = [
        (block.attn.qkv.weight, layer.self_attn.in_proj_weight),
        (block.attn.proj.weight, layer.self_attn.out_proj.weight),
        (block.mlp.fc1.weight, layer.linear1.weight),
        (block.mlp.fc2.weight, layer.linear2.weight),
        (block.mlp.fc1.bias, layer.linear1.bias),
    ]
    for own, other in drawn:
        assert own.std().item() == pytest.approx(other.std().item(), rel=0.1)
        assert own.abs().max().item() == pytest.approx(other.abs().max().item(), rel=0.05)
    assert block.norm1.eps == layer.norm1.eps


def test_the_bridge_encoders_mlp_starts_as_nothing() -> None:
    mlp = VariationalBridge(features=WIDTH, latent_channels=8).encoder.mlp
    assert not mlp.fc2.weight.any()
    assert not mlp.fc2.bias.any()


def test_the_decoders_class_token_starts_at_zero() -> None:
    decoder = VitDecoder(features=8, patch=2, width=16, depth=1, num_heads=1, mlp_hidden=16)
    assert not decoder.cls_token.any()
