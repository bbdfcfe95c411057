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
from attrs import evolve, frozen

from rpiae.core.config.parts import MetricConfig
from rpiae.core.config.tree import Tree, unparse
from rpiae.core.errors import CheckpointError, DataError, FetchError, RunError, UsageError
from rpiae.core.model.contracts import HeldOut
from rpiae.core.model.resolve import ResolvedTokenizer, part_config
from rpiae.core.registry.registry import OWN
from rpiae.core.runtime.processes import Runtime
from rpiae.data.orders import sampled
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.distances import ReconstructionDistance
from rpiae.evaluation.examination import Examination, Measured, Metric
from rpiae.evaluation.images import (
    GivenImages,
    ImageSet,
    Loaded,
    Progress,
    Walk,
    check_apart,
    listed_images,
    with_labels_of,
)
from rpiae.evaluation.panel import Panel
from rpiae.evaluation.pictures import similarity_sheet, strip
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.records import add_evaluation, printable_tree
from rpiae.evaluation.references import RECONSTRUCTION, write_reference
from rpiae.evaluation.subjects import (
    Subject,
    evaluation_address,
    open_subject,
    results_folder,
)
from rpiae.evaluation.trained_run import TrainedRun
from rpiae.latents.encoding import batch_size_for, tokenizer_digest

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
        UsageError: if a metric lacks what it needs, or images cannot be compared with a reference.
        DataError: if no image can be used.
        RunError: if the tokenizer's output is not finite.
    """
    started = time.perf_counter()
    metrics = dict(_built(config.metrics))
    warnings = [] if subject.replica else _without_pivot(metrics, subject)
    images = _images(subject, config)
    learners = _needed("training", metrics)
    training = _training(subject, config) if learners or config.training else None
    _check_labels(metrics, images, training)
    warnings += [text for each in (images, training) for text in getattr(each, "notices", ())]
    if reference_out is not None:
        _check_reference_out(reference_out, [module for _, module in metrics.values()])
    panel = Panel({name: module for name, (_, module) in metrics.items()}, runtime)
    references = {
        name: module.reference
        for name, module in panel.modules.items()
        if isinstance(module, ReconstructionDistance) and module.reference is not None
    }
    for reference in references.values():
        reference.check_crop(images.crop)
    protocol: dict[str, Any] = {}
    skipped: list[str] = []
    learned = None
    if training is not None and learners:
        images = with_labels_of(images, training)
        learned = _walk(subject, training, config.num_training, config, runtime)
        for seen in _examinations(subject, learned, "training", progress, config, runtime):
            panel.update_training(seen)
        panel.merge_training()
        protocol["training"] = learned.protocol()
        skipped += learned.skipped
    walk = _walk(subject, images, config.num_images, config, runtime)
    for seen in _examinations(subject, walk, "images", progress, config, runtime):
        if not seen.features.tokens.isfinite().all():
            raise RunError(f"the encoder of {subject.folder} gives numbers that are not finite")
        panel.update(seen)
    panel.merge()
    whole = walk.protocol()
    skipped += walk.skipped
    if learned is not None and (text := check_apart(learned, walk)):
        warnings.append(text)
    if not runtime.is_main:
        return Evaluation(metrics={}, details={}, protocol={})
    for name, reference in references.items():
        try:
            reference.check_images(
                images_sha256=whole["images_sha256"], count=whole["count"], crop=whole["crop"]
            )
        except UsageError as error:
            if len(panel.modules) == 1:
                raise
            panel.leave_out(name, str(error))
    found = panel.compute()
    measured_in = {"precision": runtime.precision, "round": config.round}
    protocol = {**whole, **measured_in, **protocol, "software": _software()}
    needs = {name: part.needs for name, (part, _) in metrics.items()}
    protocol["metrics"] = _metric_protocols(found, needs, protocol)
    outcome = _outcome(
        found, protocol, list(dict.fromkeys(skipped)), [*warnings, *panel.failures()],
        time.perf_counter() - started,
    )  # fmt: skip
    if reference_out is None:
        return outcome
    return _with_reference(outcome, reference_out, panel.modules, found)


def evaluate_saved(
    folder: Path,
    config: EvaluationConfig,
    *,
    runtime: Runtime | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    reference_out: Path | None = None,
) -> Evaluation:
    """Measure a run's tokenizer; add it to ``evaluation.json`` and write pictures in its folder.

    Args:
        folder: a run's or tokenizer's folder.
        config: what it is measured on, and with what.
        runtime: device, precision and processes; as the config says where not given.
        progress: is told after every batch.
        reference_out: where the originals' Fréchet statistics are written, if anywhere.

    Returns:
        The outcome; what could not be stored is under ``unwritten``, with the reason.

    Raises:
        FetchError: with all that metrics load and that cannot be had; see ``evaluate`` for others.
    """
    runtime = runtime or Runtime(device="auto", precision=config.precision)
    runtime.on_main(lambda: fetch_weights(config))
    subject = open_subject(folder, runtime.device)
    found = evaluate(
        subject, config, runtime=runtime, progress=progress, reference_out=reference_out
    )
    if not runtime.is_main:
        return found
    try:
        notices = _store(subject, config, found, runtime)
    except (RunError, DataError) as error:
        return evolve(found, unwritten=(*found.unwritten, str(error)))
    return evolve(found, notices=tuple(notices))


def metric_configs(config: EvaluationConfig) -> list[MetricConfig]:
    """The metrics of an evaluation.

    Raises:
        UsageError: if one is unknown or malformed.
    """
    found = [part_config("metrics", each) for each in config.metrics]
    return [part for part in found if isinstance(part, MetricConfig)]


def fetch_weights(config: EvaluationConfig) -> None:
    """Have all that the metrics load at hand before anything is measured.

    Raises:
        UsageError: if a metric is unknown.
        FetchError: with all that cannot be had.
        CheckpointError: if it is one named file that is not there.
    """
    problems: dict[str, RunError] = {}
    for part in metric_configs(config):
        try:
            part.fetch()
        except RunError as error:
            problems.setdefault(str(error), error)
    if len(problems) == 1:
        raise next(iter(problems.values()))
    if problems:
        raise FetchError(f"metrics lack {len(problems)} files: {' · '.join(problems)}")


def _store(
    subject: Subject, config: EvaluationConfig, found: Evaluation, runtime: Runtime
) -> list[str]:
    """Add an evaluation to those of its tokenizer, and write pictures."""
    out = results_folder(subject.folder)
    record = {
        "address": evaluation_address(subject.folder, config),
        "tokenizer": str(subject.folder),
        "tokenizer_sha256": tokenizer_digest(subject.model),
        "config": unparse(config),
        **found.as_tree(),
    }
    notices = add_evaluation(out / EVALUATION_FILE, record)
    _write_pictures(out / PICTURES_FOLDER, subject, config, runtime)
    return notices


def check_evaluation(config: EvaluationConfig, tokenizer: ResolvedTokenizer) -> None:
    """Whether tokenizers can be measured so, before any is trained.

    Raises:
        UsageError: if a metric or dataset is unknown, or lacks what it needs.
        FetchError: if what a metric loads cannot be had.
        DataError: if there are no such images.
    """
    fetch_weights(config)
    metrics = dict(_built(config.metrics))
    size = config.image_size or tokenizer.encoder_facts.image_size
    sets = [
        listed_images(data, tokenizer, size=size, config=config, address=address) if data else None
        for address, data in (("data", config.data), ("train", config.training))
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
    config: EvaluationConfig,
    runtime: Runtime,
) -> Iterator[Examination]:
    for loaded in walk.batches(what, progress):
        yield _examined(subject, loaded, config, runtime)


def _examined(
    subject: Subject, loaded: Loaded, config: EvaluationConfig, runtime: Runtime
) -> Examination:
    return Examination(
        subject.model, loaded.images, labels=loaded.labels,
        positions=torch.tensor(loaded.positions), replica=subject.replica,
        autocast=runtime.autocast, rounding=config.round,
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


def _images(subject: Subject, config: EvaluationConfig) -> ImageSet:
    if config.data:
        return _listed(subject, config, config.data, address="data")
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
        return _listed(subject, config, config.training, address="train")
    run = _run(subject, "training")
    assert run.data is not None
    if config.data:
        raise UsageError(
            "probes and neighbours need training images: name them, apart from those that are "
            "measured on (--train)"
        )
    crops = run.data.build().crops(config.num_training or TRAINING_CROPS, seed=0)
    return GivenImages(crops, location=f"{run.data.label}, training crops", crop="random crops")


def _run(subject: Subject, option: str) -> TrainedRun:
    if subject.run is None or subject.run.data is None:
        raise UsageError(
            f"{subject.folder} is no run that knows its data: name images with --{option}"
        )
    return subject.run


def _listed(
    subject: Subject, config: EvaluationConfig, data: str | Tree, *, address: str
) -> ImageSet:
    model = subject.model
    assert model.config is not None
    size = config.image_size or model.trained_size or model.config.encoder_facts.image_size
    return listed_images(data, model.config, size=size, config=config, address=address)


def _metric_protocols(
    found: Mapping[str, Measured], needs: Mapping[str, frozenset[str]], whole: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """By number: the facts of its metric, and where these make it a distance between sets of images,
    which images, and which were learned from."""
    images = ("data", "crop", "count", "images_sha256")
    conditions = (*images, "precision", "round")
    protocols: dict[str, dict[str, Any]] = {}
    for metric, each in found.items():
        facts = dict(each.facts)
        if "extractor" in facts:
            facts |= {name: whole[name] for name in conditions}
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


def _with_reference(
    outcome: Evaluation, path: Path, modules: Mapping[str, Metric], found: Mapping[str, Measured]
) -> Evaluation:
    """Write the originals' statistics; the outcome says where that failed."""
    ((name, module),) = (
        (n, m) for n, m in modules.items() if isinstance(m, ReconstructionDistance)
    )
    if name not in found:
        return evolve(outcome, unwritten=(f"{path} was not written: {name} was not measured",))
    protocol = {
        "purpose": RECONSTRUCTION,
        "extractor": found[name].facts["extractor"],
        **{k: printable_tree(outcome.protocol[k]) for k in ("images_sha256", "crop", "location")},
    }
    try:
        write_reference(path, module.originals, protocol)
    except CheckpointError as error:
        return evolve(outcome, unwritten=(str(error),))
    return outcome


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
                warnings.append(f"{name} was not measured: it is not finite")
            else:
                # Two metrics can give a number of one name, such as one space from two files.
                values[name if name not in values else f"{name} ({metric})"] = value
    warnings += [text for each in found.values() for text in each.warnings]
    if not values:
        raise RunError(f"nothing was measured: {' · '.join(warnings)}")
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
    seen = _examined(subject, loaded, config, runtime)
    try:
        folder.mkdir(exist_ok=True)
        strip(seen.images).save(folder / "originals.png")
        strip(seen.reconstruction).save(folder / "held-out.png")
        pivot = seen.pivot_features if subject.replica is not None else None
        similarity_sheet(seen.images[:MAPPED], seen.features, pivot).save(folder / "similarity.png")
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from None
