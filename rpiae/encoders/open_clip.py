"""The image tower of any open_clip ViT as a pivot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from rpiae.core.errors import FetchError, UsageError, did_you_mean, nearest
from rpiae.core.model.attention import attention
from rpiae.core.model.blocks import aggregate, resample_positions, through
from rpiae.core.model.contracts import BlockFeatures, Features, block_index
from rpiae.core.model.geometry import Grid, map_grid, map_to_tokens, patch_triple
from rpiae.core.runtime.names import printable, shown
from rpiae.core.runtime.weights import load_whole, read_weights
from rpiae.encoders.timm import TimmEncoder, try_out
from rpiae.encoders.timm_models import unbuildable

Triple = tuple[float, float, float]

#: What a file must have, under whatever prefix (``visual.`` in a whole model).
SIGNATURES = (("conv1.weight", "class_embedding"),)

#: Norm, poolings and projection behind the last block.
UNUSED = ("ln_post.", "proj", "attn_pool.", "attn_pool_contrastive.")

#: Names of whole models' weights in hub repositories; ``model.safetensors`` is timm's layout there.
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class OpenClipEncoder(nn.Module):
    """Patch tokens of an open_clip image tower: class token dropped, affine-free final norm.

    Only the image tower is built, and only its tensors are read from a file. A tower that open_clip
    takes from timm (SigLIP, Perception Encoder, EVA) is a ``TimmEncoder``, so its tokens are those
    of the part ``timm``; open_clip's own ViTs (CLIP, CLIPA, MetaCLIP, CoCa) run with our attention
    and our position resampling, without antialiasing. Projection, pooling and ``ln_post`` are
    deleted. OpenAI's activation (QuickGELU) is used where the weights of the tag were trained with
    it, or, without a tag, where the model's name says so.

    Args:
        model: open_clip's model name, and after ``/`` a tag of its pretrained weights.
        layers: blocks whose final-normed tokens are averaged (RAEv2's layer aggregation); empty is
            the last block alone.
        add_final_mean: whether the spatial mean of the last of these blocks is added to every token.
        model_args: replaces fields of the model's ``vision_cfg`` or, where the tower is a timm
            model, arguments of that.
        mean, std: input statistics; those of the tag where not given.

    Shapes:
        (b, 3, H, W), sides multiples of the patch → tokens (b, n, width)

    Raises:
        UsageError: if open_clip has no such model or tag, or its tower yields no patch tokens.
    """

    def __init__(
        self,
        *,
        model: str,
        layers: Sequence[int] = (),
        add_final_mean: bool = False,
        model_args: Mapping[str, Any] | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
    ) -> None:
        super().__init__()
        known = _known(model)
        self.mean: Triple = tuple(mean or known.mean)  # type: ignore[assignment]  # a triple stays one
        self.std: Triple = tuple(std or known.std)  # type: ignore[assignment]  # a triple stays one
        self.tower: TimmEncoder | ClipTower
        if known.timm_model:
            try:
                self.tower = TimmEncoder(
                    model=known.timm_model, model_args=model_args, layers=layers,
                    add_final_mean=add_final_mean, mean=self.mean, std=self.std,
                )  # fmt: skip
            except UsageError as error:
                raise UsageError(
                    f"open_clip model {known.name!r} cannot be a pivot. Its image tower: {error}"
                ) from None
        else:
            self.tower = ClipTower(
                _built(known, model_args or {}), layers=layers, add_final_mean=add_final_mean
            )
        self.width = self.tower.width
        self.patch = self.tower.patch
        self.num_blocks = self.tower.num_blocks
        self.prefix_tokens = self.tower.prefix_tokens

    @property
    def last_weight(self) -> nn.Parameter:
        """MLP output weight of the last used block."""
        return self.tower.last_weight

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """Final-normed patch tokens of normalised images."""
        return self.tower(images)  # type: ignore[no-any-return]  # nn.Module calls are Any

    def blocks(self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]) -> BlockFeatures:
        """Patch tokens after the blocks with these indices, in the order asked for."""
        return self.tower.blocks(images, indices)

    def load_weights(self, path: Path, *, key: str = "") -> None:
        """Load the image tower from a file of the whole model, or of the tower alone.

        Args:
            path: the file.
            key: which weights to take where it has several, see ``read_weights``.

        Raises:
            CheckpointError: if it does not hold this architecture, or holds more than that.
        """
        self.tower.load_weights(path, key=key)


class ClipTower(nn.Module):
    """open_clip's own ``VisionTransformer``, cut down to what the patch tokens need.

    Args:
        network: the tower; it is changed in place.
        layers, add_final_mean: see ``OpenClipEncoder``.
    """

    def __init__(
        self,
        network: VisionTransformer,
        *,
        layers: Sequence[int] = (),
        add_final_mean: bool = False,
    ) -> None:
        super().__init__()
        blocks = network.transformer.resblocks
        self.layers = tuple(sorted(layers)) or (len(blocks) - 1,)
        self.add_final_mean = add_final_mean
        self.width: int = network.conv1.out_channels
        self.patch = patch_triple(network.patch_size[0])
        self.num_blocks = max(self.layers) + 1
        self.prefix_tokens = 1
        self._depth = len(blocks)
        self._eps = float(network.ln_post.eps)
        self._native = tuple(network.grid_size)
        network.transformer.resblocks = blocks[: self.num_blocks]
        for block in network.transformer.resblocks:
            if type(block.attn) is nn.MultiheadAttention:
                block.attn = SwitchedMultiheadAttention(block.attn)
        network.ln_post = network.patch_dropout = nn.Identity()
        for unused in ("proj", "attn_pool", "attn_pool_contrastive"):
            setattr(network, unused, None)
        self.network = network

    @property
    def last_weight(self) -> nn.Parameter:
        """MLP output weight of the last used block."""
        return self.network.transformer.resblocks[-1].mlp.c_proj.weight  # type: ignore[no-any-return]  # open_clip is loosely typed

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """Final-normed patch tokens of normalised images."""
        after = self.blocks(images, self.layers)
        tokens = aggregate(after.tokens, eps=self._eps, add_final_mean=self.add_final_mean)
        return Features(tokens, after.grid)

    def blocks(self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]) -> BlockFeatures:
        """Patch tokens after the blocks with these indices, in the order asked for."""
        wanted = [block_index(index, self.num_blocks) for index in indices]
        tokens, grid = self._embed(images)
        kept: dict[int, Tensor] = {}
        for index, block in enumerate(self.network.transformer.resblocks[: max(wanted) + 1]):
            tokens = through(block, tokens)
            if index in wanted:
                kept[index] = tokens[:, 1:]
        return BlockFeatures([kept[index] for index in wanted], grid)

    def load_weights(self, path: Path, *, key: str = "") -> None:
        """As ``OpenClipEncoder.load_weights``."""
        state = read_weights(
            path, what="this open_clip model's image tower", signatures=SIGNATURES, key=key
        )
        behind = [f"transformer.resblocks.{i}." for i in range(self.num_blocks, self._depth)]
        load_whole(self.network, state, source=printable(str(path)), unused=(*UNUSED, *behind))

    def _embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Class and patch tokens with positions, at any grid."""
        network = self.network
        feature_map = network.conv1(images)
        grid = map_grid(feature_map)
        first, stored = network.positional_embedding.split([1, math.prod(self._native)])
        positions = resample_positions(
            stored.reshape(1, *self._native, self.width), (grid[1], grid[2]), antialias=False
        ).flatten(1, 2)
        tokens = map_to_tokens(feature_map) + positions
        token = (network.class_embedding + first).expand(tokens.shape[0], 1, -1)
        return network.ln_pre(torch.cat([token, tokens], dim=1)), grid


class SwitchedMultiheadAttention(nn.Module):
    """torch's self-attention module, computed by our attention function; same parameter names."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = source.num_heads
        self.in_proj_weight: nn.Parameter = source.in_proj_weight
        self.in_proj_bias: nn.Parameter | None = source.in_proj_bias
        self.out_proj: nn.Module = source.out_proj

    def forward(
        self,
        q: Float[Tensor, "b n w"],
        k: Tensor,
        v: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Float[Tensor, "b n w"], None]:
        # open_clip's blocks call it as torch's module; an image tower attends to itself, unmasked.
        assert k is q
        assert v is q
        assert attn_mask is None
        assert not need_weights
        b, n, w = q.shape
        qkv = F.linear(q, self.in_proj_weight, self.in_proj_bias)
        heads = qkv.view(b, n, 3, self.num_heads, w // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.out_proj(attention(*heads.unbind(0)).transpose(1, 2).reshape(b, n, w)), None


def describe_model(
    model: str, model_args: Mapping[str, Any]
) -> tuple[int, int, int, int, Triple, Triple]:
    """Width, patch, blocks, prefix tokens, mean and std of a model, without its memory.

    Raises:
        UsageError: if open_clip has no such model or tag, or its tower yields no patch tokens.
    """
    known = _known(model)
    if model_args or known.timm_model:
        with torch.device("meta"):
            tower = OpenClipEncoder(model=model, model_args=model_args)
        if model_args:
            try_out(tower, f"open_clip model {known.name!r}", model_args)
        facts = (tower.width, tower.patch[1], tower.num_blocks, tower.prefix_tokens)
        return (*facts, known.mean, known.std)
    config = _vision_config(known, {})
    assert isinstance(config.layers, int)
    return config.width, config.patch_size, config.layers, 1, known.mean, known.std


def weights_source(model: str) -> tuple[str, tuple[str, ...], str]:
    """Where open_clip takes weights from: a hub repository and file names, or else a URL.

    Raises:
        FetchError: if the name has no tag, or open_clip has no weights for it.
    """
    known = _known(model)
    tags = open_clip.list_pretrained_tags_by_model(known.name)
    config = open_clip.get_pretrained_cfg(known.name, known.tag) if known.tag else {}
    if not (config.get("hf_hub") or config.get("url")):
        ways = f"name a tag ({', '.join(f'{known.name}/{t}' for t in tags)}), " if tags else ""
        raise FetchError(
            f"{model!r} names no pretrained weights of open_clip: {ways}set encoder.weights to a "
            "file, or encoder.pretrained = false"
        )
    if not config.get("hf_hub"):
        return "", (), str(config["url"])
    # "owner/name/" takes the usual names, "owner/name/file.pt" that file.
    owner_name, _, filename = str(config["hf_hub"]).rpartition("/")
    safe = str(PurePosixPath(filename).with_suffix(".safetensors")) if filename else ""
    files = tuple(dict.fromkeys((safe, filename))) if filename else FILES
    return owner_name, files, ""


class _Known(NamedTuple):
    """What open_clip's tables say of a model and tag."""

    name: str
    tag: str
    vision: Mapping[str, Any]
    embed_dim: int
    quick_gelu: bool
    mean: Triple
    std: Triple

    @property
    def timm_model(self) -> str:
        return str(self.vision.get("timm_model_name") or "")


def _known(model: str) -> _Known:
    name, _, tag = model.partition("/")
    names = open_clip.list_models()
    if name not in names:
        spelt = {other.lower(): other for other in names}
        close = [spelt[other] for other in nearest(name.lower(), spelt)]
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UsageError(
            f"open_clip has no model {name!r}.{hint} List them with: "
            "python -c \"import open_clip; print(*open_clip.list_models(), sep='\\n')\""
        )
    config = open_clip.get_model_config(name)
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag and not open_clip.is_pretrained_cfg(name, tag):
        raise UsageError(
            f"open_clip has no weights {tag!r} for model {name!r}.{did_you_mean(tag, tags)} "
            + (f"It has: {', '.join(tags)}" if tags else "It has none: leave the tag out.")
        )
    weights = open_clip.get_pretrained_cfg(name, tag or (tags[0] if tags else ""))
    quick = weights.get("quick_gelu", False) if tag else config.get("quick_gelu", False)
    return _Known(
        name=name,
        tag=tag,
        vision=config["vision_cfg"],
        embed_dim=config["embed_dim"],
        quick_gelu=quick,
        mean=tuple(weights.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(weights.get("std", open_clip.OPENAI_DATASET_STD)),
    )


def _vision_config(known: _Known, model_args: Mapping[str, Any]) -> CLIPVisionCfg:
    fields = CLIPVisionCfg.__dataclass_fields__
    unknown = [name for name in model_args if name not in fields]
    if unknown:
        raise UsageError(
            f"encoder.model_args: open_clip's vision_cfg has no {unknown[0]!r}."
            f"{did_you_mean(unknown[0], fields)} It has: {', '.join(fields)}"
        )
    config = CLIPVisionCfg(**{**known.vision, **model_args})
    if "layers" in model_args and type(config.layers) is not int:
        raise UsageError(
            f"encoder.model_args.layers is the number of blocks, not {shown(config.layers)}"
        )
    if not isinstance(config.layers, int):
        raise UsageError(
            f"open_clip model {known.name!r} cannot be a pivot: its image tower is a ModifiedResNet, "
            "which yields no patch tokens"
        )
    if type(config.patch_size) is not int:
        raise UsageError(
            "encoder.model_args: patch_size is pixels per side, one number, not "
            f"{shown(config.patch_size)}"
        )
    return config


def _built(known: _Known, model_args: Mapping[str, Any]) -> VisionTransformer:
    config = _vision_config(known, model_args)
    try:
        return _build_vision_tower(known.embed_dim, config, quick_gelu=known.quick_gelu)
    except Exception as error:  # open_clip checks few of its arguments
        raise unbuildable(f"open_clip model {known.name!r}", model_args, error) from None
