"""Probes of any encoder, whether a pivot by its name or a fine-tuned one by its run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from attrs import field, frozen

from rpiae.core.config.parts import EncoderConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.build import build_tokenizer
from rpiae.core.model.contracts import Replica
from rpiae.core.model.folders import load_tokenizer, tokenizer_folder
from rpiae.core.model.places import hub_place
from rpiae.core.model.resolve import ResolvedTokenizer, part_config, resolve_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.processes import Runtime
from rpiae.data.listed import CropRule
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.engine import Examiner, measure
from rpiae.evaluation.images import ImageSet, ListedImages, listed_images
from rpiae.evaluation.panel import Panel
from rpiae.evaluation.probing import ProbeResult
from rpiae.evaluation.semantics import ENCODER, ClassProbe, RotationProbe
from rpiae.evaluation.walk import Progress, Walk, check_apart
from rpiae.latents.encoding import TOKENS_PER_BATCH
from rpiae.tasks.tokenizer.replica import PivotReplica

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
        k, rotation: neighbours that vote, and whether turns of images are probed too.
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
    learned_from = _labelled(training, resolved, size=size, config=view, address="train")
    measured_on = _labelled(testing, resolved, size=size, config=view, address="test")
    walk_over = partial(_walk, resolved=resolved, batch_size=batch_size, runtime=runtime)
    learned = walk_over(learned_from, num_training)
    walk = walk_over(measured_on.with_labels_of(learned_from), num_testing)
    classes = ClassProbe(k=k)
    probes: dict[str, ClassProbe | RotationProbe] = {"classes": classes}
    if rotation:
        probes["turns"] = RotationProbe()
    panel = Panel(probes, runtime)
    examiner = Examiner(model=subject, runtime=runtime, use_bridge=False)  # type: ignore[arg-type]  # of features
    measure(panel, examiner, walk, training=learned, progress=progress)
    facts = {"training": learned.protocol(), "testing": walk.protocol()}
    linear = {name: probe.linear()[ENCODER] for name, probe in probes.items()}
    return EncoderProbe(
        encoder=encoder, width=resolved.encoder_facts.width, linear=linear,
        knn=classes.nearest()[ENCODER], k=min(k, facts["training"]["count"]), **facts,
        precision=runtime.precision, warnings=tuple(filter(None, (check_apart(learned, walk),))),
        skipped=(*learned.skipped, *walk.skipped),
    )  # fmt: skip


def _labelled(
    data: str | Tree,
    resolved: ResolvedTokenizer,
    *,
    size: int,
    config: EvaluationConfig,
    address: str,
) -> ListedImages:
    images = listed_images(data, resolved, size=size, config=config, address=address)
    if not images.labelled:
        raise UsageError(f"{images.location} has no labels to probe")
    return images


def _walk(
    images: ImageSet,
    count: int | None,
    *,
    resolved: ResolvedTokenizer,
    batch_size: int | None,
    runtime: Runtime,
) -> Walk:
    tokens = math.ceil(images.image_size / resolved.output_patch) ** 2
    size = batch_size or max(1, TOKENS_PER_BATCH // tokens)
    return Walk(images, count, batch_size=size, runtime=runtime)


def _opened(encoder: str, runtime: Runtime) -> tuple[RPiAE | Replica, ResolvedTokenizer, int]:
    """The encoder, what it is wired with, and the size of its training crops."""
    try:
        place = tokenizer_folder(encoder)
    except CheckpointError:
        if Path(encoder).exists() or hub_place(encoder) is not None:
            raise
    else:
        model = load_tokenizer(place).to(runtime.device)
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
