"""V-JEPA 2's encoder on any grid, built of transformers' modules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model

from rpiae.plugin import (
    BlockFeatures,
    CheckpointError,
    Features,
    Grid,
    at_least_fp32,
    attention,
    block_index,
    load_whole,
    map_grid,
    map_to_tokens,
    read_weights,
    through,
)
from rpiae_vjepa2.configs import CONFIG, MEAN, STD

#: What a file of weights must have, under whatever prefix.
SIGNATURE = ("embeddings.patch_embeddings.proj.weight", "layer.0.attention.query.weight")

#: Lowest frequency of rotary positions, as a period in tokens over 2π.
LONGEST = 10_000.0

#: What V-JEPA 2's code and transformers have in common.
EPS = 1e-6


class Rotation(NamedTuple):
    """Rotary positions of every token of a grid.

    Attributes:
        cos, sin: (n, d), d the channels of a head.
    """

    cos: Float[Tensor, "n d"]
    sin: Float[Tensor, "n d"]


class VJepa2Encoder(nn.Module):
    """Tokens of V-JEPA 2: one for a few frames of a patch, affine-free final norm.

    The predictor and the final norm's affine parameters are not built. Positions are rotary, in
    steps of a token, so clips of any size and length work; a clip is seen whole, each token attends to
    every other, and time and memory of attention grow with the square of its length at worst.

    Args:
        width: channels of the tokens.
        depth: transformer blocks.
        num_heads: attention heads; each has an even number of channels, at least 6.
        mlp_ratio: hidden channels of the MLP per channel.
        frames: frames per token.
        patch: rows and columns of pixels per token.

    Shapes:
        (b, 3, T, H, W), multiples of the patch → tokens (b, n, width)

    Source: V-JEPA 2 (arXiv 2506.09985), through transformers' ``VJEPA2Model``. That numbers rows and
    columns by the square grid of its config, so that tokens of other sizes get wrong places; ours have
    the places of the grid at hand, as the authors' code has for such clips.
    """

    def __init__(
        self,
        *,
        width: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        frames: int = 2,
        patch: int = 16,
    ) -> None:
        super().__init__()
        config = VJEPA2Config(
            hidden_size=width, num_hidden_layers=depth, num_attention_heads=num_heads,
            mlp_ratio=mlp_ratio, tubelet_size=frames, patch_size=patch, layer_norm_eps=EPS,
            pred_num_hidden_layers=0,
        )  # fmt: skip
        network = VJEPA2Model(config).encoder
        network.layer = nn.ModuleList([RotaryBlock(layer) for layer in network.layer])
        network.layernorm = nn.Identity()
        self.network = network
        self.width = width
        self.patch = (frames, patch, patch)
        self.mean, self.std = MEAN, STD
        self.num_blocks = depth
        self._head_channels = width // num_heads
        #: What a config beside weights must say.
        self._architecture: dict[str, Any] = {
            name: getattr(config, name)
            for name in (
                "hidden_size", "num_hidden_layers", "num_attention_heads", "tubelet_size",
                "patch_size", "layer_norm_eps", "hidden_act",
            )
        }  # fmt: skip

    @property
    def last_weight(self) -> nn.Parameter:
        """MLP output weight of the last block."""
        return self.network.layer[-1].mlp.fc2.weight  # type: ignore[no-any-return]

    def forward(self, clip: Float[Tensor, "b 3 t h w"]) -> Features:
        """Final-normed tokens of normalised clips."""
        after = self.blocks(clip, [-1])
        tokens = at_least_fp32(after.tokens[0])
        return Features(F.layer_norm(tokens, tokens.shape[-1:], eps=EPS), after.grid)

    def blocks(self, clip: Float[Tensor, "b 3 t h w"], indices: Sequence[int]) -> BlockFeatures:
        """Tokens after the blocks with these indices, in the order asked for."""
        wanted = [block_index(index, self.num_blocks) for index in indices]
        feature_map = self.network.embeddings.patch_embeddings.proj(clip)
        grid = map_grid(feature_map)
        tokens = map_to_tokens(feature_map)
        rotation = rotation_of(grid, self._head_channels, tokens.device)
        kept: dict[int, Tensor] = {}
        for index, block in enumerate(self.network.layer[: max(wanted) + 1]):
            tokens = through(block, tokens, rotation=rotation)
            if index in wanted:
                kept[index] = tokens
        return BlockFeatures([kept[index] for index in wanted], grid)

    def load_weights(self, path: Path) -> None:
        """Load the encoder from a file in transformers' layout, of the whole model or of a model with
        a classifier.

        Args:
            path: the file; where a ``config.json`` lies beside it, that must be of this architecture.

        Raises:
            CheckpointError: if it does not hold this architecture, or holds more than that.
        """
        self._check_config(path.with_name(CONFIG))
        state = read_weights(path, what="V-JEPA 2's encoder", signatures=[SIGNATURE])
        load_whole(self.network, state, source=path, unused=("layernorm.",))

    def _check_config(self, path: Path) -> None:
        """Refuse what the shapes of weights do not tell, such as another number of heads."""
        if not path.is_file():
            return
        try:
            said = VJEPA2Config(**json.loads(path.read_text(encoding="utf-8")))
        except Exception as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path} is no config of V-JEPA 2: {first}") from None
        for name, value in self._architecture.items():
            if getattr(said, name) != value:
                raise CheckpointError(
                    f"{path} says {name} = {getattr(said, name)}, and this encoder has {value}: take the "
                    "preset of that model, or set the encoder's fields to what the file says"
                )


class RotaryBlock(nn.Module):
    """A block of transformers' V-JEPA 2 with positions of any grid; same parameter names.

    Args:
        source: the block, whose modules this one takes.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.norm1: nn.Module = source.norm1
        self.attention = RotaryAttention(source.attention)
        self.norm2: nn.Module = source.norm2
        self.mlp: nn.Module = source.mlp

    def forward(
        self, tokens: Float[Tensor, "b n w"], *, rotation: Rotation
    ) -> Float[Tensor, "b n w"]:
        tokens = tokens + self.attention(self.norm1(tokens), rotation=rotation)
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]


class RotaryAttention(nn.Module):
    """transformers' attention of V-JEPA 2, computed by our attention function; same parameter names.

    Args:
        source: the module, whose projections this one takes.
    """

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.num_heads: int = source.num_attention_heads
        self.query: nn.Module = source.query
        self.key: nn.Module = source.key
        self.value: nn.Module = source.value
        self.proj: nn.Module = source.proj

    def forward(
        self, tokens: Float[Tensor, "b n w"], *, rotation: Rotation
    ) -> Float[Tensor, "b n w"]:
        q, k, v = (
            project(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        attended = attention(rotated(q, rotation), rotated(k, rotation), v)
        return self.proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def rotation_of(grid: Grid, channels: int, device: torch.device) -> Rotation:
    """Rotary positions of a grid's tokens in fp32.

    A third of the channels each (rounded down to an even number) turns with time, row and column; what
    is left over does not turn. As in the authors' code, the two channels of a pair turn by different
    frequencies: they are repeated one behind the other where the pairs lie side by side.

    Args:
        grid: (t, h, w).
        channels: d of a head.
        device: where the result is wanted.
    """
    each = channels // 3 // 2 * 2
    frequency = LONGEST ** -(torch.arange(each // 2, device=device) / (each / 2))
    places = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency.repeat(2) for place in places]
    angle = F.pad(torch.cat(angles, dim=1), (0, channels - 3 * each))
    return Rotation(angle.cos(), angle.sin())


def rotated(
    values: Float[Tensor, "b heads n d"], rotation: Rotation
) -> Float[Tensor, "b heads n d"]:
    """Queries or keys, with every pair of neighbouring channels turned by its token's angles."""
    cos, sin = (part.to(values.dtype) for part in rotation)
    one, other = values.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-other, one], dim=-1).flatten(-2)
    return values * cos + turned * sin
