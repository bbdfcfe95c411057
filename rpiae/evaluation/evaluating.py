"""An evaluation, from a saved tokenizer to its numbers and all that these depend on."""

from __future__ import annotations

import importlib.metadata
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from rpiae.core.config import MetricConfig, unparse
from rpiae.core.contracts import HeldOut
from rpiae.core.errors import RunError, UsageError
from rpiae.core.files import write_text
from rpiae.core.recipe import RunConfig
from rpiae.core.registry import OWN
from rpiae.core.resolve import ResolvedTokenizer, part_config
from rpiae.core.runtime import Runtime
from rpiae.data.listed import every_image
from rpiae.data.orders import sampled
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.distances import ReconstructionDistance
from rpiae.evaluation.examination import Examination, Measured, Metric, TrainedMetric
from rpiae.evaluation.images import (
    GivenImages,
    ImageSet,
    ListedImages,
    Loaded,
    Progress,
    Walk,
    check_apart,
    merge,
    with_labels_of,
)
from rpiae.evaluation.pictures import similarity_sheet, strip
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.references import RECONSTRUCTION, write_reference
from rpiae.evaluation.subjects import (
    FORMAT,
    Subject,
    evaluation_address,
    open_subject,
    results_folder,
)
from rpiae.latents.encoding import batch_size_for

PICTURES_FOLDER = "pictures"

#: Training crops where the run's own held-out images are measured on and nothing else was said.
TRAINING_CROPS = 2000

#: Images in a strip, and in the sheet of similarity maps.
SHOWN = 12
MAPPED = 4


@frozen(kw_only=True)
class Evaluation:
    """The outcome.

    Attributes:
        metrics: numbers by name.
        details: further values by metric.
        protocol: what the numbers depend on besides the tokenizer.
        warnings: what to keep in mind.
        skipped: images that could not be used, in words.
        seconds: it took.
    """

    metrics: Mapping[str, float]
    details: Mapping[str, Any]
    protocol: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

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
        UsageError: if a metric lacks what it needs, or images cannot be compared with a reference.
        DataError: if no image can be used.
        RunError: if the tokenizer's output is not finite.
    """
    started = time.perf_counter()
    metrics = dict(_built(config.metrics))
    warnings = [] if subject.replica else _without_pivot(metrics, subject)
    images = _images(subject, config)
    training = _training(subject, config) if _needed("training", metrics) else None
    _check_labels(metrics, images, training)
    warnings += [text for each in (images, training) for text in getattr(each, "notices", ())]
    if reference_out is not None:
        _check_reference_out(reference_out, [module for _, module in metrics.values()])
    modules = {name: module for name, (_, module) in metrics.items()}
    protocol: dict[str, Any] = {}
    skipped: list[str] = []
    learned = None
    if training is not None:
        images = with_labels_of(images, training)
        trained = [m for m in modules.values() if isinstance(m, TrainedMetric)]
        learned = _walk(subject, training, config.num_training, config, runtime)
        for seen in _examinations(subject, learned, "training", progress, runtime):
            for metric in trained:
                metric.update_training(seen)
        for metric in trained:
            merge(metric.training_accumulators(), runtime)
        protocol["training"] = learned.protocol()
        skipped += learned.skipped
    walk = _walk(subject, images, config.num_images, config, runtime)
    for seen in _examinations(subject, walk, "images", progress, runtime):
        if not seen.features.tokens.isfinite().all():
            raise RunError(f"the encoder of {subject.folder} gives numbers that are not finite")
        for module in modules.values():
            module.update(seen)
    for module in modules.values():
        merge(module.accumulators(), runtime)
    whole = walk.protocol()
    skipped += walk.skipped
    if learned is not None and (text := check_apart(learned, walk)):
        warnings.append(text)
    if not runtime.is_main:
        return Evaluation(metrics={}, details={}, protocol={})
    for module in modules.values():
        if isinstance(module, ReconstructionDistance) and module.reference is not None:
            module.reference.check_images(
                images_sha256=whole["images_sha256"], count=whole["count"], crop=whole["crop"]
            )
    found, failed = _computed(modules)
    protocol = {**whole, "precision": config.precision, **protocol, "software": _software()}
    needs = {name: part.needs for name, (part, _) in metrics.items()}
    protocol["metrics"] = _metric_protocols(found, needs, protocol)
    if reference_out is not None:
        _write_reference(reference_out, modules, found, whole)
    return _outcome(found, protocol, skipped, [*warnings, *failed], time.perf_counter() - started)


def evaluate_saved(
    folder: Path,
    config: EvaluationConfig,
    *,
    runtime: Runtime | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    reference_out: Path | None = None,
) -> Evaluation:
    """Measure a run's tokenizer and write ``evaluation.json`` and pictures into its folder.

    Args:
        folder: a run's or tokenizer's folder.
        config: what it is measured on, and with what.
        runtime: device, precision and processes; as the config says where not given.
        progress: is told after every batch.
        reference_out: where the originals' Fréchet statistics are written, if anywhere.

    Raises:
        RunError: if the files cannot be written; see ``evaluate`` for others.
    """
    runtime = runtime or Runtime(device="auto", precision=config.precision)
    subject = open_subject(folder, runtime.device)
    found = evaluate(
        subject, config, runtime=runtime, progress=progress, reference_out=reference_out
    )
    if runtime.is_main:
        out = results_folder(folder)
        tree = {
            "format": FORMAT,
            "address": evaluation_address(folder, config),
            "config": unparse(config),
            "tokenizer": str(folder),
            **found.as_tree(),
        }
        write_text(out / EVALUATION_FILE, json.dumps(tree, indent=1, allow_nan=False))
        _write_pictures(out / PICTURES_FOLDER, subject, config, runtime)
    return found


def check_evaluation(config: EvaluationConfig, tokenizer: ResolvedTokenizer) -> None:
    """Whether tokenizers can be measured so, before any is trained.

    Raises:
        UsageError: if a metric or dataset is unknown, or lacks what it needs.
        FetchError: if what a metric loads cannot be had.
        DataError: if there are no such images.
    """
    metrics = dict(_built(config.metrics))
    for part, _ in metrics.values():
        part.fetch()
    size = config.image_size or tokenizer.encoder_facts.image_size
    sets = [
        ListedImages(*every_image(data, tokenizer, image_size=size)) if data else None
        for data in (config.data, config.training)
    ]
    for name in _needed("labels", metrics):
        for images, option in zip(sets, ("data", "training"), strict=True):
            if images is None or not images.labelled:
                where = images.location if images else f"evaluation.{option}, which is not given,"
                raise UsageError(f"{name} needs labels, and {where} has none")
    if _needed("training", metrics) and config.data and not config.training:
        names = ", ".join(_needed("training", metrics))
        raise UsageError(f"{names} need images to learn from: set evaluation.training")


def _walk(
    subject: Subject,
    images: ImageSet,
    count: int | None,
    config: EvaluationConfig,
    runtime: Runtime,
) -> Walk:
    size = config.batch_size or batch_size_for(subject.model, images.image_size)
    return Walk(images, count, batch_size=size, runtime=runtime)


def _examinations(
    subject: Subject,
    walk: Walk,
    what: str,
    progress: Callable[[Progress], None],
    runtime: Runtime,
) -> Iterator[Examination]:
    for loaded in walk.batches(what, progress):
        yield _examined(subject, loaded, runtime)


def _examined(subject: Subject, loaded: Loaded, runtime: Runtime) -> Examination:
    return Examination(
        subject.model, loaded.images, labels=loaded.labels,
        positions=torch.tensor(loaded.positions), replica=subject.replica,
        autocast=runtime.autocast,
    )  # fmt: skip


def _built(given: Sequence[Any]) -> Iterator[tuple[str, tuple[MetricConfig, Metric]]]:
    """Metrics by what they were called."""
    met: set[str] = set()
    for each in given:
        config = part_config("metrics", each)
        assert isinstance(config, MetricConfig)
        name = each if isinstance(each, str) else json.dumps(each, sort_keys=True)
        if name in met:
            raise UsageError(f"metric {name!r} is named twice")
        met.add(name)
        module = config.build()
        assert isinstance(module, Metric)
        yield name, (config, module)


def _needed(what: str, metrics: Mapping[str, tuple[MetricConfig, Metric]]) -> list[str]:
    return [name for name, (config, _) in metrics.items() if what in config.needs]


def _without_pivot(metrics: dict[str, tuple[MetricConfig, Metric]], subject: Subject) -> list[str]:
    """Leave out the metrics that need a pivot; what is to be said of it.

    Raises:
        UsageError: if none is left.
    """
    reason = f"there is no pivot, {subject.without_pivot}"
    left_out = _needed("pivot", metrics)
    for name in left_out:
        del metrics[name]
    if left_out and not metrics:
        raise UsageError(f"{', '.join(left_out)} cannot be measured: {reason}")
    return [f"{name} is left out: {reason}" for name in left_out]


def _check_labels(
    metrics: Mapping[str, tuple[MetricConfig, Metric]], images: ImageSet, training: ImageSet | None
) -> None:
    problems = [
        f"{name} needs labels, and {which.location} has none"
        for name in _needed("labels", metrics)
        for which in (images, training)
        if which is not None and not which.labelled
    ]
    if problems:
        raise UsageError(f"{' · '.join(problems)}. Leave it out of the metrics")


def _computed(modules: Mapping[str, Metric]) -> tuple[dict[str, Measured], list[str]]:
    """What metrics found; one that cannot be computed costs nothing but itself."""
    found, failed = {}, []
    for name, module in modules.items():
        try:
            found[name] = module.compute()
        except UsageError as error:
            failed.append(f"{name} was not measured: {error}")
    if not found:
        raise RunError(" · ".join(failed))
    return found, failed


def _images(subject: Subject, config: EvaluationConfig) -> ImageSet:
    if config.data:
        return _listed(subject, config, config.data)
    run = _run(subject, "data")
    held_out: HeldOut = run.data.build().held_out()  # type: ignore[union-attr]  # checked above
    names = f"{run.data.label}, held out"  # type: ignore[union-attr]  # the same
    return GivenImages(held_out.images, location=names, crop="as held out by the run")


def _training(subject: Subject, config: EvaluationConfig) -> ImageSet:
    if config.training:
        if config.training == config.data:
            raise UsageError(
                f"{config.data} is both what is learned from and what is measured on: name other "
                "images for training"
            )
        return _listed(subject, config, config.training)
    run = _run(subject, "training")
    assert run.data is not None
    if config.data:
        raise UsageError(
            "probes and neighbours need training images: name them, apart from those that are "
            "measured on (--train)"
        )
    crops = run.data.build().crops(config.num_training or TRAINING_CROPS, seed=0)
    return GivenImages(crops, location=f"{run.data.label}, training crops", crop="random crops")


def _run(subject: Subject, option: str) -> RunConfig:
    if subject.run is None or subject.run.data is None:
        raise UsageError(
            f"{subject.folder} is no run that knows its data: name images with --{option}"
        )
    return subject.run


def _listed(subject: Subject, config: EvaluationConfig, data: str) -> ImageSet:
    model = subject.model
    assert model.config is not None
    size = config.image_size or model.trained_size or model.config.encoder_facts.image_size
    images, fields = every_image(
        data, model.config, image_size=size,
        overrides=[f"data.image_size={config.image_size}"] if config.image_size else [],
    )  # fmt: skip
    return ListedImages(images, fields)


def _metric_protocols(
    found: Mapping[str, Measured], needs: Mapping[str, frozenset[str]], whole: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """By number: the facts of its metric, and where these make it a distance between sets of images,
    which images, and which were learned from."""
    images = ("data", "crop", "count", "images_sha256")
    protocols: dict[str, dict[str, Any]] = {}
    for metric, each in found.items():
        facts = dict(each.facts)
        if "extractor" in facts:
            facts |= {name: whole[name] for name in (*images, "precision")}
            if "training" in needs[metric]:
                facts["training"] = {name: whole["training"][name] for name in images}
        if facts:
            protocols |= dict.fromkeys(each.values, facts)
    return protocols


def _check_reference_out(path: Path, modules: Sequence[Metric]) -> None:
    """Whether statistics can be written in the end."""
    distances = [module for module in modules if isinstance(module, ReconstructionDistance)]
    if len(distances) != 1:
        raise UsageError(
            f"--write-reference writes one space's statistics; the metrics name {len(distances)}"
        )
    if distances[0].reference is not None:
        raise UsageError("--write-reference would write what --reference gives: leave out one")
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise UsageError(f"--write-reference {path}: name a .safetensors file in a folder there is")


def _write_reference(
    path: Path,
    modules: Mapping[str, Metric],
    found: Mapping[str, Measured],
    whole: Mapping[str, Any],
) -> None:
    ((name, module),) = (
        (n, m) for n, m in modules.items() if isinstance(m, ReconstructionDistance)
    )
    write_reference(
        path, module.originals,
        {
            "purpose": RECONSTRUCTION,
            "extractor": found[name].facts["extractor"],
            **{k: whole[k] for k in ("images_sha256", "crop", "location")},
        },
    )  # fmt: skip


def _outcome(
    found: Mapping[str, Measured],
    protocol: Mapping[str, Any],
    skipped: list[str],
    warnings: list[str],
    seconds: float,
) -> Evaluation:
    values: dict[str, float] = {}
    for metric, each in found.items():
        for name, value in each.values.items():
            if not math.isfinite(value):
                warnings.append(f"{name} is not finite and left out")
            else:
                # Two metrics can give a number of one name, such as one space from two files.
                values[name if name not in values else f"{name} ({metric})"] = value
    warnings += [text for each in found.values() for text in each.warnings]
    return Evaluation(
        metrics=values,
        details={name: each.details for name, each in found.items() if each.details},
        protocol=protocol,
        warnings=tuple(warnings),
        skipped=tuple(skipped),
        seconds=seconds,
    )


def _software() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in (OWN, "torch")}


def _write_pictures(
    folder: Path, subject: Subject, config: EvaluationConfig, runtime: Runtime
) -> None:
    """Originals, reconstructions and similarity maps of the first images."""
    images = _images(subject, config)
    (loaded,) = images.load([sampled(len(images), SHOWN)])
    if not loaded.positions:
        return
    loaded = loaded._replace(images=loaded.images.to(runtime.device))
    seen = _examined(subject, loaded, runtime)
    try:
        folder.mkdir(exist_ok=True)
        strip(seen.images).save(folder / "originals.png")
        strip(seen.reconstruction).save(folder / "held-out.png")
        pivot = seen.pivot_features if subject.replica is not None else None
        similarity_sheet(seen.images[:MAPPED], seen.features, pivot).save(folder / "similarity.png")
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from None
