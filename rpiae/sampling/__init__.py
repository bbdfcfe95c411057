"""Sampling: from a trained generator and classes to images.

    g = rpiae.load_generator("runs/g")
    images = g.sample(["cat", "ship"], guidance=1.5, seed=0)

``docs/sampling.md`` describes it. Names are loaded when they are first used: a config that holds a
``SamplingConfig`` stays free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rpiae.sampling.configs import SamplingConfig
    from rpiae.sampling.loaded import LoadedGenerator, load_generator, samples

_WHERE = {
    "LoadedGenerator": "rpiae.sampling.loaded",
    "SamplingConfig": "rpiae.sampling.configs",
    "load_generator": "rpiae.sampling.loaded",
    "samples": "rpiae.sampling.loaded",
}

__all__ = ["LoadedGenerator", "SamplingConfig", "load_generator", "samples"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rpiae.sampling' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
