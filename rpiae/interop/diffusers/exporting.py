"""Tokenizers as folders that diffusers loads: of its AutoencoderRAE, or of our own autoencoder."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from rpiae.bridges.identity import IdentityBridge
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.folders import save_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import whole, write_text
from rpiae.interop.diffusers.layout import (
    CLASS,
    CONFIG_FILE,
    ENCODERS,
    HEAD_WIDTH,
    WEIGHTS_FILE,
    RaeEncoder,
)
from rpiae.interop.diffusers.writing import RaeModel, as_autoencoder_rae

#: The transformers that encoders are named for where none is installed.
_NEWEST = "5.24"


def write_diffusers(model: RPiAE, folder: Path, *, size: int | None = None) -> list[str]:
    """Write a tokenizer so that diffusers loads it.

    Without a bridge, it becomes a folder of ``diffusers.AutoencoderRAE``, which gives the same latents
    and images; with one, the folder of a tokenizer, which ``rpiae.AutoencoderRPiAE`` loads.

    Args:
        model: the tokenizer.
        folder: where to; made if it is not there.
        size: side in pixels of the images that an ``AutoencoderRAE`` is for, as it takes squares of one
            size; that of the tokenizer's training crops where not given.

    Returns:
        What was written, what was left out and how it is loaded, in sentences.

    Raises:
        UsageError: if the tokenizer is more than an ``AutoencoderRAE`` can be, with every reason, or has a
            bridge and a size is given; nothing is written.
        CheckpointError: if the folder cannot be written.
    """
    if not isinstance(model.bridge, IdentityBridge):
        if size is not None:
            raise UsageError(
                f"this tokenizer has a bridge, so it becomes no {CLASS} but stays one for images of any "
                "size: leave size out"
            )
        save_tokenizer(model, folder)
        return [
            f"It has a bridge, which {CLASS} has not, so this is a tokenizer's folder: load it with "
            "rpiae.AutoencoderRPiAE.from_pretrained, which works in diffusers as AutoencoderKL does."
        ]
    found = as_autoencoder_rae(model, size=size)
    short, version = _naming(found.kind)
    config = {"_class_name": CLASS, **found.config()}
    state = found.state(short=short)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / WEIGHTS_FILE) as unfinished:
            save_file(state, unfinished, metadata={"format": "pt"})
            unfinished.chmod(0o644)  # safetensors lets its owner alone read it
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror}") from None
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return _told(model, found, version)


def _naming(kind: RaeEncoder) -> tuple[bool, str]:
    """Whether an encoder's tensors get the short names, and which transformers has them so.

    diffusers loads an encoder by the names of the transformers beside it, so those of the installed one
    are taken. Its SigLIP 2 works with long names alone.
    """
    if kind is ENCODERS["siglip2"]:
        return False, "below 5.6, with which alone diffusers can build it"
    if importlib.util.find_spec("transformers") is None:
        return True, _NEWEST
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{kind.transformer}Config")(
        hidden_size=HEAD_WIDTH, num_attention_heads=1, num_hidden_layers=1
    )
    with torch.device("meta"):
        model = getattr(transformers, f"{kind.transformer}Model")(config)
    return kind.is_short(model.state_dict()), transformers.__version__


def _told(model: RPiAE, found: RaeModel, version: str) -> list[str]:
    side = found.options.image_size
    told = [
        f"This is an {CLASS} of {found.kind.what} for images of {side}×{side} pixels: load it with "
        "diffusers.AutoencoderRAE.from_pretrained. Images of other sizes it resizes to that.",
        f"Its encoder's tensors are named as in transformers {version}; diffusers beside one with other "
        "names leaves the encoder random and logs a warning: export it again there.",
        "Weights that its encoder has and no latent depends on are zero: a mask token, a pooling head.",
    ]
    if model.latent_mean is not None:
        told.append(
            "The latent_norm is left out: normalise latents yourself for a diffusion model."
        )
    return told
