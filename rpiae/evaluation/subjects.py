"""Saved tokenizers to be measured, and what tells one measurement from another."""

from __future__ import annotations

from pathlib import Path

import torch
from attrs import evolve, frozen

from rpiae.core.config.identity import address, identity
from rpiae.core.config.parts import DatasetConfig
from rpiae.core.errors import CheckpointError
from rpiae.core.model.contracts import Replica
from rpiae.core.model.folders import load_tokenizer, tokenizer_folder
from rpiae.core.model.resolve import part_config
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import file_digest
from rpiae.core.runtime.names import printable
from rpiae.data.fingerprint import data_fingerprint
from rpiae.evaluation.configs import EvaluationConfig
from rpiae.evaluation.protocol import EVALUATION_FILE
from rpiae.evaluation.records import FORMAT, read_evaluations
from rpiae.evaluation.trained_run import TrainedRun, read_run
from rpiae.tasks.tokenizer.pivot import FILE as PIVOT_FILE
from rpiae.tasks.tokenizer.pivot import find_pivot, read_pivot
from rpiae.tasks.tokenizer.replica import PivotReplica


@frozen(kw_only=True)
class Subject:
    """A tokenizer to be measured.

    Attributes:
        model: the tokenizer.
        folder: what was named.
        replica: its pivot; None where it has none.
        run: the run that it is from; None where there is none.
        without_pivot: why it has no pivot.
    """

    model: RPiAE
    folder: Path
    replica: Replica | None = None
    run: TrainedRun | None = None
    without_pivot: str = ""


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
    replica = PivotReplica(
        read_pivot(place, run.encoder).to(device), output_patch=model.decoder.patch,
        downsampling=model.bridge.downsampling,
    )  # fmt: skip
    return Subject(model=model, folder=folder, replica=replica, run=run)


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
    files = [tokenizer / "config.json", tokenizer / "model.safetensors"]
    files += [p for p in (run / "config.toml", run / PIVOT_FILE) if p.is_file()]
    try:
        found = [file_digest(file) for file in files]
    except OSError as error:
        name = printable(str(error.filename))
        raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
    return address({"format": FORMAT, "config": tree, "files": found})
