"""Any timm vision transformer as a pivot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import HybridEmbed
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from rpiae.core.attention import attention
from rpiae.core.blocks import resample_positions, through
from rpiae.core.contracts import BlockFeatures, Features, block_index
from rpiae.core.errors import CheckpointError, FetchError, UsageError, did_you_mean
from rpiae.core.shapes import map_grid, map_to_tokens
from rpiae.encoders.hub import read_weights

Triple = tuple[float, float, float]


class TimmEncoder(nn.Module):
    """Patch tokens of a timm ViT: class and register tokens dropped, affine-free final norm.

    Models of timm's ``VisionTransformer`` run with our attention and our position resampling;
    other ViTs (rotary ones, for example) run through timm's ``forward_intermediates``. Modules that
    the tokens do not need (head, final affine norm, blocks behind the last used one) are deleted.

    Args:
        model: timm's model name.
        layers: blocks whose final-normed tokens are averaged (RAEv2's layer aggregation); empty is
            the last block alone.
        model_args: replaces arguments of timm's model.
        mean, std: input statistics; timm's own where not given.

    Shapes:
        (b, 3, H, W), sides multiples of the patch → tokens (b, n, width)

    Raises:
        UsageError: if timm has no such model, or it yields no patch tokens.
    """

    def __init__(
        self,
        *,
        model: str,
        layers: Sequence[int] = (),
        model_args: Mapping[str, Any] | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
    ) -> None:
        super().__init__()
        network = _create(model, model_args or {})
        self.layers = tuple(layers) or (len(network.blocks) - 1,)
        network.blocks = network.blocks[: max(self.layers) + 1]
        self.width: int = network.embed_dim
        self.patch: int = network.patch_embed.patch_size[0]
        self.num_blocks = len(network.blocks)
        self.mean: Triple = tuple(mean or network.pretrained_cfg["mean"])
        self.std: Triple = tuple(std or network.pretrained_cfg["std"])
        self._eps = getattr(network.norm, "eps", 1e-6)
        # DINOv2 resamples with antialiasing, MAE and SigLIP without.
        self._antialias = "dinov2" in model or "dinov2" in str(
            network.pretrained_cfg.get("hf_hub_id", "")
        )
        # Subclasses embed in their own ways (a distillation token, other positions).
        self._plain = type(network) is VisionTransformer
        for unused in ("norm", "head", "fc_norm", "head_drop"):
            if hasattr(network, unused):
                setattr(network, unused, nn.Identity())
        if hasattr(network, "attn_pool"):
            network.attn_pool = None
        if self._plain:
            for block in network.blocks:
                if switchable(getattr(block, "attn", None)):
                    block.attn = SwitchedAttention(block.attn)
        self.network = network

    @property
    def last_weight(self) -> nn.Parameter:
        """MLP output weight of the last used block."""
        return self.network.blocks[-1].mlp.fc2.weight  # type: ignore[no-any-return]  # timm is loosely typed

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """Final-normed patch tokens of normalised images."""
        found = self.blocks(images, self.layers)
        normed = [
            F.layer_norm(tokens.float(), (self.width,), eps=self._eps) for tokens in found.tokens
        ]
        tokens = normed[0] if len(normed) == 1 else torch.stack(normed).mean(0)
        return Features(tokens, found.grid)

    def blocks(self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]) -> BlockFeatures:
        """Patch tokens after the blocks with these indices, in the order asked for."""
        wanted = [block_index(index, self.num_blocks) for index in indices]
        grid = (1, images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        if not self._plain:
            found = self.network.forward_intermediates(
                images,
                indices=sorted(set(wanted)),
                norm=False,
                stop_early=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
            by_index = dict(zip(sorted(set(wanted)), found, strict=True))
            return BlockFeatures([by_index[index] for index in wanted], grid)
        tokens = self._embed(images)
        kept: dict[int, Tensor] = {}
        for index, block in enumerate(self.network.blocks[: max(wanted) + 1]):
            tokens = through(block, tokens)
            if index in wanted:
                kept[index] = tokens[:, self.network.num_prefix_tokens :]
        return BlockFeatures([kept[index] for index in wanted], grid)

    def load_weights(self, path: Path) -> None:
        """Load a timm, or original-layout, weights file.

        Raises:
            CheckpointError: if it does not hold this architecture.
        """
        state = read_weights(path)
        if self._plain:
            state = checkpoint_filter_fn(state, self.network, antialias=self._antialias)
        own = self.network.state_dict()
        missing = sorted(name for name in own if name not in state)
        wrong = sorted(n for n in own if n in state and own[n].shape != state[n].shape)
        if missing or wrong:
            example = (
                f"{wrong[0]} is {tuple(state[wrong[0]].shape)}, not {tuple(own[wrong[0]].shape)}"
                if wrong
                else f"{missing[0]} is missing"
            )
            raise CheckpointError(
                f"{path} holds weights of another architecture: {len(missing)} tensors missing, "
                f"{len(wrong)} of another shape ({example})"
            )
        self.network.load_state_dict({name: state[name] for name in own})

    def _embed(self, images: Tensor) -> Tensor:
        """Prefix and patch tokens with positions, as timm's ``_pos_embed`` at any grid."""
        network = self.network
        feature_map = network.patch_embed.proj(images)
        grid = map_grid(feature_map)
        tokens = network.patch_embed.norm(map_to_tokens(feature_map))
        prefix = [
            token.expand(tokens.shape[0], -1, -1)
            for token in (network.cls_token, getattr(network, "reg_token", None))
            if token is not None
        ]
        if network.pos_embed is None:
            tokens = torch.cat([*prefix, tokens], dim=1)
        else:
            rows, columns = network.patch_embed.grid_size
            carried = network.pos_embed.shape[1] - rows * columns
            square = network.pos_embed[:, carried:].reshape(1, rows, columns, -1)
            positions = resample_positions(
                square, (grid[1], grid[2]), antialias=self._antialias
            ).flatten(1, 2)
            tokens = torch.cat([*prefix, tokens + positions], dim=1)
            if carried:
                with_positions = tokens[:, :carried] + network.pos_embed[:, :carried]
                tokens = torch.cat([with_positions, tokens[:, carried:]], dim=1)
        return network.norm_pre(tokens)  # type: ignore[no-any-return]  # timm is loosely typed


def switchable(module: object) -> bool:
    """Whether ``SwitchedAttention`` computes what this module does."""
    return type(module) is Attention and getattr(module, "gate", None) is None


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
        return self.proj(self.norm(attended.transpose(1, 2).reshape(b, n, -1)))  # type: ignore[no-any-return]  # nn.Module calls are Any


def describe_model(
    model: str, model_args: Mapping[str, Any]
) -> tuple[int, int, int, int, Triple, Triple]:
    """Width, patch, blocks, prefix tokens, mean and std of a timm model, without its memory."""
    with torch.device("meta"):
        network = _create(model, model_args)
    return (
        network.embed_dim,
        network.patch_embed.patch_size[0],
        len(network.blocks),
        network.num_prefix_tokens,
        tuple(network.pretrained_cfg["mean"]),
        tuple(network.pretrained_cfg["std"]),
    )


def hub_source(model: str) -> str:
    """The hub repository timm takes a model's weights from.

    Raises:
        FetchError: if timm knows of none.
    """
    config = timm.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise FetchError(
            f"timm has no pretrained weights for {model!r}: set encoder.weights to a file, or "
            "encoder.pretrained = false"
        )
    hub_id = str(config.hf_hub_id)
    return hub_id if hub_id.count("/") and not hub_id.endswith("/") else f"{hub_id}{model}"


def _create(model: str, model_args: Mapping[str, Any]) -> Any:
    if not timm.is_model(model):
        known = timm.list_models()
        raise UsageError(
            f"timm has no model {model!r}.{did_you_mean(model.partition('.')[0], known)} "
            "List them with: python -c \"import timm; print(*timm.list_models('vit*'), sep='\\n')\""
        )
    try:
        network = timm.create_model(model, pretrained=False, dynamic_img_size=True, **model_args)
    except TypeError as error:
        raise UsageError(
            f"timm model {model!r} cannot be a pivot, it is not a ViT with patch tokens for any "
            f"image size: {error}"
        ) from None
    patch = getattr(getattr(network, "patch_embed", None), "proj", None)
    if not (isinstance(patch, nn.Conv2d) and hasattr(network, "blocks")) or isinstance(
        network.patch_embed, HybridEmbed
    ):
        raise UsageError(
            f"timm model {model!r} ({type(network).__name__}) cannot be a pivot: it has no patch "
            "embedding and blocks that yield patch tokens"
        )
    if not hasattr(getattr(network.blocks[-1], "mlp", None), "fc2"):
        raise UsageError(
            f"timm model {model!r} ({type(network).__name__}) cannot be a pivot: its last block has "
            "no MLP output weight, which adaptive weights refer to"
        )
    return network
