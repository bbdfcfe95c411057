"""Typed events that a run yields; the CLI renders them, tests collect them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from rpiae.core.training.freeze import FreezeReport


@frozen(kw_only=True)
class Event:
    """Base of all events."""


@frozen(kw_only=True)
class StageStarted(Event):
    """A stage begins, or goes on at ``step`` after a resume."""

    stage: str
    index: int
    steps: int
    step: int
    batch_size: int
    report: FreezeReport


@frozen(kw_only=True)
class StageSkipped(Event):
    """A stage has nothing to train."""

    stage: str
    index: int
    reason: str


@frozen(kw_only=True)
class StepDone(Event):
    """Optimiser steps are done; the numbers are of the last one, but for the rates.

    Attributes:
        total: the weighted loss.
        terms: raw values by term.
        weights: their weights in this step (adaptive ones too).
        learning_rate: of this step.
        gradient_norms: by role.
        others: by name, how players besides the model do that learned in this step: their terms and
            facts, ``gradient_norm``, ``learning_rate``.
        images_per_second: since the event before.
        data_seconds: spent waiting for data, per step.
        remaining_seconds: estimate for the stage.
        memory: bytes; the most that was allocated on a CUDA device, else what is resident now.
    """

    stage: str
    step: int
    steps: int
    total: float
    terms: Mapping[str, float]
    weights: Mapping[str, float]
    learning_rate: float
    gradient_norms: Mapping[str, float]
    others: Mapping[str, Mapping[str, float]]
    images_per_second: float
    data_seconds: float
    remaining_seconds: float
    memory: int


@frozen(kw_only=True)
class Evaluated(Event):
    """Held-out metrics of the averaged weights on the stage's own path."""

    stage: str
    step: int
    metrics: Mapping[str, float]
    best: bool


@frozen(kw_only=True)
class ImagesSkipped(Event):
    """Images that could not be used and were replaced by others."""

    stage: str
    images: tuple[str, ...]
    total: int


@frozen(kw_only=True)
class CheckpointSaved(Event):
    """Training state was written."""

    path: Path
    stage: str
    step: int


@frozen(kw_only=True)
class TakenBack(Event):
    """A stage went wrong at ``step`` and goes on from its checkpoint of step ``to`` with other draws."""

    stage: str
    step: int
    to: int
    reason: str


@frozen(kw_only=True)
class StageEnded(Event):
    """A stage is complete.

    Attributes:
        trained: how many numbers it trained.
        metrics: held-out metrics at its end.
        digests: sha256 of the weights, their moving average and the optimiser's state at its end.
            Equal digests are equal runs.
    """

    stage: str
    index: int
    steps: int
    seconds: float
    images_per_second: float
    trained: int
    metrics: Mapping[str, float]
    digests: Mapping[str, str]


@frozen(kw_only=True)
class Interrupted(Event):
    """A signal came; the state was saved at the step boundary."""

    path: Path
    signal: str


@frozen(kw_only=True)
class Notice(Event):
    """Something worth saying once."""

    text: str


@frozen(kw_only=True)
class Planned(Event):
    """The plan, before anything heavy happens."""

    plan: Any


@frozen(kw_only=True)
class RunEnded(Event):
    """The run is complete.

    Attributes:
        summary: what ``summary.json`` holds.
        folder: the run's folder.
    """

    summary: Mapping[str, Any]
    folder: Path
