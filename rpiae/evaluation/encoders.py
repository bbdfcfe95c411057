"""Probes of any encoder, whether a pivot by its name or a fine-tuned one by its run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.contracts import Replica
from rpiae.core.model.folders import load_tokenizer, tokenizer_folder
from rpiae.core.model.resolve import ResolvedTokenizer, part_config, resolve_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.objective import PivotReplica
from rpiae.data.listed import CropRule
from rpiae.evaluation.accumulators import Rows, merge
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.examination import pooled
from rpiae.evaluation.images import (
    ImageSet,
    listed_images,
    with_labels_of,
)
from rpiae.evaluation.probing import ProbeResult, knn_accuracy, linear_probe
from rpiae.evaluation.semantics import turned
from rpiae.evaluation.walk import Progress, Walk, check_apart
from rpiae.latents.encoding import TOKENS_PER_BATCH

#: Partners that an encoder is wired with where it has none of its own; they are never built.
PARTNERS = ("identity", "vit-t")


@frozen(kw_only=True)
class EncoderProbe:
    """What probes found about an encoder.

    Attributes:
        encoder: its name, or the folder it is from.
        width: channels of its tokens.
        linear: linear probes by what they tell apart.
        knn: accuracy of the vote of neighbours, 0 to 1; None where there are no classes.
        k: neighbours that voted.
        training, testing: what was learned from and measured on.
        precision: what the encoder was run in.
        warnings: what to keep in mind.
        skipped: images that could not be used, in words.
    """

    encoder: str
    width: int
    linear: Mapping[str, ProbeResult]
    knn: float | None
    k: int
    training: Mapping[str, Any] = field(factory=dict)
    testing: Mapping[str, Any] = field(factory=dict)
    precision: str = ""
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def as_tree(self) -> dict[str, Any]:
        """As JSON values."""
        linear = {
            name: {
                "accuracy": result.accuracy,
                "strength": result.strength,
                "classes": result.num_classes,
                "converged": result.converged,
            }
            for name, result in self.linear.items()
        }
        return {
            "encoder": self.encoder, "width": self.width, "linear": linear, "knn": self.knn,
            "k": self.k, "training": dict(self.training), "testing": dict(self.testing),
            "precision": self.precision, "warnings": list(self.warnings),
            "skipped": list(self.skipped),
        }  # fmt: skip


def probe_encoder(
    encoder: str,
    *,
    training: str | Tree,
    testing: str | Tree,
    runtime: Runtime,
    num_training: int | None = None,
    num_testing: int | None = None,
    k: int = 20,
    rotation: bool = False,
    crop: CropRule = "adm",
    resize: int | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> EncoderProbe:
    """Linear probe and k-NN of the mean of an encoder's tokens.

    Args:
        encoder: a name as in ``rpiae list encoders``, or the folder of a run or tokenizer.
        training, testing: datasets with labels, by name or as tables.
        runtime: device and precision.
        num_training, num_testing: how many images are looked at, drawn at random but always the same;
            all where not given.
        k: neighbours that vote.
        rotation: whether turns of images are probed too.
        crop, resize, image_size: how images become crops; see ``EvaluationConfig``.
        batch_size: images per forward pass.
        progress: is told after every batch.

    Raises:
        UnknownNameError: if it is neither a folder nor a name.
        UsageError: if images have no labels, or both sets are the same.
        FetchError: if the encoder's weights cannot be had.
    """
    if training == testing:
        raise UsageError(f"{testing} is both what is learned from and what is measured on")
    for data in (training, testing):
        part_config("datasets", data)
    subject, resolved, size = _opened(encoder, runtime)
    view = EvaluationConfig(crop=crop, resize=resize, image_size=image_size)
    found: dict[str, dict[str, Tensor]] = {}
    facts: dict[str, dict[str, Any]] = {}
    sets: dict[str, ImageSet] = {}
    walks: dict[str, Walk] = {}
    for what, address, data, count in (
        ("training", "train", training, num_training), ("testing", "test", testing, num_testing)
    ):  # fmt: skip
        images: ImageSet = listed_images(data, resolved, size=size, config=view, address=address)
        sets[what] = images
        if not images.labelled:
            raise UsageError(f"{images.location} has no labels to probe")
        images = with_labels_of(images, sets["training"])
        tokens = math.ceil(images.image_size / resolved.output_patch) ** 2
        walk = walks[what] = Walk(
            images,
            count,
            batch_size=batch_size or max(1, TOKENS_PER_BATCH // tokens),
            runtime=runtime,
        )
        rows = Rows()
        for loaded in walk.batches(what, progress):
            positions = torch.tensor(loaded.positions)
            kept = {"labels": loaded.labels, "features": _features(subject, loaded.images, runtime)}
            if rotation:
                images_turned, turns = turned(loaded.images, positions, seed=0)
                kept |= {"turns": turns, "turned": _features(subject, images_turned, runtime)}
            rows.add(positions, **kept)
        merge([rows], runtime)
        found[what], facts[what] = rows.joined(), walk.protocol()
    shared = check_apart(walks["training"], walks["testing"])
    x, y = found["training"], found["testing"]
    linear = {"classes": linear_probe(x["features"], x["labels"], y["features"], y["labels"])}
    if rotation:
        linear["turns"] = linear_probe(x["turned"], x["turns"], y["turned"], y["turns"])
    votes = min(k, len(x["features"]))
    return EncoderProbe(
        encoder=encoder,
        width=int(x["features"].shape[1]),
        linear=linear,
        knn=knn_accuracy(x["features"], x["labels"], y["features"], y["labels"], k=votes),
        k=votes,
        training=facts["training"],
        testing=facts["testing"],
        precision=runtime.precision,
        warnings=(shared,) if shared else (),
        skipped=(*walks["training"].skipped, *walks["testing"].skipped),
    )


def _opened(encoder: str, runtime: Runtime) -> tuple[RPiAE | Replica, ResolvedTokenizer, int]:
    """The encoder, what it is wired with, and the size of its training crops."""
    try:
        tokenizer_folder(encoder)
    except CheckpointError:
        if Path(encoder).exists():
            raise
    else:
        model = load_tokenizer(encoder).to(runtime.device)
        assert model.config is not None
        facts = model.config.encoder_facts
        return model, model.config, model.trained_size or facts.image_size
    config = part_config("encoders", encoder)
    assert isinstance(config, EncoderConfig)
    bridge, decoder = (
        part_config(f, n) for f, n in zip(("bridges", "decoders"), PARTNERS, strict=True)
    )
    resolved = resolve_tokenizer(config, bridge, decoder)  # type: ignore[arg-type]  # of those families
    module = build_tokenizer(resolved, pretrained=True).roles["encoder"].to(runtime.device)
    replica = PivotReplica(module, output_patch=resolved.output_patch)
    return replica, resolved, resolved.encoder_facts.image_size


@torch.no_grad()
def _features(subject: RPiAE | Replica, images: Tensor, runtime: Runtime) -> Tensor:
    with runtime.autocast():
        return pooled(subject.features(images).tokens)
