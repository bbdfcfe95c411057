"""Any timm vision transformer as a pivot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from timm.models import eva, vision_transformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from rpiae.core.errors import CheckpointError
from rpiae.core.model.adapters import from_transformers
from rpiae.core.model.blocks import aggregate, resample_positions, through
from rpiae.core.model.contracts import BlockFeatures, Encoder, Features, block_index
from rpiae.core.model.geometry import Grid, map_grid, map_to_tokens, patch_triple
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weights import check_plain, load_whole, read_weights
from rpiae.encoders.timm_attention import switched
from rpiae.encoders.timm_models import create_model, unbuildable

Triple = tuple[float, float, float]

#: What a file must have: the layouts of timm and of most original code, of transformers, of
#: transformers' SigLIP, of OpenAI's CLIP and Meta's Perception Encoder, of AIMv2, BEiT 3 and RADIO.
SIGNATURES = (
    ("patch_embed.proj.weight",),
    ("embeddings.patch_embeddings.projection.weight",),
    ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"),
    ("conv1.weight", "positional_embedding"),
    ("preprocessor.patchifier.proj.weight",),
    ("beit3.vision_embed.proj.weight",),
    ("radio_model.model.patch_generator.embedder.weight",),
)

#: What pretraining leaves in files and patch tokens do not need: norms behind the last block, heads
#: and poolings, mask tokens, MAE's decoder, EUPE's projectors, tables of rotary positions.
UNUSED = (
    "norm.", "fc_norm.", "head.", "head_dist.", "lm_head.", "dino_head.", "ibot_head.",
    "pre_logits.", "attn_pool.", "mask_token", "decoder_", "projectors.", "local_cls_norm.",
    "rope.", "rope_embed.", "visual.head.", "classifier.", "fc.", "segmentation_head.",
)  # fmt: skip

#: What timm's conversion computes anew, under these names or others.
_COMPUTED = ("cls_token", "pos_embed", "class_embedding", "positional_embedding")


class TimmEncoder(nn.Module):
    """Patch tokens of a timm ViT: class and register tokens dropped, affine-free final norm.

    Models of timm's ``VisionTransformer`` and ``Eva`` (the rotary ones: DINOv3, EUPE, Perception
    Encoder) run with our attention and our position resampling; other ViTs run through timm's
    ``forward_intermediates``. Modules that the tokens do not need (head, final affine norm, blocks
    behind the last used one) are deleted. SigLIP runs with the tanh approximation of GELU that it
    was trained with, which timm leaves out for some of its sizes.

    Args:
        model: timm's model name.
        layers: blocks whose final-normed tokens are averaged (RAEv2's layer aggregation); empty is
            the last block alone.
        add_final_mean: whether the spatial mean of the last of these blocks is added to every token.
        model_args: replaces arguments of timm's model.
        mean, std: input statistics; timm's own where not given.
        eps: epsilon of every LayerNorm; timm's own where not given.

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
        add_final_mean: bool = False,
        model_args: Mapping[str, Any] | None = None,
        mean: Triple | None = None,
        std: Triple | None = None,
        eps: float | None = None,
    ) -> None:
        super().__init__()
        network = create_model(model, model_args or {})
        self.layers = tuple(sorted(layers)) or (len(network.blocks) - 1,)
        self.add_final_mean = add_final_mean
        self._depth = len(network.blocks)
        network.blocks = network.blocks[: max(self.layers) + 1]
        self.width: int = network.embed_dim
        self.patch = patch_triple(network.patch_embed.patch_size[0])
        self.num_blocks = len(network.blocks)
        self.prefix_tokens: int = network.num_prefix_tokens
        self.mean: Triple = tuple(mean or network.pretrained_cfg["mean"])
        self.std: Triple = tuple(std or network.pretrained_cfg["std"])
        if eps is not None:
            for norm in (m for m in network.modules() if isinstance(m, nn.LayerNorm)):
                norm.eps = eps
        self._eps = _final_eps(network)
        self._rule = _resampling(model, network)
        # Subclasses embed in their own ways (a distillation token, other positions).
        self._known = type(network) in (VisionTransformer, Eva)
        for unused in ("norm", "head", "fc_norm", "head_drop"):
            if hasattr(network, unused):
                setattr(network, unused, nn.Identity())
        if hasattr(network, "attn_pool"):
            network.attn_pool = None
        if self._known:
            for block in network.blocks:
                block.attn = switched(block.attn)
        self.network = network

    @property
    def last_weight(self) -> nn.Parameter:
        """MLP output weight of the last used block."""
        return self.network.blocks[-1].mlp.fc2.weight  # type: ignore[no-any-return]  # timm is loosely typed

    @property
    def antialias(self) -> bool:
        """Whether positions are resampled with antialiasing for grids other than the stored one."""
        return self._rule.antialias

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """Final-normed patch tokens of normalised images."""
        after = self.blocks(images, self.layers)
        tokens = aggregate(after.tokens, eps=self._eps, add_final_mean=self.add_final_mean)
        return Features(tokens, after.grid)

    def blocks(self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]) -> BlockFeatures:
        """Patch tokens after the blocks with these indices, in the order asked for."""
        wanted = [block_index(index, self.num_blocks) for index in indices]
        if not self._known:
            _, ph, pw = self.patch
            grid = (1, images.shape[-2] // ph, images.shape[-1] // pw)
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
        tokens, grid = self._embed(images)
        rotations = self._rotations(grid)
        kept: dict[int, Tensor] = {}
        for index, block in enumerate(self.network.blocks[: max(wanted) + 1]):
            tokens = through(block, tokens, **({"rope": rotations[index]} if rotations else {}))
            if index in wanted:
                kept[index] = tokens[:, self.prefix_tokens :]
        return BlockFeatures([kept[index] for index in wanted], grid)

    def load_weights(self, path: Path, *, key: str = "") -> None:
        """Load a file in the layout of timm, of the original code, of transformers or of open_clip.

        Args:
            path: the file.
            key: which weights to take where it has several, see ``read_weights``.

        Raises:
            CheckpointError: if it does not hold this architecture, or holds more than that.
        """
        state = read_weights(path, what="this timm model", signatures=SIGNATURES, key=key)
        self.load_tensors(state, source=printable(str(path)))

    def load_tensors(self, state: Mapping[str, Tensor], *, source: object) -> None:
        """As ``load_weights``, from tensors; ``source`` is what messages call them.

        Raises:
            CheckpointError: if they do not hold this architecture, or hold more than that.
        """
        state = _with_family_prefix(state)
        for name, value in state.items():
            check_plain(source, name, value)
        try:
            foreign = from_transformers(state)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        if foreign is None:
            converted = self._converted(state)
        else:
            converted = {n.removeprefix("network."): value for n, value in foreign.items()}
        stored = {value.data_ptr(): name for name, value in state.items()}
        behind = tuple(f"blocks.{index}." for index in range(self.num_blocks, self._depth))
        load_whole(
            self.network,
            converted,
            source=source,
            unused=UNUSED + behind,
            called={n: stored.get(value.data_ptr(), n) for n, value in converted.items()},
        )

    def _converted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The original code's names as timm's, by timm's own conversion.

        That conversion drops what it has no use for without a word: here it stays, under its own
        name. Positions of another grid are resampled by the source's rule, not by timm's.
        """
        family = {VisionTransformer: vision_transformer, Eva: eva}.get(type(self.network))
        if family is None:
            return dict(state)
        given = {n: self._fitted(v) if n == "pos_embed" else v for n, v in state.items()}
        # timm prints an exception for each bias that a DINOv3 file has and the model has not.
        biases = [n for n in given if n.endswith(".qkv.bias") and not self._has_bias(n)]
        extra = {name: given.pop(name) for name in biases}
        mode, antialias, _ = self._rule

        def convert(some: Mapping[str, Tensor]) -> dict[str, Tensor]:
            names: dict[str, Tensor] = family.checkpoint_filter_fn(
                dict(some), self.network, interpolation=mode, antialias=antialias
            )
            return names

        try:
            converted = convert(given)
        except Exception:  # it assumes the right architecture; load_whole says what is wrong
            return dict(state)
        dropped = {
            name: value
            for name, value in _not_handed_on(given, converted).items()
            if name.rpartition(".")[2] not in _COMPUTED
            and _makes_no_difference(name, given, converted, convert)
        }
        extra = {name: value for name, value in extra.items() if value.any()}
        return {**dropped, **extra, **converted}

    def _has_bias(self, name: str) -> bool:
        """Whether the model's attention takes this bias of queries, keys and values."""
        attention_of = name.removesuffix("qkv.bias")
        own = self.network.state_dict()
        return any(f"{attention_of}{bias}" in own for bias in ("qkv.bias", "q_bias", "q_proj.bias"))

    def _fitted(self, positions: Tensor) -> Tensor:
        """Stored positions at the model's native grid, where they are of another square one."""
        rows, columns = self.network.patch_embed.grid_size
        for carried in (0, 1, self.prefix_tokens):
            side = math.isqrt(max(positions.shape[1] - carried, 0)) if positions.ndim == 3 else 0
            if (
                side
                and side * side + carried == positions.shape[1]
                and side * side != rows * columns
            ):
                stored = positions[:, carried:].reshape(1, side, side, -1)
                fitted = resample_positions(stored, (rows, columns), **self._rule._asdict())
                return torch.cat([positions[:, :carried], fitted.flatten(1, 2)], dim=1)
        return positions

    def _embed(self, images: Tensor) -> tuple[Tensor, Grid]:
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
            stored = network.pos_embed[:, carried:].reshape(1, rows, columns, -1)
            positions = resample_positions(
                stored, (grid[1], grid[2]), **self._rule._asdict()
            ).flatten(1, 2)
            tokens = torch.cat([*prefix, tokens + positions], dim=1)
            if carried:
                with_positions = tokens[:, :carried] + network.pos_embed[:, :carried]
                tokens = torch.cat([with_positions, tokens[:, carried:]], dim=1)
        return network.norm_pre(tokens), grid

    def _rotations(self, grid: Grid) -> Sequence[Tensor] | None:
        """Rotary positions for each block, or None where the model has none."""
        rope = getattr(self.network, "rope", None)
        if rope is None:
            return None
        rotation: Tensor = rope.get_embed(shape=list(grid[1:]))
        return list(rotation) if self.network.rope_mixed else [rotation] * self.num_blocks


class _Rule(NamedTuple):
    """How a source resamples its positions; see ``resample_positions``."""

    mode: Literal["bicubic", "bilinear"]
    antialias: bool
    offset: float = 0.0


def _resampling(model: str, network: Any) -> _Rule:
    """The rule of the code that the weights were published with; docs/encoders.md names it."""
    config = network.pretrained_cfg
    if "dinov2" in model or "dinov2" in str(config.get("hf_hub_id") or ""):
        if getattr(network, "reg_token", None) is not None:
            return _Rule("bicubic", antialias=True)
        return _Rule("bicubic", antialias=False, offset=0.1)
    if config.get("tag") == "dino":
        return _Rule("bicubic", antialias=False, offset=0.1)
    if model.startswith("vit_pe_"):
        return _Rule("bilinear", antialias=False)
    return _Rule("bicubic", antialias=False)


def _not_handed_on(given: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose memory a conversion's result does not have: dropped, or computed with."""
    kept = {value.data_ptr() for value in made.values()}
    return {name: value for name, value in given.items() if value.data_ptr() not in kept}


def _makes_no_difference(
    name: str,
    given: Mapping[str, Tensor],
    made: Mapping[str, Tensor],
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> bool:
    """Whether a conversion makes the same tensors without the one of this name."""
    try:
        without = convert({other: value for other, value in given.items() if other != name})
    except Exception:  # it needs the tensor
        return False
    return without.keys() == made.keys() and all(torch.equal(without[n], made[n]) for n in made)


def _with_family_prefix(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names as conversions know them: with the prefix that tells image towers from text towers."""
    for name, prefix in (
        ("conv1.weight", "visual."),
        ("embeddings.patch_embedding.weight", "vision_model."),
    ):
        if name in state:
            return {f"{prefix}{other}": value for other, value in state.items()}
    return state


def _final_eps(network: Any) -> float:
    """Epsilon of the final norm, which timm keeps in one of two places, or nowhere."""
    norms: tuple[Any, ...] = (
        network.norm, getattr(network, "fc_norm", None), network.blocks[-1].norm1,
    )  # fmt: skip
    return next(float(norm.eps) for norm in norms if hasattr(norm, "eps"))


def describe_model(
    model: str, model_args: Mapping[str, Any]
) -> tuple[int, int, int, int, Triple, Triple]:
    """Width, patch, blocks, prefix tokens, mean and std of a timm model, without its memory.

    Raises:
        UsageError: if timm has no such model, or it yields no patch tokens.
    """
    with torch.device("meta"):
        encoder = TimmEncoder(model=model, model_args=model_args)
    if model_args:
        try_out(encoder, f"timm model {model!r}", model_args)
    return (
        encoder.width, encoder.patch[1], encoder.num_blocks, encoder.prefix_tokens,
        encoder.mean, encoder.std,
    )  # fmt: skip


def try_out(encoder: Encoder, what: str, model_args: Mapping[str, Any]) -> None:
    """Refuse an encoder on the meta device that does not take an image of 2×2 patches.

    Raises:
        UsageError: if it does not; it blames ``model_args``.
    """
    _, ph, pw = encoder.patch
    try:
        encoder.blocks(torch.empty(1, 3, 2 * ph, 2 * pw, device="meta"), [-1])
    except Exception as error:  # a library's model fails in its own ways on sizes that do not fit
        raise unbuildable(what, model_args, error) from None
