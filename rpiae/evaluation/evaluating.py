"""An evaluation of a tokenizer, from what is asked for to its numbers and all that these depend on."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from rpiae.core.config.parts import DatasetConfig, MetricConfig
from rpiae.core.errors import RunError, UsageError
from rpiae.core.model.resolve import part_config
from rpiae.core.registry.registry import OWN
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.engine import Examiner, measure
from rpiae.evaluation.examination import Measured
from rpiae.evaluation.images import ImageSet, ListedImages
from rpiae.evaluation.interpolation import Interpolated, every_nth
from rpiae.evaluation.originals import References
from rpiae.evaluation.panel import Panel, built, check_subject, metric_configs, needing, numbers
from rpiae.evaluation.protocol import CONDITIONS
from rpiae.evaluation.subjects import Subject, measured_images, training_images
from rpiae.evaluation.walk import Progress, Walk, check_apart
from rpiae.latents.encoding import batch_size_for


@frozen(kw_only=True)
class Evaluation:
    """The outcome.

    Attributes:
        metrics: numbers by name.
        details: further values by metric.
        protocol: what the numbers depend on besides the tokenizer.
        warnings: what to keep in mind.
        skipped: why images or clips could not be used, each reason once.
        seconds: it took.
        notices: what is to be said of earlier results where these were stored.
        unwritten: what could not be stored, and why.
    """

    metrics: Mapping[str, float]
    details: Mapping[str, Any]
    protocol: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()

    def as_tree(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "metrics": dict(self.metrics),
            "details": dict(self.details),
            "protocol": dict(self.protocol),
            "warnings": list(self.warnings),
            "skipped": list(self.skipped),
            "seconds": self.seconds,
        }


def evaluate(
    subject: Subject,
    config: EvaluationConfig,
    *,
    runtime: Runtime,
    progress: Callable[[Progress], None] = lambda _: None,
    reference_out: Path | None = None,
) -> Evaluation:
    """Measure a tokenizer.

    Under a launcher of several processes, each of them calls this for its share of the images; the
    numbers are those of one process up to rounding, and the first process alone has them.

    Args:
        subject: the tokenizer.
        config: what it is measured on, and with what.
        runtime: device, precision and processes.
        progress: is told after every batch.
        reference_out: where the originals' Fréchet statistics are written, if anywhere.

    Returns:
        The outcome; of other processes than the first one, an empty one.

    Raises:
        UsageError: if a metric lacks what it needs, images cannot be compared with a reference, or
            there are no clips to interpolate.
        DataError: if no image can be used.
        RunError: if the tokenizer's output is not finite.
    """
    started = time.perf_counter()
    configs, images, training, warnings = _opened(subject, config)
    panel = Panel(dict(built(configs)), runtime, of_clips=needing("clips", configs))
    references = References(panel, images.crop, image_size=images.image_size, out=reference_out)
    walk, learned = _walks(subject, config, images, training, runtime)
    examiner = Examiner(
        model=subject.model, runtime=runtime, replica=subject.replica, rounding=config.round,
        frame_rate=images.frame_rate,
    )  # fmt: skip
    measure(panel, examiner, walk, training=learned, progress=progress)
    examiner.faults.check_none(str(subject.folder))
    protocol, skipped, shared = _walked(walk, learned)
    if not runtime.is_main:
        return Evaluation(metrics={}, details={}, protocol={})
    references.check_images(protocol)
    measured = panel.compute()
    protocol |= _conditions(subject, config, runtime)
    protocol["metrics"] = _metric_protocols(measured, configs, protocol, subject.pivot_sha256)
    values, warnings = finite(measured, [*warnings, *shared, *panel.failures()])
    return Evaluation(
        metrics=values,
        details={name: each.details for name, each in measured.items() if each.details},
        protocol=protocol,
        warnings=tuple(warnings),
        skipped=skipped,
        seconds=time.perf_counter() - started,
        unwritten=references.write(measured, protocol),
    )


def _opened(
    subject: Subject, config: EvaluationConfig
) -> tuple[dict[str, MetricConfig], ImageSet, ImageSet | None, list[str]]:
    """The metrics that can be measured, the images, those that are learned from, and what is to be said
    of all of these; see ``_measurable`` and ``_sets``."""
    asked = metric_configs(config.metrics)
    check_subject(asked, generated=False)
    images = measured_images(subject, config)
    configs, left_out = _measurable(asked, subject, images)
    images, training, told = _sets(subject, config, configs, images)
    return configs, images, training, left_out + told


def _measurable(
    configs: Mapping[str, MetricConfig], subject: Subject, images: ImageSet
) -> tuple[dict[str, MetricConfig], list[str]]:
    """The metrics but those that need a pivot or clips where there are none; what is to be said of
    these.

    Raises:
        UsageError: if none is left, or images are to be interpolated.
    """
    if isinstance(subject.model, Interpolated) and not images.frames:
        raise UsageError(
            f"frames can be kept and interpolated of clips, and {images.location} holds images"
        )
    lacking: dict[str, str] = {}
    if not images.frames:
        lacking["clips"] = f"{images.location} holds images, and it is of clips"
    if subject.replica is None:
        lacking["pivot"] = f"there is no pivot, {subject.without_pivot}"
    reasons = {name: reason for what, reason in lacking.items() for name in needing(what, configs)}
    kept = {name: each for name, each in configs.items() if name not in reasons}
    if reasons and not kept:
        by_reason: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            by_reason.setdefault(reason, []).append(name)
        texts = [
            f"{', '.join(of)} cannot be measured: {reason}" for reason, of in by_reason.items()
        ]
        raise UsageError(" · ".join(texts))
    return kept, [f"{name} is left out: {reason}" for name, reason in reasons.items()]


def _sets(
    subject: Subject,
    config: EvaluationConfig,
    configs: Mapping[str, MetricConfig],
    images: ImageSet,
) -> tuple[ImageSet, ImageSet | None, list[str]]:
    """The images that are measured on and, where a metric learns, those that it learns from; what is
    to be said of them.

    Training images that are named are looked at in any case.

    Raises:
        UsageError: if labels are needed and lacking, or there are no such images.
    """
    learners = needing("training", configs)
    training = training_images(subject, config) if learners or config.training else None
    problems = [
        f"{name} needs labels, and {each.location} has none"
        for name in needing("labels", configs)
        for each in (images, training)
        if each is not None and not each.labelled
    ]
    if problems:
        raise UsageError(f"{' · '.join(problems)}. Leave it out of the metrics")
    told = [*images.notices, *(training.notices if training else ()), *_learned(subject, config)]
    if training is None or not learners:
        return images, None, told
    if isinstance(images, ListedImages):
        images = images.with_labels_of(training)
    return images, training, told


def _learned(subject: Subject, config: EvaluationConfig) -> list[str]:
    """A word where the tokenizer has learned from what it is measured on."""
    measured = part_config("datasets", config.data) if config.data else None
    if not isinstance(measured, DatasetConfig) or not measured.clips or subject.run is None:
        return []
    trained = subject.run.data
    text = measured.learned_by(trained) if trained is not None else ""
    return [text] if text else []


def _walks(
    subject: Subject,
    config: EvaluationConfig,
    images: ImageSet,
    training: ImageSet | None,
    runtime: Runtime,
) -> tuple[Walk, Walk | None]:
    def walk(each: ImageSet, count: int | None) -> Walk:
        size = config.batch_size or batch_size_for(
            subject.model, each.image_size, max(1, each.frames)
        )
        return Walk(each, count, batch_size=size, runtime=runtime)

    learned = None if training is None else walk(training, config.num_training)
    return walk(images, config.num_images), learned


def _walked(
    walk: Walk, learned: Walk | None
) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """The protocol of images and training images, what could not be used, and what is to be said.

    Raises:
        UsageError: if what is measured on was learned from.
    """
    protocol = dict(walk.protocol())
    if learned is None:
        return protocol, tuple(walk.skipped), ()
    protocol["training"] = learned.protocol()
    skipped = tuple(dict.fromkeys([*learned.skipped, *walk.skipped]))
    shared = check_apart(learned, walk)
    return protocol, skipped, (shared,) if shared else ()


def _conditions(subject: Subject, config: EvaluationConfig, runtime: Runtime) -> dict[str, Any]:
    """How the tokenizer is run, and by what, for the protocol."""
    found: dict[str, Any] = {"precision": runtime.precision, "round": config.round}
    found["software"] = _software()
    if isinstance(subject.model, Interpolated):
        found["interpolated"] = every_nth(subject.model.every)
    return found


def _metric_protocols(
    measured: Mapping[str, Measured],
    configs: Mapping[str, MetricConfig],
    whole: Mapping[str, Any],
    pivot_sha256: str,
) -> dict[str, dict[str, Any]]:
    """By number: the facts of its metric, and where these make it a distance between sets of images,
    which images, in which pivot, and which were learned from."""
    images = ("data", "crop", "count", "images_sha256")
    conditions = [name for name in ("data", *CONDITIONS) if name in whole]
    protocols: dict[str, dict[str, Any]] = {}
    for metric, each in measured.items():
        facts = dict(each.facts)
        if "extractor" in facts:
            facts |= {name: whole[name] for name in conditions}
            if "pivot" in configs[metric].needs:
                facts["extractor"] = {**facts["extractor"], "weights_sha256": pivot_sha256}
        if "training" in configs[metric].needs:
            facts["training"] = {name: whole["training"][name] for name in images}
        if facts:
            protocols |= dict.fromkeys(each.values, facts)
    return protocols


def finite(
    measured: Mapping[str, Measured], warnings: list[str]
) -> tuple[dict[str, float], list[str]]:
    """The numbers that are finite; the warnings, and what is to be said of the others, and of all.

    Raises:
        RunError: if there are none.
    """
    found = numbers(measured)
    values = {name: value for name, value in found.items() if math.isfinite(value)}
    lost = [f"{name} was not measured: it is not finite" for name in found if name not in values]
    told = [*warnings, *lost, *(text for each in measured.values() for text in each.warnings)]
    if not values:
        raise RunError(f"nothing was measured: {' · '.join(told)}")
    return values, told


def _software() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in (OWN, "torch")}
