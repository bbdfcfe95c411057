"""rpiae: a modular toolkit for representation-pivoted autoencoders.

    model = rpiae.build(encoder="tiny", bridge="vb16", decoder="vit-t")
    for event in rpiae.run({"encoder": "tiny", "out": "runs/a"}): ...
    model = rpiae.load("runs/a")  # or "user/name"; and rpiae.save(model, "there")
    latent = model.encode(images).mode()

Names are loaded when they are first used, so that ``import rpiae`` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import torch

    from rpiae.bridges import BRIDGES
    from rpiae.core.config.generation import GeneratorConfig
    from rpiae.core.config.parts import (
        BridgeConfig,
        DatasetConfig,
        DecoderConfig,
        EncoderConfig,
        EncoderDescription,
        LossConfig,
    )
    from rpiae.core.config.recipe import RecipeConfig, RunConfig
    from rpiae.core.errors import RpiaeError
    from rpiae.core.model.build import build
    from rpiae.core.model.tokenizer import RPiAE
    from rpiae.core.registry.registry import Entry, Manifest, Preset
    from rpiae.data import DATASETS
    from rpiae.decoders import DECODERS
    from rpiae.encoders import ENCODERS
    from rpiae.evaluation import METRICS
    from rpiae.generators import GENERATORS
    from rpiae.interop.diffusers.autoencoder_rpiae import AutoencoderRPiAE
    from rpiae.interop.exporting import export_model
    from rpiae.interop.hub.repositories import push_to_hub
    from rpiae.interop.importing import Imported
    from rpiae.interop.reference.sampling import sampling_of_reference
    from rpiae.losses import CRITICS, LOSSES
    from rpiae.recipes import RECIPES
    from rpiae.runs import resume, run
    from rpiae.runs.generating import resume_generator, run_generator
    from rpiae.sampling import load_generator

_WHERE = {
    "AutoencoderRPiAE": "rpiae.interop.diffusers.autoencoder_rpiae",
    "BRIDGES": "rpiae.bridges",
    "BridgeConfig": "rpiae.core.config.parts",
    "CRITICS": "rpiae.losses",
    "DATASETS": "rpiae.data",
    "DECODERS": "rpiae.decoders",
    "DatasetConfig": "rpiae.core.config.parts",
    "DecoderConfig": "rpiae.core.config.parts",
    "ENCODERS": "rpiae.encoders",
    "EncoderConfig": "rpiae.core.config.parts",
    "EncoderDescription": "rpiae.core.config.parts",
    "Entry": "rpiae.core.registry.registry",
    "GENERATORS": "rpiae.generators",
    "GeneratorConfig": "rpiae.core.config.generation",
    "LOSSES": "rpiae.losses",
    "LossConfig": "rpiae.core.config.parts",
    "METRICS": "rpiae.evaluation",
    "Manifest": "rpiae.core.registry.registry",
    "Preset": "rpiae.core.registry.registry",
    "RECIPES": "rpiae.recipes",
    "RPiAE": "rpiae.core.model.tokenizer",
    "RecipeConfig": "rpiae.core.config.recipe",
    "RpiaeError": "rpiae.core.errors",
    "RunConfig": "rpiae.core.config.recipe",
    "build": "rpiae.core.model.build",
    "export_model": "rpiae.interop.exporting",
    "load_generator": "rpiae.sampling",
    "push_to_hub": "rpiae.interop.hub.repositories",
    "resume": "rpiae.runs",
    "resume_generator": "rpiae.runs.generating",
    "run": "rpiae.runs",
    "run_generator": "rpiae.runs.generating",
    "sampling_of_reference": "rpiae.interop.reference.sampling",
}

__all__ = [
    "BRIDGES",
    "CRITICS",
    "DATASETS",
    "DECODERS",
    "ENCODERS",
    "GENERATORS",
    "LOSSES",
    "METRICS",
    "RECIPES",
    "AutoencoderRPiAE",
    "BridgeConfig",
    "DatasetConfig",
    "DecoderConfig",
    "EncoderConfig",
    "EncoderDescription",
    "Entry",
    "GeneratorConfig",
    "LossConfig",
    "Manifest",
    "Preset",
    "RPiAE",
    "RecipeConfig",
    "RpiaeError",
    "RunConfig",
    "build",
    "export_model",
    "from_pretrained",
    "import_model",
    "load",
    "load_generator",
    "push_to_hub",
    "resume",
    "resume_generator",
    "run",
    "run_generator",
    "sampling_of_reference",
    "save",
]

__version__ = "0.1.0"


def load(
    folder: str | os.PathLike[str],
    *,
    revision: str = "",
    subfolder: str = "",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> RPiAE:
    """Load a saved tokenizer, in eval mode; running no code from its files.

    Everything that it has must be there and nothing else, in the dtype that it was saved in. A folder
    that is there, and what can only be a path, never lead to the hub.

    Args:
        folder: of the tokenizer or the run; a model that ships with rpiae; or on the hub ``user/name``,
            ``user/name@revision`` or ``user/name@revision:subfolder``.
        revision: branch, tag or commit on the hub; ``main`` where nobody says.
        subfolder: below the folder, or in the repository.
        device: where to, such as ``"cuda"``; the CPU where it is not given.
        dtype: of its weights, such as ``torch.bfloat16``; as saved where it is not given.

    Raises:
        CheckpointError: if there is no tokenizer, or it is damaged.
        FetchError: if it is on the hub and cannot be had.
        UsageError: if there is no such device, or revision or subfolder make no sense for the folder.
    """
    from rpiae.core.model.folders import load_tokenizer
    from rpiae.core.runtime.devices import choose_device

    if device is not None and (isinstance(device, str) or device.type == "cuda"):
        device = choose_device(str(device))
    model = load_tokenizer(folder, revision=revision, subfolder=subfolder)
    return model.to(device=device, dtype=dtype)


#: By the name that it has in the libraries around.
from_pretrained = load


def import_model(source: str | os.PathLike[str], **told: Any) -> Imported:
    """A model of another project, whose layout is recognised; its ``model`` is a tokenizer or a generator.

    Args:
        source: a file, a folder, or a repository of the Hugging Face hub (``user/name``).
        told: what tensors do not say, such as ``encoder="dinov2-b"``, ``stats="stats.pt"``, ``num_heads=12``:
            see ``rpiae.interop.reference.facts.Told``.

    Raises:
        CheckpointError: if a file is damaged, of no known layout, or not whole.
        UsageError: if something is left open, which is asked for at once, or what is told does not fit.
        FetchError: if a repository cannot be had.
    """
    from rpiae.interop.importing import import_model as imported
    from rpiae.interop.reference.facts import Told

    return imported(source, told=Told(**told))


def save(
    model: RPiAE, folder: str | os.PathLike[str], *, rounded_to: torch.dtype | None = None
) -> Path:
    """Write a tokenizer's ``config.json`` and ``model.safetensors`` into a folder; the folder.

    A process that is killed meanwhile leaves the old tokenizer or the new one.

    Args:
        model: the tokenizer.
        folder: where to.
        rounded_to: writes its parameters in a narrower dtype, ``torch.float16`` or ``torch.bfloat16``, to
            half the bytes; they are loaded in fp32 again. Without it they are written, and loaded, as they are.

    Raises:
        UsageError: if the tokenizer was put together without configs, or its values are too large for
            the narrower dtype.
        CheckpointError: if the folder cannot be written.
    """
    from rpiae.core.model.folders import save_tokenizer

    return save_tokenizer(model, folder, rounded_to=rounded_to)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rpiae' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
