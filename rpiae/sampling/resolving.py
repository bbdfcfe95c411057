"""Which tokenizer and which guide belong to a generator."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from rpiae.core.errors import CheckpointError, FetchError, UsageError
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.generator_folders import generator_folder, load_generator_model
from rpiae.core.model.latent_generator import LatentGenerator
from rpiae.core.model.places import Word, recorded_word
from rpiae.core.model.saved import GENERATOR, TOKENIZER
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.names import printable
from rpiae.latents.encoding import tokenizer_digest


def generator_named(name: Word, *, revision: str = "", subfolder: str = "") -> Path:
    """The folder of the generator that a user names; see ``generator_folder``."""
    return generator_folder(name, revision=revision, subfolder=subfolder)


def load_finite(folder: Path) -> LatentGenerator:
    """A saved generator whose weights are numbers.

    Args:
        folder: as ``generator_named`` gives it.

    Raises:
        CheckpointError: if it is missing or damaged, or a weight is not finite.
    """
    model = load_generator_model(folder)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{folder}: {name} holds values that are not finite, so nothing can "
                "be sampled: take an earlier checkpoint of its run"
            )
    return model


def tokenizer_of(model: LatentGenerator, folder: Path, named: Word | None) -> RPiAE:
    """The tokenizer whose latents a generator makes: the named one, else the one beside it in its run's
    folder, else the one that it was trained with.

    Args:
        model: the generator.
        folder: where it is.
        named: the word for a tokenizer, see ``load_tokenizer``.

    Raises:
        CheckpointError: if it is missing or damaged.
        FetchError: if it is on the hub and cannot be had.
        UsageError: if it is another one.
    """
    place = named if named is not None else own_tokenizer(model, folder)
    try:
        tokenizer = load_tokenizer(place)
    except (CheckpointError, FetchError) as error:
        if named is not None:
            raise
        raise CheckpointError(
            f"the tokenizer of {folder}, which was {printable(str(place))} when it was trained, "
            f"is gone or damaged ({error}): name it with --tokenizer, in Python tokenizer="
        ) from None
    if tokenizer_digest(tokenizer) != model.facts.tokenizer_sha256:
        raise UsageError(
            f"the tokenizer in {printable(str(place))} is another one than that on whose latents "
            f"{folder} was trained, so it cannot decode them: name that one, which was "
            f"{printable(model.facts.tokenizer)}, with --tokenizer, in Python tokenizer="
        )
    return tokenizer


def own_tokenizer(model: LatentGenerator, folder: Path) -> Word:
    beside = folder.parent / TOKENIZER
    there = (beside / "config.json", beside / TOKENIZER / "config.json")  # it, or its run
    if folder.name == GENERATOR and any(map(os.path.lexists, there)):
        return beside
    return recorded_word(model.facts.tokenizer)


def load_guide(model: LatentGenerator, folder: Word) -> LatentGenerator:
    """A weaker generator to be guided away from.

    Raises:
        CheckpointError: if it is missing or damaged.
        UsageError: if its latents or classes are others.
    """
    guide = load_finite(generator_named(folder))
    ours, theirs = model.facts, guide.facts
    for what, same in (
        ("tokenizer", ours.tokenizer_sha256 == theirs.tokenizer_sha256),
        ("latents' size", ours.shape == theirs.shape),
        (
            "classes",
            (model.num_classes, ours.label_names) == (guide.num_classes, theirs.label_names),
        ),
        ("normalisation", _same_norms(model, guide)),
    ):
        if not same:
            raise UsageError(
                f"the guide {Path(folder)} differs from the generator in its {what}: a guide is a weaker "
                "run on the same latents"
            )
    return guide


def _same_norms(one: LatentGenerator, other: LatentGenerator) -> bool:
    pairs = ((one.latent_mean, other.latent_mean), (one.latent_std, other.latent_std))
    return all(
        a is b if a is None or b is None else a.shape == b.shape and torch.equal(a, b)
        for a, b in pairs
    )
