"""Files of the reference as models of ours."""

from __future__ import annotations

import os
from pathlib import Path

from rpiae.core.config.generation import FlowConfig
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.generator_folders import build_generator
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weight_files import named_file
from rpiae.core.runtime.weights import load_whole, read_weights, shapes
from rpiae.interop.lightningdit import (
    SIGNATURE,
    WHAT,
    Untold,
    config_of,
    dit_from_reference,
    names_in_reference,
)
from rpiae.latents.encoding import tokenizer_digest


def import_generator(
    file: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str],
    weights_key: str = "",
    told: Untold | None = None,
) -> LatentGenerator:
    """A generator of the reference, LightningDiT or DiTwDDTHead, from its file.

    It predicts velocities at times that were drawn logit-normally and shifted by √(C·h·w/4096), of
    latents as the tokenizer gives them; so the released ones were trained.

    Args:
        file: a checkpoint of its training, of which the averaged weights are taken, or a state dict.
        tokenizer: folder of the tokenizer, or of its run, whose latents it was trained on.
        weights_key: takes other weights of the file, such as ``"model"``.
        told: what the file leaves open.

    Raises:
        CheckpointError: if the file cannot be read or holds something else, or the tokenizer's folder
            does.
        UsageError: if the tokenizer makes other latents.
    """
    path = named_file(os.fspath(file), owner=WHAT)
    source = printable(str(path))
    state = read_weights(path, what=WHAT, signatures=(SIGNATURE,), key=weights_key)
    try:
        config = config_of(shapes(state), told)
        own = dit_from_reference(state, config)
    except (CheckpointError, UsageError) as error:
        raise CheckpointError(f"{source}: {error}") from None
    assert config.latent_channels
    assert config.rows
    assert config.columns
    assert config.num_classes is not None
    model = load_tokenizer(tokenizer)
    if model.bridge.latent_channels != config.latent_channels:
        raise UsageError(
            f"{source} is a generator of latents of {config.latent_channels} channels, and the "
            f"tokenizer in {tokenizer} makes those of {model.bridge.latent_channels}: name the tokenizer that it "
            "was trained with"
        )
    facts = LatentFacts(
        shape=(config.latent_channels, config.rows, config.columns),
        tokenizer=str(Path(tokenizer)),
        tokenizer_sha256=tokenizer_digest(model),
        num_classes=config.num_classes,
    )
    generator = build_generator(config, flow=FlowConfig(), facts=facts)
    load_whole(generator.roles["generator"], own, source=source, called=names_in_reference(config))
    return generator.requires_grad_(False).eval()
