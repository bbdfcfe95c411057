"""An evaluation of generated images, from what is asked for to its numbers and all that these depend on."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from rpiae.core.config.parts import MetricConfig
from rpiae.core.errors import UsageError
from rpiae.core.model.resolve import ResolvedTokenizer
from rpiae.core.registry.registry import OWN
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.processes import Runtime
from rpiae.evaluation.configs import GenerationEvaluationConfig
from rpiae.evaluation.evaluating import Evaluation, finite
from rpiae.evaluation.examination import Measured
from rpiae.evaluation.images import ImageSet, ListedImages, listed_images
from rpiae.evaluation.originals import References
from rpiae.evaluation.panel import Panel, built, check_subject, metric_configs, needing
from rpiae.evaluation.samples import SampleSet
from rpiae.evaluation.seen import Seen
from rpiae.evaluation.walk import Progress, Walk, check_apart

#: Images at a time where no batch size is given.
BATCH = 64

#: What a number depends on of the real images behind it.
_OF_IMAGES = ("data", "crop", "count", "images_sha256")


@frozen(kw_only=True)
class Sets:
    """What generated images are measured with.

    Attributes:
        samples: the generated images.
        real: those that they are compared with; None where none are needed.
        training: those that metrics learn from; None where there are none.
    """

    samples: SampleSet
    real: ImageSet | None = None
    training: ImageSet | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of every label of all of them, by its number; empty where unknown."""
        return next((each.label_names for each in self._there if each.label_names), ())

    @property
    def notices(self) -> list[str]:
        """What is to be said of them."""
        return [text for images in self._there for text in images.notices]

    @property
    def _there(self) -> list[ImageSet]:
        several = (self.samples, self.real, self.training)
        return [images for images in several if images is not None]


def evaluate_generation(
    sets: Sets,
    config: GenerationEvaluationConfig,
    *,
    runtime: Runtime,
    progress: Callable[[Progress], None] = lambda _: None,
    reference_out: Path | None = None,
) -> Evaluation:
    """Measure generated images.

    Under a launcher of several processes, each of them calls this for its share of the images; the
    numbers are those of one process up to rounding, and the first process alone has them.

    Args:
        sets: the generated images, and what they are measured with; see ``opened``.
        config: by which these were opened.
        runtime: device and processes.
        progress: is told after every batch.
        reference_out: where the real images' Fréchet statistics are written, if anywhere.

    Returns:
        The outcome; of other processes than the first one, an empty one.

    Raises:
        UsageError: if what is compared with was learned from, or a reference does not fit.
        DataError: if no image can be used.
        RunError: if a sample is not finite.
    """
    started = time.perf_counter()
    configs, samples = metric_configs(config.metrics), sets.samples
    panel = Panel(dict(built(configs)), runtime)
    crop = samples.crop if sets.real is None else sets.real.crop
    references = References(panel, crop, image_size=samples.image_size, out=reference_out)
    walks = _walks(sets, config, panel, runtime)
    _measure(panel, sets, walks, progress)
    protocol, skipped, told = _walked(walks, samples)
    if not runtime.is_main:
        return Evaluation(metrics={}, details={}, protocol={})
    measured = panel.compute()
    protocol["software"] = {name: importlib.metadata.version(name) for name in (OWN, "torch")}
    protocol["metrics"] = _number_protocols(measured, configs, panel, protocol, samples)
    values, warnings = finite(measured, [*sets.notices, *told, *panel.failures()])
    return Evaluation(
        metrics=values,
        details={name: each.details for name, each in measured.items() if each.details},
        protocol=protocol,
        warnings=tuple(warnings),
        skipped=skipped,
        seconds=time.perf_counter() - started,
        unwritten=references.write(measured, protocol.get("real", {})),
    )


def opened(
    samples: SampleSet,
    config: GenerationEvaluationConfig,
    tokenizer: ResolvedTokenizer | None = None,
) -> Sets:
    """Samples with the real images that metrics need.

    Args:
        samples: the generated images.
        config: what they are measured on, and with what.
        tokenizer: the generator's, where there is one.

    Raises:
        UsageError: if a metric is of tokenizers, or images or labels are needed and lacking, or do not
            fit the samples.
        DataError: if there are no such images.
    """
    configs = metric_configs(config.metrics)
    check_subject(configs, generated=True)
    comparing, learning = needing("real", configs), needing("training", configs)
    for lacking, given, option, what in (
        (comparing, config.data, "--data", "real images"),
        (learning, config.training, "--train", "the images that were trained on"),
    ):
        if lacking and not given:
            raise UsageError(
                f"{', '.join(lacking)} cannot be measured without {what}: name them with {option}, such "
                f"as {option} parquet:PATH"
            )
    if config.training and config.training == config.data:
        raise UsageError(
            f"{config.data} is both what is learned from and what is measured on: name other images "
            "for training"
        )
    real, training = _real_images(samples, config, tokenizer)
    for name in needing("labels", configs):
        for each in (samples, real, training):
            if each is not None and not each.labelled:
                raise UsageError(
                    f"{name} needs labels, and {each.location} has none. Leave it out of the metrics"
                )
    return Sets(samples=samples, real=real if comparing else None, training=training)


def _real_images(
    samples: SampleSet, config: GenerationEvaluationConfig, tokenizer: ResolvedTokenizer | None
) -> tuple[ListedImages | None, ListedImages | None]:
    """The images that are compared with and learned from, as far as they are named, of the samples' size
    and with labels that mean what theirs do."""
    found: list[ListedImages | None] = []
    names = samples.label_names
    for given, address in ((config.data, "data"), (config.training, "train")):
        if not given:
            found.append(None)
            continue
        images = listed_images(
            given, tokenizer, size=samples.image_size, config=config, address=address
        )
        _check_size(images, samples)
        names = _names(images, samples, names)
        found.append(images.with_labels_named(names) if names else images)
    real, training = found
    return real, training


def _check_size(images: ListedImages, samples: SampleSet) -> None:
    """Refuse real images of another size than the samples.

    Raises:
        UsageError: with both sizes.
    """
    if images.frames:
        raise UsageError(
            f"{images.location} holds clips, and samples are images: name images for --data"
        )
    if images.image_size != samples.image_size:
        raise UsageError(
            f"the samples of {samples.location} have {samples.image_size} pixels and the crops of "
            f"{images.location} {images.image_size}: samples are never resized. Leave out --image-size "
            "and the dataset's image_size; --resize says how large the images are before the crop"
        )


def _names(images: ListedImages, samples: SampleSet, asked: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes by the samples' numbers, those that real images alone have behind them.

    Args:
        images: real ones.
        samples: the generated ones.
        asked: names so far, of which the first are the samples'.

    Raises:
        UsageError: if the classes are others.
    """
    there, of_samples = images.label_names, samples.label_names
    if of_samples and there:
        lacking = [name for name in of_samples if name not in there]
        strange = [name for name in there if name not in of_samples and samples.all_classes]
        for names, one, other in (
            (lacking, images.location, samples.location),
            (strange, samples.location, images.location),
        ):
            if names:
                raise UsageError(
                    f"{one} has no class {printable(names[0])!r}, which {other} has: the real images are "
                    f"of {len(there)} classes and the samples of {len(of_samples)}. An empty or missing "
                    "class folder numbers those after it anew; take images of the same classes"
                )
    return (*asked, *(name for name in there if name not in asked))


def _walks(
    sets: Sets, config: GenerationEvaluationConfig, panel: Panel, runtime: Runtime
) -> dict[str, Walk]:
    """Over what is looked at, by what it is."""

    def walk(images: ImageSet, count: int | None) -> Walk:
        return Walk(images, count, batch_size=config.batch_size or BATCH, runtime=runtime)

    walks = {}
    if sets.training is not None and panel.learns:
        walks["training"] = walk(sets.training, config.num_training)
    if sets.real is not None:
        walks["real"] = walk(sets.real, config.num_images)
    walks["samples"] = walk(sets.samples, config.count)
    return walks


def _measure(
    panel: Panel, sets: Sets, walks: Mapping[str, Walk], progress: Callable[[Progress], None]
) -> None:
    """Have metrics see all images, each process its share; what they gathered is merged then."""

    def seen(what: str) -> Iterator[Seen]:
        for loaded in walks[what].batches(what, progress):
            yield Seen(
                loaded.images, labels=loaded.labels,
                positions=torch.tensor(loaded.positions), label_names=sets.label_names,
            )  # fmt: skip

    for what, update, merge in (
        ("training", panel.update_training, panel.merge_training),
        ("real", panel.update_real, panel.merge_real),
        ("samples", panel.update, panel.merge),
    ):
        if what not in walks:
            continue
        for each in seen(what):
            update(each)
        merge()
        walks[what].protocol()  # refuses images of which none can be used


def _walked(
    walks: Mapping[str, Walk], samples: SampleSet
) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """The protocol of all that was walked over, what could not be used, and what is to be said.

    Raises:
        UsageError: if what is compared with was learned from.
    """
    protocol = {what: dict(walk.protocol()) for what, walk in walks.items()}
    protocol["samples"] |= samples.facts
    told = []
    if "training" in walks:
        if "real" in walks and (shared := check_apart(walks["training"], walks["real"])):
            told.append(shared)
        copies = walks["training"].shared_with(walks["samples"])
        if copies:
            told.append(f"{copies} of the samples are training images to the pixel")
    skipped = dict.fromkeys(text for walk in walks.values() for text in walk.skipped)
    return protocol, tuple(skipped), told


def _number_protocols(
    measured: Mapping[str, Measured],
    configs: Mapping[str, MetricConfig],
    panel: Panel,
    whole: Mapping[str, Any],
    samples: SampleSet,
) -> dict[str, dict[str, Any]]:
    """By number: how the samples were made, which images they were compared with and which were learned
    from, and the facts of its metric."""
    made = {"count": whole["samples"]["count"], **samples.facts}
    if "guide" in made:  # which run it is belongs to the generator, as its weights do
        made["guide"] = "a weaker generator" if made["guide"] else "no class"
        made.pop("guide_sha256", None)
    protocols: dict[str, dict[str, Any]] = {}
    for metric, each in measured.items():
        facts: dict[str, Any] = {"samples": made}
        used = {"real": "real" in configs[metric].needed, "training": metric in panel.learns}
        for what in (what for what, is_used in used.items() if is_used and what in whole):
            facts[what] = {name: whole[what][name] for name in _OF_IMAGES}
        protocols |= {name: facts | dict(each.facts) for name in each.values}
    return protocols
