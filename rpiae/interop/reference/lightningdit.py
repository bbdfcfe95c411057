"""States of the reference's generators as those of ``Dit``, and back: pure key maps.

The reference has two classes, LightningDiT and DiTwDDTHead; the second has the wide head. What a state
is of is read off its names and shapes. Nothing here reads a file.

Source: the reference implementation of arXiv 2603.19206.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from rpiae.core.config.tree import Tree
from rpiae.core.errors import CheckpointError
from rpiae.core.model.layouts import State, check_none_unknown
from rpiae.core.model.resolve import part_config
from rpiae.core.runtime.weights import Shapes, Signature, and_more, check_finite
from rpiae.generators.configs import DitConfig
from rpiae.generators.layers import RotaryPositions, mlp_hidden

#: The table of labels, in the reference.
LABELS = "y_embedder.embedding_table.weight"

#: Names that every state of the reference's generators has.
SIGNATURE: Signature = (
    "t_embedder.W", "t_embedder.mlp.0.weight", LABELS,
    "x_embedder.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.adaLN_modulation.1.weight",
    "final_layer.linear.weight",
)  # fmt: skip

WHAT = "a generator of the reference"

#: Beginnings of our names → of the reference's; the first that fits counts. A wide head, which reads
#: the latents again, has ``x_embedder`` there.
_NAMES = (
    ("positions", "pos_embed"),
    ("time.frequencies", "t_embedder.W"),
    ("time.", "t_embedder."),
    ("labels.", "y_embedder.embedding_table."),
    ("embed.", "x_embedder.proj."),
    ("final.norm.", "final_layer.norm_final."),
    ("final.modulation.", "final_layer.adaLN_modulation.1."),
    ("final.linear.", "final_layer.linear."),
)
_HEAD_NAMES = (
    ("embed.", "s_embedder.proj."),
    ("head.embed.", "x_embedder.proj."),
    ("head.projection.", "s_projector."),
    *_NAMES,
)
_BLOCK = re.compile(r"(head\.)?blocks\.(\d+)\.(.+)")

#: Cosines and sines of rotary positions, which the reference saves, and ours computes.
_ROTARY = re.compile(r"(enc_|dec_)?feat_rope\.freqs_(cos|sin)")

#: By how much they may differ: far more than rounding, far less than another rule.
_ROTARY_TOLERANCE = 1e-3


@frozen(kw_only=True)
class Untold:
    """What a state's shapes may leave open.

    Attributes:
        num_heads: attention heads, where there is neither RoPE nor QK-norm.
        head_depth: blocks of a wide head that is as wide as the blocks before it.
        num_classes: classes, where the label table has no row for none of them.
    """

    num_heads: int | None = None
    head_depth: int | None = None
    num_classes: int | None = None


def config_of(shapes: Shapes, told: Untold | None = None) -> DitConfig:
    """The config of ``dit`` for a state of the reference.

    Args:
        shapes: of its tensors, by name.
        told: what they leave open.

    Raises:
        CheckpointError: if they are of something else, or more is left open than is told.
        ConfigError: if they contradict each other.
    """
    told = told or Untold()
    has_head = "s_embedder.proj.weight" in shapes
    width, channels, patch, _ = _shape(
        shapes, "s_embedder.proj.weight" if has_head else "x_embedder.proj.weight", 4
    )
    side = _side(shapes) * patch
    numbers = [int(match[2]) for name in shapes if (match := _BLOCK.fullmatch(name))]
    depth = 1 + max(numbers, default=-1)
    head: dict[str, Any] = {}
    if has_head:
        head_width = _shape(shapes, "x_embedder.proj.weight", 4)[0]
        depth, head_depth = _depths(shapes, depth, width, head_width, told)
        heads = _num_heads(shapes, depth, head_width, "dec_", told)
        head = {"head_width": head_width, "head_depth": head_depth, "head_heads": heads}
    _check_output(shapes, channels * patch**2)
    tree: Tree = {
        "name": "dit",
        "latent_channels": channels,
        "rows": side,
        "columns": side,
        "num_classes": _num_classes(shapes, told),
        "width": width,
        "depth": depth,
        "num_heads": _num_heads(shapes, 0, width, "enc_" if has_head else "", told),
        "mlp_ratio": _mlp_ratio(shapes, width),
        "patch": patch,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "rms_norm": "blocks.0.norm1.weight" in shapes,
        "swiglu": "blocks.0.mlp.w12.weight" in shapes,
        "rope": any(_ROTARY.fullmatch(name) for name in shapes),
        "positions": "trained" if "pos_embed" in shapes else "none",
        "shifts": _shape(shapes, "blocks.0.adaLN_modulation.1.weight", 2)[0] == 6 * width,
        "frequencies": _shape(shapes, "t_embedder.W", 1)[0],
        "init": "default" if has_head else "xavier",
        **head,
    }
    config = part_config("generators", tree)
    assert isinstance(config, DitConfig)
    return config


def dit_from_reference(state: Mapping[str, Tensor], config: DitConfig) -> State:
    """A state of the reference for the generator of a config.

    Of a model that predicts a variance too (``learn_sigma``), what does that is left out. A label
    table without a row for no class gets one of zeros.

    Args:
        state: the reference's.
        config: of ``config_of``.

    Raises:
        CheckpointError: if a tensor is missing, unknown or not finite, or rotary positions follow
            another rule.
    """
    names = names_in_reference(config)
    missing = [name for name in names.values() if name not in state]
    if missing:
        raise CheckpointError(f"{WHAT}: {missing[0]} is missing{and_more(missing)}")
    tables = {name: value for name, value in state.items() if _ROTARY.fullmatch(name)}
    check_none_unknown(WHAT, set(state) - set(names.values()) - set(tables))
    _check_rotary(tables, _rotary_tables(config))
    for name, value in state.items():
        check_finite(WHAT, name, value)
    own = {ours: state[theirs] for ours, theirs in names.items()}
    if "positions" in own:
        own["positions"] = own["positions"].reshape(1, *_grid(config), -1)
    if len(own["labels.weight"]) == config.num_classes:
        own["labels.weight"] = F.pad(own["labels.weight"], (0, 0, 0, 1))
    for name in ("final.linear.weight", "final.linear.bias"):
        rest = own[name].shape[1:]
        by_position = own[name].reshape(config.patch**2, -1, *rest)
        own[name] = by_position[:, : config.latent_channels].reshape(-1, *rest)
    return own


def dit_to_reference(state: Mapping[str, Tensor], config: DitConfig) -> State:
    """Inverse of ``dit_from_reference``, tables of rotary positions included.

    Args:
        state: of the generator of a config.
        config: its own.

    Raises:
        CheckpointError: if a tensor is missing or unknown.
    """
    names = names_in_reference(config)
    missing = [name for name in names if name not in state]
    if missing:
        raise CheckpointError(f"a state of Dit: {missing[0]} is missing{and_more(missing)}")
    check_none_unknown("a state of Dit", set(state) - set(names))
    theirs = {names[name]: value for name, value in state.items()}
    if "pos_embed" in theirs:
        theirs["pos_embed"] = theirs["pos_embed"].flatten(1, 2)
    return theirs | _rotary_tables(config)


def names_in_reference(config: DitConfig) -> dict[str, str]:
    """What the reference calls every tensor of the generator of a config."""
    with torch.device("meta"):
        own = config.build().state_dict()
    return {name: _theirs(name, config) for name in own}


def _theirs(name: str, config: DitConfig) -> str:
    if match := _BLOCK.fullmatch(name):
        number = int(match[2]) + (config.depth if match[1] else 0)
        return f"blocks.{number}.{match[3]}".replace(".modulation.", ".adaLN_modulation.1.")
    pairs = _HEAD_NAMES if config.head_depth else _NAMES
    ours, theirs = next(pair for pair in pairs if name.startswith(pair[0]))
    return theirs + name.removeprefix(ours)


def _shape(shapes: Shapes, name: str, ndim: int) -> tuple[int, ...]:
    if name not in shapes:
        raise CheckpointError(f"{WHAT}: {name} is missing")
    shape = shapes[name]
    if len(shape) != ndim or min(shape) < 1:
        raise CheckpointError(f"{WHAT}: {name} has the shape {shape}, not one of {ndim} numbers")
    return shape


def _num_classes(shapes: Shapes, told: Untold) -> int:
    rows = _shape(shapes, LABELS, 2)[0]
    if told.num_classes not in (None, rows - 1, rows):
        raise CheckpointError(
            f"{WHAT}: its table of labels has {rows} rows, for {rows - 1} classes and none of them or for "
            f"{rows} classes, not for {told.num_classes}"
        )
    return rows - 1 if told.num_classes is None else told.num_classes


def _check_output(shapes: Shapes, values: int) -> None:
    """The last layer gives every value of a token's patch, once or twice (with a variance)."""
    for name, ndim in (("final_layer.linear.weight", 2), ("final_layer.linear.bias", 1)):
        found = _shape(shapes, name, ndim)[0]
        if found not in (values, 2 * values):
            raise CheckpointError(
                f"{WHAT}: {name} is for {found} values per token, and its latents have {values}"
            )


def _side(shapes: Shapes) -> int:
    """Tokens per side: the reference has square latents alone."""
    tables = [shape[0] for name, shape in shapes.items() if _ROTARY.fullmatch(name)]
    tokens = _shape(shapes, "pos_embed", 3)[1] if "pos_embed" in shapes else max(tables, default=0)
    side = math.isqrt(tokens)
    if not tokens or side * side != tokens:
        raise CheckpointError(f"{WHAT}: its {tokens} tokens are no square")
    return side


def _depths(
    shapes: Shapes, blocks: int, width: int, head_width: int, told: Untold
) -> tuple[int, int]:
    """Blocks before the head, and of it."""
    head_depth = told.head_depth
    if width != head_width:
        proj = (f"blocks.{n}.attn.proj.bias" for n in range(blocks))
        head_depth = sum(_shape(shapes, name, 1)[0] == head_width for name in proj)
    if head_depth is None:
        raise CheckpointError(
            f"{WHAT}: which of its {blocks} blocks are those of the head is not told by their shapes, "
            "which are alike: say how many are, with --head-depth (Python: head_depth)"
        )
    if not 0 < head_depth < blocks:
        raise CheckpointError(
            f"{WHAT}: a head of {head_depth} blocks does not fit its {blocks} blocks"
        )
    return blocks - head_depth, head_depth


def _num_heads(shapes: Shapes, block: int, width: int, which: str, told: Untold) -> int:
    norm, table = f"blocks.{block}.attn.q_norm.weight", f"{which}feat_rope.freqs_cos"
    if norm in shapes:
        return width // _shape(shapes, norm, 1)[0]
    if table in shapes:
        return width // _shape(shapes, table, 2)[1]
    if told.num_heads is None:
        raise CheckpointError(
            f"{WHAT}: how many attention heads it has is not told by its shapes, without RoPE and "
            "QK-norm: say it with --heads (Python: num_heads)"
        )
    return told.num_heads


def _mlp_ratio(shapes: Shapes, width: int) -> float:
    """The least multiple of 1/8 that gives the MLP its width; the least ratio of all, if none does."""
    swiglu = "blocks.0.mlp.w12.weight" in shapes
    hidden = _shape(shapes, f"blocks.0.mlp.{'w3' if swiglu else 'fc2'}.weight", 2)[1]
    eighths = (n / 8 for n in range(1, 8 * 64))
    exact = ((n + 0.5) / width for n in range(hidden, 2 * hidden + 2))
    for ratio in (*eighths, *exact):
        if mlp_hidden(width, ratio, swiglu=swiglu) == hidden:
            return ratio
    raise CheckpointError(f"{WHAT}: there is no MLP of {hidden} channels for a width of {width}")


def _grid(config: DitConfig) -> tuple[int, int]:
    assert config.rows
    assert config.columns
    return config.rows // config.patch, config.columns // config.patch


def _rotary_tables(config: DitConfig) -> State:
    """As the reference saves them."""
    if not config.rope:
        return {}
    has_head = config.head_depth > 0
    widths = {"enc_" if has_head else "": config.width // config.num_heads}
    if has_head:
        widths["dec_"] = config.head_width // config.head_heads
    grid = _grid(config)
    return {
        f"{which}feat_rope.freqs_{kind}": table
        for which, width in widths.items()
        for kind, table in zip(
            ("cos", "sin"), RotaryPositions(head_width=width, grid=grid)(grid), strict=True
        )
    }


def _check_rotary(there: State, ours: State) -> None:
    for name, table in ours.items():
        found = there.get(name)
        if found is not None and (
            found.shape != table.shape or (found - table).abs().max() > _ROTARY_TOLERANCE
        ):
            raise CheckpointError(
                f"{WHAT}: {name} holds rotary positions of another rule than the reference's"
            )
