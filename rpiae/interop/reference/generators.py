"""The reference's generators: their files as models of ours."""

from __future__ import annotations

import logging
import os

from rpiae.core.config.generation import FlowConfig
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.generator_folders import build_generator
from rpiae.core.model.latent_generator import LatentFacts, LatentGenerator
from rpiae.core.model.places import lasting_name, named_place
from rpiae.core.model.saved import TOKENIZER
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.weight_files import named_file
from rpiae.core.runtime.weights import load_whole, read_weights, shapes
from rpiae.interop.reference.lightningdit import (
    LABELS,
    SIGNATURE,
    WHAT,
    Untold,
    config_of,
    dit_from_reference,
    names_in_reference,
)
from rpiae.latents.encoding import tokenizer_digest

#: Share of the labels that the reference takes away in training, where its table has a row for none.
LABEL_DROPOUT = 0.1

logger = logging.getLogger(__name__)


def import_generator(
    file: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str],
    weights_key: str = "",
    told: Untold | None = None,
) -> LatentGenerator:
    """A generator of the reference, LightningDiT or DiTwDDTHead, from its file.

    It predicts velocities at times that were drawn logit-normally and shifted by √(C·h·w/4096), of
    latents as the tokenizer gives them; so the released ones were trained. Where the file's label table has no
    row for no class, ``flow.label_dropout`` is 0: there is nothing that guidance could be measured from.
    Latents of another size than the tokenizer was trained on are logged.

    Args:
        file: a checkpoint of its training, of which the averaged weights are taken, or a state dict.
        tokenizer: folder of the tokenizer, or of its run, whose latents it was trained on; or ``user/name`` of
            the hub.
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
    shape = (config.latent_channels, config.rows, config.columns)
    _tell_of_other_sizes(source, shape, model)
    facts = LatentFacts(
        shape=shape,
        tokenizer=lasting_name(named_place(tokenizer, TOKENIZER)),
        tokenizer_sha256=tokenizer_digest(model),
        num_classes=config.num_classes,
    )
    has_none = len(state[LABELS]) > config.num_classes
    flow = FlowConfig(label_dropout=LABEL_DROPOUT if has_none else 0.0)
    generator = build_generator(config, flow=flow, facts=facts)
    load_whole(generator.roles["generator"], own, source=source, called=names_in_reference(config))
    return generator.requires_grad_(False).eval()


def _tell_of_other_sizes(source: str, shape: tuple[int, int, int], tokenizer: RPiAE) -> None:
    """A tokenizer takes images of many sizes, so this is no error."""
    size = tokenizer.trained_size
    if size and (usual := tokenizer.latent_shape(size, size)) != shape:
        logger.warning(
            "%s is a generator of latents of %s, and the tokenizer makes those of %s of the images that it "
            "was trained on, %d pixels wide: if it was not trained with this tokenizer, name the one that it was",
            source, "×".join(map(str, shape)), "×".join(map(str, usual)), size,
        )  # fmt: skip
