"""Evaluations of generators, and of samples in files and folders: measured, kept beside them, pictured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray
from PIL import Image

from rpiae.core.config.identity import address, identity
from rpiae.core.config.parts import DatasetConfig
from rpiae.core.config.tree import read_toml, unparse
from rpiae.core.errors import CheckpointError, DataError, RunError
from rpiae.core.model.places import is_borrowed
from rpiae.core.model.resolve import ResolvedTokenizer, part_config
from rpiae.core.model.saved import CONFIG_FILE, GENERATOR, TOKENIZER, kind_of
from rpiae.core.runtime.files import file_digest, read_json
from rpiae.core.runtime.names import printable
from rpiae.core.runtime.processes import Runtime
from rpiae.data.fingerprint import data_fingerprint
from rpiae.data.sources import EXTENSIONS
from rpiae.evaluation.configs import GenerationEvaluationConfig, NearestConfig
from rpiae.evaluation.evaluating import Evaluation
from rpiae.evaluation.generation import Sets, evaluate_generation, opened
from rpiae.evaluation.images import ImageSet
from rpiae.evaluation.panel import fetch_weights, metric_configs
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.records import FORMAT, add_evaluation
from rpiae.evaluation.samples import GeneratedSamples, SampleFile, SampleFolder, SampleSet
from rpiae.evaluation.saved import PICTURES_FOLDER
from rpiae.evaluation.subjects import results_folder
from rpiae.evaluation.walk import Progress
from rpiae.latents.encoding import tokenizer_digest
from rpiae.sampling.loaded import load_generator
from rpiae.sampling.outputs import sheet, to_bytes
from rpiae.sampling.plan import generator_digest

#: Samples in a sheet, and classes up to which each has a column of it.
SHOWN, COLUMNS, MOST_COLUMNS = 64, 8, 16


@frozen(kw_only=True)
class GenerationSubject:
    """Generated images to be measured.

    Attributes:
        samples: the images.
        place: the generator's folder or its run's, the file, or the folder of samples.
        fingerprints: sha256 of what they depend on, by what it is.
        tokenizer: the generator's; None for samples that were made elsewhere.
    """

    samples: SampleSet
    place: Path
    fingerprints: Mapping[str, str] = field(factory=dict)
    tokenizer: ResolvedTokenizer | None = None


def is_generation(place: Path) -> bool:
    """Whether a name is that of a generator, its run, a file or a folder of samples.

    Raises:
        CheckpointError: if it is a model's folder and its ``config.json`` cannot be read.
    """
    if _is_file(place):
        return True
    if (place / CONFIG_FILE).is_file():
        return kind_of(_model_config(place / CONFIG_FILE)) == GENERATOR
    if (place / GENERATOR).is_dir():
        return True
    if (place / TOKENIZER).is_dir():
        return False
    if _is_run(place):
        return GENERATOR in read_toml(place / "config.toml")
    return place.is_dir() and _holds_images(place)


def evaluate_generated(
    place: Path,
    config: GenerationEvaluationConfig,
    *,
    runtime: Runtime,
    progress: Callable[[Progress], None] = lambda _: None,
    reference_out: Path | None = None,
) -> Evaluation:
    """Measure a generator's samples, or those in a file or folder; add it to ``evaluation.json`` and
    write pictures: a generator's in its run's folder, others in a folder beside them.

    Args:
        place: a generator's folder or its run's, an ``.npz`` file, a folder of images.
        config: how samples are made, what they are measured on, and with what.
        runtime: device, precision and processes.
        progress: is told after every batch.
        reference_out: where the real images' Fréchet statistics are written, if anywhere.

    Returns:
        The outcome; what could not be stored is under ``unwritten``, with the reason.

    Raises:
        FetchError: with all that metrics load and that cannot be had; see ``evaluate_generation`` for
            others.
    """
    runtime.on_main(lambda: fetch_weights(config.metrics))
    subject = open_generated(place, config, runtime)
    sets = opened(subject.samples, config, subject.tokenizer)
    found = evaluate_generation(
        sets, config, runtime=runtime, progress=progress, reference_out=reference_out
    )
    if not runtime.is_main:
        return found
    if is_borrowed(place):
        return evolve(found, notices=("its numbers are not stored",))
    try:
        notices = _store(subject, sets, config, found)
    except (RunError, DataError) as error:
        return evolve(found, unwritten=(*found.unwritten, str(error)))
    return evolve(found, notices=tuple(notices))


def open_generated(
    place: Path, config: GenerationEvaluationConfig, runtime: Runtime
) -> GenerationSubject:
    """Generated images by the name of what makes or holds them.

    Raises:
        CheckpointError: if a generator or its tokenizer is missing or damaged.
        DataError: if samples cannot be read.
        UsageError: if they are none, or the tokenizer or the guide is of other latents.
    """
    if not holds_samples(place):
        return _of_generator(place, config, runtime)
    if _is_file(place):
        samples = SampleFile(place)
        return GenerationSubject(
            samples=samples, place=place, fingerprints={"samples_sha256": file_digest(place)}
        )
    folder = part_config("datasets", {"name": "folder", "path": str(place)})
    assert isinstance(folder, DatasetConfig)
    digest = data_fingerprint(folder)
    return GenerationSubject(
        samples=SampleFolder(place), place=place, fingerprints={"samples_sha256": digest}
    )


def holds_samples(place: Path) -> bool:
    """Whether generated images lie there, and are not made by a generator."""
    return _is_file(place) or not (
        (place / CONFIG_FILE).is_file() or (place / GENERATOR).is_dir() or _is_run(place)
    )


def generated_results(place: Path) -> Path:
    """Where the results about a generator go: its run's folder, else its own; those about samples: a
    folder beside them."""
    if not holds_samples(place):
        return results_folder(place)
    return place.with_name(f"{place.stem if _is_file(place) else place.name}-evaluation")


def _of_generator(
    place: Path, config: GenerationEvaluationConfig, runtime: Runtime
) -> GenerationSubject:
    device = "cpu" if runtime.device.type == "cpu" else runtime.device  # of several, cpu:0
    generator = load_generator(
        place, tokenizer=config.tokenizer or None, guide=config.sampling.guide or None,
        device=device, precision="bf16" if runtime.precision == "bf16" else "fp32",
    )  # fmt: skip
    fingerprints = {
        "generator_sha256": generator_digest(generator.model),
        "tokenizer_sha256": tokenizer_digest(generator.tokenizer),
    }
    samples = GeneratedSamples(generator, config, location=printable(str(place)))
    return GenerationSubject(
        samples=samples, place=place, fingerprints=fingerprints,
        tokenizer=generator.tokenizer.config,
    )  # fmt: skip


def _is_file(place: Path) -> bool:
    return place.suffix == ".npz" and not place.is_dir()


def _is_run(place: Path) -> bool:
    return (place / "config.toml").is_file()


def _model_config(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def _holds_images(place: Path) -> bool:
    return any(
        name.lower().endswith(EXTENSIONS) for _, _, names in os.walk(place) for name in names
    )


def _store(
    subject: GenerationSubject,
    sets: Sets,
    config: GenerationEvaluationConfig,
    found: Evaluation,
) -> list[str]:
    """Add an evaluation to those of its generator or samples, and write pictures."""
    out = generated_results(subject.place)
    record = {
        "address": generation_address(subject, config),
        "samples": str(subject.place),
        **subject.fingerprints,
        "config": unparse(config),
        **found.as_tree(),
    }
    pictures = out / PICTURES_FOLDER
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {pictures}: {error.strerror}") from None
    notices = add_evaluation(out / EVALUATION_FILE, record)
    _write_pictures(pictures, sets, config, found)
    return notices


def generation_address(subject: GenerationSubject, config: GenerationEvaluationConfig) -> str:
    """sha256 of generated images, or of what they depend on, and of all that they are measured with."""
    metrics = tuple(part_config("metrics", each) for each in config.metrics)
    sampling = evolve(config.sampling, guide="")
    blank = evolve(config, metrics=metrics, data="", training="", tokenizer="", sampling=sampling)
    tree = identity(blank)
    for name in ("data", "training"):
        given = getattr(config, name)
        data = part_config("datasets", given) if given else None
        tree[name] = data_fingerprint(data) if isinstance(data, DatasetConfig) else ""
    tree["made"] = {k: v for k, v in subject.samples.facts.items() if k != "guide"}
    return address({"format": FORMAT, "config": tree, "files": dict(subject.fingerprints)})


def _write_pictures(
    folder: Path, sets: Sets, config: GenerationEvaluationConfig, found: Evaluation
) -> None:
    """A sheet of the first samples and, where copies were looked for, one of the samples nearest to
    training images."""
    sheets = {"samples.png": _sample_sheet(sets.samples)}
    for name, metric in metric_configs(config.metrics).items():
        rows = found.details.get(name, {}).get("samples")
        if isinstance(metric, NearestConfig) and rows and sets.training is not None:
            sheets.setdefault("nearest.png", _nearest_sheet(sets.samples, sets.training, rows))
    for name, picture in sheets.items():
        try:
            picture.save(folder / name)
        except OSError as error:
            raise RunError(f"cannot write {folder / name}: {error.strerror}") from None


def _sample_sheet(samples: SampleSet) -> Image.Image:
    """Samples row by row; where they are of few classes that take turns, a column is of one class."""
    classes = len(samples.label_names)
    columns = classes if 1 < classes <= MOST_COLUMNS else COLUMNS
    count = min(len(samples), max(1, SHOWN // columns) * columns)
    return sheet([_pixels(samples, range(count))], columns)


def _nearest_sheet(
    samples: SampleSet, training: ImageSet, rows: Sequence[Mapping[str, Any]]
) -> Image.Image:
    """A row per sample: the sample, and its nearest training images from the nearest one on."""
    made = _pixels(samples, [row["sample"] for row in rows])
    wanted = sorted({position for row in rows for position in row["training"]})
    beside = dict(zip(wanted, _pixels(training, wanted), strict=True))
    columns = zip(*(row["training"] for row in rows), strict=True)
    nearest = [np.stack([beside[position] for position in column]) for column in columns]
    return sheet([made, *nearest], 1)


def _pixels(images: ImageSet, positions: Sequence[int]) -> NDArray[np.uint8]:
    """Images of a set by their positions, (n, h, w, 3)."""
    batches = [positions[start : start + SHOWN] for start in range(0, len(positions), SHOWN)]
    return np.concatenate([to_bytes(found.images).numpy() for found in images.load(batches)])
