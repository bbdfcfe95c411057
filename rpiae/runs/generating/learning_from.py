"""What a generator learns from: latents of a folder, or images that a tokenizer encodes on the way."""

from __future__ import annotations

from attrs import frozen
from torch import Tensor

from rpiae.core.config.generation import GeneratorRunConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.contracts import BatchSource
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.latent_generator import LatentFacts
from rpiae.core.model.places import lasting_word
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.names import shown
from rpiae.data.building import built_dataset
from rpiae.data.fingerprint import data_fingerprint
from rpiae.data.image_dataset import CropDataset
from rpiae.data.listed import EveryImage, Listed
from rpiae.latents.encoding import tokenizer_digest
from rpiae.latents.reading import LatentDataset


@frozen(kw_only=True)
class LearnedFrom:
    """The source of a generator's training.

    Attributes:
        facts: of the latents.
        source: their batches, or those of images.
        fingerprint: what tells these latents or images from others, wherever they lie.
        stored: the stored latents; None where images are encoded.
        tokenizer: encodes images; None where latents are stored.
        listed: all images by name, where they can have labels.
    """

    facts: LatentFacts
    source: BatchSource
    fingerprint: str
    stored: LatentDataset | None = None
    tokenizer: RPiAE | None = None
    listed: EveryImage | None = None


def learned_from(config: GeneratorRunConfig) -> LearnedFrom:
    """What a run learns from.

    Raises:
        UsageError: if neither or both of latents and data are named, or they are no images'.
        CheckpointError: if latents or tokenizer cannot be read.
        DataError: if data cannot be used.
    """
    if bool(config.latents) == (config.data is not None):
        what = "both latents and data" if config.latents else "neither latents nor data"
        raise UsageError(
            f"{what} are named: train on a folder that rpiae encode wrote (rpiae diffuse FOLDER), or on "
            "images that are encoded on the way (--data folder:PATH --tokenizer RUN)"
        )
    return _of_latents(config) if config.latents else _of_images(config)


def _of_latents(config: GeneratorRunConfig) -> LearnedFrom:
    latents = LatentDataset(
        config.latents, flip=config.flip, sample=config.sample, held_out=config.held_out,
        workers=config.workers,
    )  # fmt: skip
    if len(latents.latent_shape) != 3:
        raise UsageError(
            f"{config.latents} holds latents of clips or videos, and generators take those of images so "
            "far: encode images, or single frames"
        )
    path, sha256 = latents.tokenizer
    if config.tokenizer and tokenizer_digest(load_tokenizer(config.tokenizer)) != sha256:
        raise UsageError(
            f"{shown(config.tokenizer)} is not the tokenizer that made {shown(config.latents)}: that was "
            f"{shown(path)}, wherever it lies now"
        )
    channels, rows, columns = latents.latent_shape
    num_classes = _num_classes(latents.labels, latents.label_names)
    return LearnedFrom(
        facts=LatentFacts(
            shape=(channels, rows, columns),
            tokenizer=lasting_word(config.tokenizer or path),
            tokenizer_sha256=sha256,
            num_classes=num_classes,
            label_names=latents.label_names if num_classes else (),
        ),
        source=latents,
        fingerprint=latents.fingerprint,
        stored=latents,
    )


def _of_images(config: GeneratorRunConfig) -> LearnedFrom:
    assert config.data is not None
    if not config.tokenizer:
        raise UsageError(
            "data are encoded on the way by a tokenizer: name one with --tokenizer RUN"
        )
    if config.data.clips:
        raise UsageError(
            f"data {config.data.label!r} are clips, and generators take latents of images so far"
        )
    tokenizer = load_tokenizer(config.tokenizer).requires_grad_(False)
    data = built_dataset(config.data)
    names: tuple[str, ...] = ()
    num_classes, listed = 0, None
    if isinstance(data, CropDataset) and isinstance(data, Listed):
        listed = data.every_image()
        num_classes = listed.num_classes()
        names = listed.label_names if num_classes else ()
        data = data.with_labels()
    channels, rows, columns = tokenizer.latent_shape(data.image_size, data.image_size)
    return LearnedFrom(
        facts=LatentFacts(
            shape=(channels, rows, columns),
            tokenizer=lasting_word(config.tokenizer),
            tokenizer_sha256=tokenizer_digest(tokenizer),
            num_classes=num_classes,
            label_names=names,
        ),
        source=data,
        fingerprint=data_fingerprint(config.data, times=False),
        tokenizer=tokenizer,
        listed=listed,
    )


def _num_classes(labels: Tensor, names: tuple[str, ...]) -> int:
    """Classes: as many as are named, else up to the highest label; 0 where nothing is labelled."""
    if int(labels.max()) < 0:
        return 0
    return len(names) or int(labels.max()) + 1


def moved(config: GeneratorRunConfig, found: LearnedFrom) -> str:
    """How what a run learns from differs from what its config says, in words; nothing where it does
    not."""
    if config.tokenizer_sha256 and found.facts.tokenizer_sha256 != config.tokenizer_sha256:
        return (
            f"{shown(found.facts.tokenizer)} holds another tokenizer than the run was trained with: name "
            "the folder that it was moved to with --tokenizer"
        )
    if config.learned_sha256 and found.fingerprint != config.learned_sha256:
        held = (
            f"{shown(config.latents)} holds other latents than"
            if found.stored
            else "data are not what"
        )
        return (
            f"{held} the run was trained on: name the folder that these were moved to, or start another "
            "run from its weights with --init"
        )
    return ""
