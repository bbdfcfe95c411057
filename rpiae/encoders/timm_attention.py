"""timm's attention modules, computed by our attention function; their parameters keep their names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from rpiae.core.model.attention import attention


def switched(module: nn.Module) -> nn.Module:
    """timm's attention module as one of ours with the same parameters, else the module itself."""
    if getattr(module, "gate", None) is not None or getattr(module, "num_kv_groups", 1) != 1:
        return module
    if type(module) is Attention:
        return SwitchedAttention(module)
    if type(module) in (EvaAttention, AttentionRope):
        return SwitchedRotaryAttention(module)
    return module


class SwitchedAttention(nn.Module):
    """timm's self-attention module, computed by our attention function; same parameter names."""

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.num_heads = source.num_heads
        self.head_dim = source.head_dim
        self.scale = source.scale
        self.qkv: nn.Module = source.qkv
        self.q_norm: nn.Module = source.q_norm
        self.k_norm: nn.Module = source.k_norm
        self.norm: nn.Module = source.norm
        self.proj: nn.Module = source.proj

    def forward(
        self,
        tokens: Float[Tensor, "b n w"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "b n w"]:
        # timm's blocks pass a mask and a causal flag along; a ViT encoder sets neither.
        assert attn_mask is None
        assert not is_causal
        b, n, _ = tokens.shape
        qkv = self.qkv(tokens).view(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = attention(self.q_norm(q), self.k_norm(k), v, scale=self.scale)
        return self.proj(self.norm(attended.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]  # nn.Module calls are Any


class SwitchedRotaryAttention(nn.Module):
    """timm's rotary self-attention modules, computed by our attention function; same names.

    Class and register tokens, which come first, are not rotated.
    """

    def __init__(self, source: EvaAttention | AttentionRope) -> None:
        super().__init__()
        self.num_heads = source.num_heads
        self.scale = source.scale
        self.prefix_tokens = source.num_prefix_tokens
        self.rotates_halves: bool = source.rotate_half
        self.qkv: Any = source.qkv
        self.q_proj: Any = source.q_proj
        self.k_proj: Any = source.k_proj
        self.v_proj: Any = source.v_proj
        self.q_norm: nn.Module = source.q_norm
        self.k_norm: nn.Module = source.k_norm
        self.norm: nn.Module = source.norm
        self.proj: nn.Module = source.proj
        # EvaAttention trains biases of queries and values alone, outside its linear layers.
        self.q_bias: nn.Parameter | None = getattr(source, "q_bias", None)
        self.v_bias: nn.Parameter | None = getattr(source, "v_bias", None)

    def forward(
        self,
        tokens: Float[Tensor, "b n w"],
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "b n w"]:
        # timm's blocks pass a mask and a causal flag along; a ViT encoder sets neither.
        assert attn_mask is None
        assert not is_causal
        q, k, v = (
            each.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]  # torch has no types for it
            for each in self._projected(tokens)
        )
        q, k = self._rotated(self.q_norm(q), rope), self._rotated(self.k_norm(k), rope)
        attended = attention(q.to(v.dtype), k.to(v.dtype), v, scale=self.scale)
        return self.proj(self.norm(attended.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]  # nn.Module calls are Any

    def _projected(self, tokens: Tensor) -> tuple[Tensor, ...]:
        if self.qkv is None:
            return self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens)
        if self.q_bias is None or self.v_bias is None:
            thirds: tuple[Tensor, ...] = self.qkv(tokens).chunk(3, dim=-1)
            return thirds
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return F.linear(tokens, self.qkv.weight, bias).chunk(3, dim=-1)

    def _rotated(self, heads: Tensor, rope: Tensor | None) -> Tensor:
        if rope is None:
            return heads
        prefix, patches = heads[:, :, : self.prefix_tokens], heads[:, :, self.prefix_tokens :]
        rotated = apply_rot_embed_cat(patches, rope, half=self.rotates_halves)
        return torch.cat([prefix, rotated.to(prefix.dtype)], dim=2)
