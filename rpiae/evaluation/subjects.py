"""Saved tokenizers to be measured, their images, and what tells one measurement from another."""

from __future__ import annotations

from pathlib import Path

import torch
from attrs import evolve, frozen

from rpiae.core.config.identity import address, identity
from rpiae.core.config.parts import DatasetConfig, PartConfig
from rpiae.core.config.tree import Tree
from rpiae.core.errors import CheckpointError, UsageError
from rpiae.core.model.contracts import HeldOut, Replica
from rpiae.core.model.folders import load_tokenizer, tokenizer_folder
from rpiae.core.model.resolve import part_config
from rpiae.core.model.saved_tensors import weight_files
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import file_digest
from rpiae.core.runtime.names import printable
from rpiae.data.fingerprint import data_fingerprint
from rpiae.data.listed import Listed
from rpiae.data.video.listed import EveryClip
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.images import GivenImages, ImageSet, listed_images
from rpiae.evaluation.interpolation import Interpolated
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.records import FORMAT, read_evaluations
from rpiae.evaluation.trained_run import TrainedRun, read_run
from rpiae.tasks.tokenizer.pivot import FILE as PIVOT_FILE
from rpiae.tasks.tokenizer.pivot import find_pivot, read_pivot
from rpiae.tasks.tokenizer.replica import PivotReplica

#: What is measured where no metrics are named.
IMAGE_METRICS = ("psnr", "ssim", "rfd:tiny", "drift", "latents")
CLIP_METRICS = (
    "psnr", "ssim", "temporal", "flicker", "rfd:tiny", "rfvd:tiny", "drift", "latents",
)  # fmt: skip

#: Training crops where the run's own held-out images are measured on and nothing else was said.
TRAINING_CROPS = 2000


@frozen(kw_only=True)
class Subject:
    """A tokenizer to be measured.

    Attributes:
        model: the tokenizer.
        folder: what was named.
        replica: its pivot; None where it has none.
        run: the run that it is from; None where there is none.
        without_pivot: why it has no pivot.
        pivot_sha256: of its pivot's file; empty where it has none.
    """

    model: RPiAE
    folder: Path
    replica: Replica | None = None
    run: TrainedRun | None = None
    without_pivot: str = ""
    pivot_sha256: str = ""


def open_subject(folder: Path, device: torch.device) -> Subject:
    """A tokenizer by its folder or its run's.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    model = load_tokenizer(folder).to(device)
    pivot = find_pivot(folder)
    if pivot is None or not (pivot.parent / "config.toml").is_file():
        return Subject(model=model, folder=folder, without_pivot="there is no run around it")
    place = pivot.parent
    run = read_run(place)
    if not run.encoder.pretrained and not run.init:
        reason = "its encoder began with random weights"
        return Subject(model=model, folder=folder, run=run, without_pivot=reason)
    replica = PivotReplica.beside(model, read_pivot(place, run.encoder).to(device))
    return Subject(
        model=model, folder=folder, replica=replica, run=run, pivot_sha256=file_digest(pivot)
    )


def interpolating(subject: Subject, *, every: int) -> Subject:
    """A tokenizer that is measured by every n-th frame of clips, those in between interpolated.

    Its encoder sees some frames alone, so it is not compared with the pivot.

    Args:
        subject: the tokenizer.
        every: n; with 1 it is the same.
    """
    if every == 1:
        return subject
    return evolve(
        subject, model=Interpolated(subject.model, every=every), replica=None,
        without_pivot=f"the encoder sees one frame in {every}",
    )  # fmt: skip


def default_metrics(folder: Path, config: EvaluationConfig) -> tuple[str, ...]:
    """What a tokenizer is measured by where no metrics are named: other numbers of clips than of
    images.

    Args:
        folder: the tokenizer's or its run's.
        config: what it is measured on.

    Raises:
        UsageError: if the data do not parse.
    """
    place = results_folder(folder)
    data: PartConfig | None = None
    if config.data:
        data = part_config("datasets", config.data)
    elif (place / "config.toml").is_file():
        data = read_run(place).data
    clips = isinstance(data, DatasetConfig) and data.clips
    return CLIP_METRICS if clips else IMAGE_METRICS


def measured_images(subject: Subject, config: EvaluationConfig) -> ImageSet:
    """The images that a tokenizer is measured on: the named ones, or what its run held out.

    Raises:
        UsageError: if none are named and it is from no run that knows its data.
        DataError: if there are no such images.
    """
    if config.data:
        return _listed(subject, config, config.data, address="data")
    data = _data(subject, "data")
    dataset = data.build()
    held_out: HeldOut = dataset.held_out()
    clips = held_out.images.ndim == 5
    listed = dataset.every_image() if clips and isinstance(dataset, Listed) else None
    return GivenImages(
        held_out.images, location=f"{data.label}, held out", crop="as held out by the run",
        listed=listed if isinstance(listed, EveryClip) else None,
    )  # fmt: skip


def training_images(subject: Subject, config: EvaluationConfig) -> ImageSet:
    """The images that metrics learn from: the named ones, or crops of those its run was trained on.

    Raises:
        UsageError: if they are those that are measured on, or none are named and others than the
            run's are measured on.
        DataError: if there are no such images.
    """
    if config.training:
        if config.training == config.data:
            raise UsageError(
                f"{config.data} is both what is learned from and what is measured on: name other "
                "images for training"
            )
        return _listed(subject, config, config.training, address="train")
    data = _data(subject, "training")
    if config.data:
        raise UsageError(
            "probes and neighbours need training images: name them, apart from those that are "
            "measured on (--train)"
        )
    crops = data.build().crops(config.num_training or TRAINING_CROPS, seed=0)
    return GivenImages(crops, location=f"{data.label}, training crops", crop="random crops")


def _data(subject: Subject, option: str) -> DatasetConfig:
    if subject.run is None or subject.run.data is None:
        raise UsageError(
            f"{subject.folder} is no run that knows its data: name images with --{option}"
        )
    return subject.run.data


def _listed(
    subject: Subject, config: EvaluationConfig, data: str | Tree, *, address: str
) -> ImageSet:
    model = subject.model
    assert model.config is not None
    size = config.image_size or model.trained_size or model.config.encoder_facts.image_size
    return listed_images(data, model.config, size=size, config=config, address=address)


def results_folder(folder: Path) -> Path:
    """Where the results about a tokenizer go: its run's folder, else its own."""
    return folder.parent if (folder.parent / "config.toml").is_file() else folder


def is_evaluated(folder: Path, config: EvaluationConfig) -> bool:
    """Whether a run was evaluated in just this way, as its tokenizer stands."""
    try:
        found = read_evaluations(results_folder(folder) / EVALUATION_FILE)
        address = evaluation_address(folder, config)
    except (OSError, ValueError, CheckpointError):
        return False
    return any(each.get("address") == address for each in found)


def evaluation_address(folder: Path, config: EvaluationConfig) -> str:
    """sha256 of a saved tokenizer, its pivot and data, and of all that it is measured with.

    Raises:
        CheckpointError: if there is no tokenizer.
        UsageError: if a metric or dataset does not parse.
    """
    metrics = tuple(part_config("metrics", each) for each in config.metrics)
    tree = identity(evolve(config, metrics=metrics, data="", training=""))
    for name in ("data", "training"):
        given = getattr(config, name)
        data = part_config("datasets", given) if given else None
        tree[name] = data_fingerprint(data) if isinstance(data, DatasetConfig) else ""
    run, tokenizer = results_folder(folder), tokenizer_folder(folder)
    files = [tokenizer / "config.json", *weight_files(tokenizer)]
    files += [p for p in (run / "config.toml", run / PIVOT_FILE) if p.is_file()]
    try:
        found = [file_digest(file) for file in files]
    except OSError as error:
        name = printable(str(error.filename))
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
    return address({"format": FORMAT, "config": tree, "files": found})
