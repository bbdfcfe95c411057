"""Evaluations of saved tokenizers: measured, kept beside them, and pictured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import evolve

from rpiae.core.config.tree import unparse
from rpiae.core.errors import DataError, RunError, UsageError
from rpiae.core.model.contracts import Features
from rpiae.core.model.places import is_borrowed
from rpiae.core.model.resolve import ResolvedTokenizer
from rpiae.core.runtime.processes import Runtime
from rpiae.data.orders import sampled
from rpiae.evaluation.clip_sheets import frame_strips, slices
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.engine import Examiner
from rpiae.evaluation.evaluating import Evaluation, evaluate
from rpiae.evaluation.examination import Examination
from rpiae.evaluation.images import listed_images
from rpiae.evaluation.panel import built, check_subject, fetch_weights, metric_configs, needing
from rpiae.evaluation.pictures import similarity_sheet, strip
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.records import add_evaluation
from rpiae.evaluation.subjects import (
    Subject,
    evaluation_address,
    interpolating,
    measured_images,
    open_subject,
    results_folder,
)
from rpiae.evaluation.walk import Progress
from rpiae.latents.encoding import tokenizer_digest

PICTURES_FOLDER = "pictures"

#: Images in a strip, and in the sheet of similarity maps.
SHOWN = 12
MAPPED = 4


def evaluate_saved(
    folder: Path,
    config: EvaluationConfig,
    *,
    runtime: Runtime | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    reference_out: Path | None = None,
    every: int = 1,
) -> Evaluation:
    """Measure a run's tokenizer; add it to ``evaluation.json`` and write pictures in its folder.

    Args:
        folder: a run's or tokenizer's folder.
        config: what it is measured on, and with what.
        runtime: device, precision and processes; as the config says where not given.
        progress: is told after every batch.
        reference_out: where the originals' Fréchet statistics are written, if anywhere.
        every: n, to have every n-th frame of clips go through the tokenizer and those in between
            interpolated; with more than 1 nothing is stored, nor of a tokenizer that is not the user's
            own: from the hub, or the package.

    Returns:
        The outcome; what could not be stored is under ``unwritten``, with the reason.

    Raises:
        FetchError: with all that metrics load and that cannot be had; see ``evaluate`` for others.
    """
    runtime = runtime or Runtime(device="auto", precision=config.precision)
    runtime.on_main(lambda: fetch_weights(config.metrics))
    subject = interpolating(open_subject(folder, runtime.device), every=every)
    found = evaluate(
        subject, config, runtime=runtime, progress=progress, reference_out=reference_out
    )
    if not runtime.is_main:
        return found
    if every > 1 or is_borrowed(folder):
        return evolve(found, notices=("its numbers are not stored",))
    try:
        notices = _store(subject, config, found, runtime)
    except (RunError, DataError) as error:
        return evolve(found, unwritten=(*found.unwritten, str(error)))
    return evolve(found, notices=tuple(notices))


def check_evaluation(config: EvaluationConfig, tokenizer: ResolvedTokenizer) -> None:
    """Refuse an evaluation that tokenizers cannot be measured by, before any is trained.

    Raises:
        UsageError: if a metric or dataset is unknown, or lacks what it needs.
        FetchError: if what a metric loads cannot be had.
        DataError: if there are no such images.
    """
    fetch_weights(config.metrics)
    configs = metric_configs(config.metrics)
    check_subject(configs, generated=False)
    list(built(configs))  # a metric looks at its own settings when it is made
    size = config.image_size or tokenizer.encoder_facts.image_size
    sets = [
        listed_images(data, tokenizer, size=size, config=config, address=address) if data else None
        for address, data in (("data", config.data), ("train", config.training))
    ]
    if sets[0] is not None and not sets[0].frames and needing("clips", configs):
        raise UsageError(
            f"{', '.join(needing('clips', configs))} cannot be measured: {sets[0].location} holds "
            "images, and what is measured is of clips"
        )
    for name in needing("labels", configs):
        for images, option in zip(sets, ("data", "training"), strict=True):
            if images is None or not images.labelled:
                where = images.location if images else f"evaluation.{option}, which is not given,"
                raise UsageError(f"{name} needs labels, and {where} has none")
    learners = needing("training", configs)
    if learners and config.data and not config.training:
        raise UsageError(
            f"{', '.join(learners)} need images to learn from: set evaluation.training"
        )


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


def _write_pictures(
    folder: Path, subject: Subject, config: EvaluationConfig, runtime: Runtime
) -> None:
    """Originals, reconstructions and similarity maps of the first images or clips."""
    images = measured_images(subject, config)
    (loaded,) = images.load([sampled(len(images), MAPPED if images.frames else SHOWN)])
    if not loaded.positions:
        return
    examiner = Examiner(
        model=subject.model, runtime=runtime, replica=subject.replica, rounding=config.round
    )
    seen = examiner(loaded._replace(images=loaded.images.to(runtime.device)))
    frames = seen.frames
    firsts = frames.images[:: max(1, seen.num_frames)][:MAPPED]
    try:
        folder.mkdir(exist_ok=True)
        shown = frame_strips if seen.num_frames else strip
        shown(list(seen.images)).save(folder / "originals.png")
        shown(list(seen.reconstruction)).save(folder / "held-out.png")
        if seen.num_frames:
            sheet = slices(list(seen.images), list(seen.reconstruction))
            sheet.save(folder / "slices.png")
        pivot = _firsts(frames.pivot_features, seen) if subject.replica is not None else None
        sheet = similarity_sheet(firsts, _firsts(frames.features, seen), pivot)
        sheet.save(folder / "similarity.png")
    except OSError as error:
        raise RunError(f"cannot write {folder}: {error.strerror}") from None


def _firsts(features: Features, seen: Examination) -> Features:
    """The tokens of images, or of the first frame of every clip."""
    return Features(features.tokens[:: max(1, seen.num_frames)], features.grid)
