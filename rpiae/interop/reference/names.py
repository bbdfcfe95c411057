"""What newer versions of transformers call the tensors of encoders in memory.

``save_pretrained`` writes the older, longer names, which the layouts here have; a state dict that was saved
as it is has those of the transformers that it was trained with.

Source: transformers 4.48 to 5.24, ``conversion_mapping``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

#: Parts of long names, and what newer versions have for them.
SHORTER_ATTENTION = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)  # fmt: skip
SHORTER_VIT_MLP = ((".intermediate.dense.", ".mlp.fc1."), (".output.dense.", ".mlp.fc2."))

_DOWN = (".mlp.weights_out.", ".mlp.down_proj.")
_GATE, _UP, _BOTH = ".mlp.gate_proj.", ".mlp.up_proj.", ".mlp.weights_in."
_VIT_BLOCKS = re.compile(r"(^|\.)layers\.(?=\d)")


def with_long_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under the long names, with both halves of a gated MLP's first layer in one.

    Args:
        state: of encoders, and of what else a file has; parts are told apart by their first word.
    """
    of_vit = {name.partition(".")[0] for name in state if ".layernorm_before." in name}
    long = {_long(name, name.partition(".")[0] in of_vit): value for name, value in state.items()}
    if len(long) < len(state):  # a file with both is of neither
        return dict(state)
    for name in [name for name in long if _GATE in name]:
        other = name.replace(_GATE, _UP)
        if other in long and long[name].shape == long[other].shape != ():
            long[name.replace(_GATE, _BOTH)] = torch.cat([long.pop(name), long.pop(other)])
    return long


def _long(name: str, of_vit: bool) -> str:
    """The long one of a name, which may be it already."""
    pairs = (*SHORTER_ATTENTION, _DOWN, *(SHORTER_VIT_MLP if of_vit else ()))
    for long, short in pairs:
        name = name.replace(short, long)
    return _VIT_BLOCKS.sub(r"\1encoder.layer.", name) if of_vit else name
