"""Finished stages, kept so that other runs that begin with the same ones need not repeat them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from rpiae.core.config.identity import address, content, identity
from rpiae.core.config.recipe import RunConfig, StageConfig, batch_size
from rpiae.core.errors import CheckpointError
from rpiae.core.model.folders import tokenizer_folder
from rpiae.core.model.saved_tensors import weight_files
from rpiae.core.model.state import load_state
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.training.checkpoint import checkpoint_path, read_state, write_state
from rpiae.core.training.restoring import check_stage_end
from rpiae.data.fingerprint import data_fingerprint
from rpiae.runs.history import Session, begin_session, trained_with
from rpiae.runs.recording import EVENTS_FILE
from rpiae.tasks.tokenizer.pivot import find_pivot

#: Part of an address that names its file.
SHOWN = 20

#: Suffix of a stage's events, beside its state.
EVENTS = ".jsonl"

logger = logging.getLogger(__name__)


class StageStore:
    """A folder of finished stages, by the address of all that led to them.

    A stage's end depends on the model's parts in its path, the stages up to it, seed, data,
    initialisation and precision, and on nothing else but the kind of device; so a run whose beginning
    has the same address goes on from there, to the bit. A run that was gone on with under other
    settings keeps what was trained before them, and nothing after.

    Args:
        folder: where they are kept.
        wanted: addresses that are worth keeping; all of them where not given.
    """

    def __init__(self, folder: Path, *, wanted: Collection[str] | None = None) -> None:
        self._folder = folder
        self._wanted = wanted

    def holds(self, address: str) -> bool:
        """Whether a stage's end is there, of whatever machine."""
        return any(self._folder.glob(f"{address[:SHOWN]}-*.pt"))

    def keep(self, config: RunConfig, index: int, *, machine: str) -> None:
        """Keep the end of a run's stage, right after it was saved, if all that led to it was trained
        with what the config says now.

        Args:
            config: the run.
            index: of the stage.
            machine: what it was trained on, see ``machine``.

        Raises:
            CheckpointError: if it cannot be written.
        """
        wanted = stage_address(config, index)
        state = self._state(wanted, machine)
        if state.is_file() or (self._wanted is not None and wanted not in self._wanted):
            return
        run = Path(config.out)
        if not trained_as(config, index, machine=machine):
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Its events first: whoever finds the state finds these.
            for source, target in (
                (run / EVENTS_FILE, state.with_suffix(EVENTS)),
                (checkpoint_path(run / "checkpoints", index + 1, 0), state),
            ):
                part = target.with_name(f"{target.name}.{os.getpid()}.part")
                _link_or_copy(source, part, link=target.suffix == ".pt")
                part.rename(target)
        except OSError as error:
            raise CheckpointError(
                f"cannot keep stage {index + 1} of {run} in {self._folder}: {error.strerror}"
            ) from None

    def adopt(self, config: RunConfig, model: RPiAE, machine: str, *, beyond: int = 0) -> int:
        """Have a run go on from the longest beginning that is kept.

        Args:
            config: the run; its folder is there.
            model: as the run initialises it; what no adopted stage had in its path stays so.
            machine: what is trained on, see ``machine``.
            beyond: how many stages the run itself has finished; only longer beginnings are taken.

        Returns:
            How many stages were adopted; the run's folder holds a checkpoint where any were.

        Raises:
            CheckpointError: if it cannot be read or written.
        """
        run = Path(config.out)
        for index in reversed(range(beyond, len(config.recipe.stages))):
            kept_at = self._state(stage_address(config, index), machine)
            if not kept_at.is_file():
                continue
            try:
                state = read_state(kept_at).state
                check_stage_end(state, source=str(kept_at))
            except CheckpointError as error:
                logger.warning("%s: it is removed, and the stage is trained once more", error)
                kept_at.unlink(missing_ok=True)
                continue
            roles = roles_in_path(config.recipe.stages[: index + 1])
            own = {k: v for k, v in model.state_dict().items() if k.partition(".")[0] not in roles}
            kept = {k: v for k, v in state["model"].items() if k.partition(".")[0] in roles}
            load_state(model, kept | own, source=str(kept_at))
            path = checkpoint_path(run / "checkpoints", index + 1, 0)
            try:
                path.parent.mkdir(exist_ok=True)
                shutil.copyfile(kept_at.with_suffix(EVENTS), run / EVENTS_FILE)
            except OSError as error:
                raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
            write_state(path, state | {"model": kept | own})
            begin_session(run, session(config, 0, 0, machine=machine))
            return index + 1
        return 0

    def _state(self, address: str, machine: str) -> Path:
        return self._folder / f"{address[:SHOWN]}-{machine}.pt"


def machine(device: torch.device, num_processes: int) -> str:
    """What a run is trained on, as far as its rounding depends on it: ``cpu``, ``cuda``, ``cuda-x4``."""
    return device.type if num_processes == 1 else f"{device.type}-x{num_processes}"


def session(config: RunConfig, stage: int, step: int, *, machine: str) -> Session:
    """A session of a run that goes on from ``step`` of ``stage``, with its config as it is."""
    assert config.data is not None
    stages = range(len(config.recipe.stages))
    return Session(
        stage=stage, step=step,
        settings=tuple(f"{machine} {stage_address(config, i)}" for i in stages),
        data=data_fingerprint(config.data, times=False),
    )  # fmt: skip


def trained_as(config: RunConfig, index: int, *, machine: str) -> bool:
    """Whether the stages of a run up to one were trained with what its config says now."""
    wanted = session(config, 0, 0, machine=machine).settings
    return all(trained_with(Path(config.out), i) == wanted[i] for i in range(index + 1))


def roles_in_path(stages: tuple[StageConfig, ...]) -> set[str]:
    """Roles whose weights some stages depend on or change."""
    trained = {pattern.partition(".")[0] for stage in stages for pattern in stage.train}
    bridged = any(stage.use_bridge for stage in stages)
    return {"encoder", "decoder"} | trained | ({"bridge"} if bridged else set())


def stage_address(config: RunConfig, index: int) -> str:
    """sha256 of all that the end of a run's stage depends on.

    Raises:
        DataError: if a file that counts is not there or cannot be read.
    """
    stages = config.recipe.stages[: index + 1]
    return _address(config, stages, bridged="bridge" in roles_in_path(stages))


def run_address(config: RunConfig) -> str:
    """sha256 of all that a run's result depends on; where it is written does not count.

    Raises:
        DataError: if a file that counts is not there or cannot be read.
    """
    return _address(config, config.recipe.stages, bridged=True)


def _address(config: RunConfig, stages: tuple[StageConfig, ...], *, bridged: bool) -> str:
    """The address of a config with these stages alone.

    Stages have the lengths and batches that they are run with, so that it does not matter whether a
    recipe or its caps set them. A bridge that is in no path still decides how images are padded.
    """
    assert config.data is not None
    recipe, limit = config.recipe, config.recipe.max_steps
    capped = limit is not None and any((s.steps or math.inf) > limit for s in stages)
    as_run = tuple(evolve(stage, batch_size=batch_size(stage, recipe)) for stage in stages)
    recipe = evolve(recipe, stages=as_run, batch_size=None, max_steps=limit if capped else None)
    parts = tuple(sorted(config.init_parts))
    tree = identity(evolve(config, recipe=recipe, data=None, init_parts=parts))
    tree["data"] = data_fingerprint(config.data)
    if config.init:
        tree["init"] = _initial_identity(config.init)
    if not bridged:
        facts = config.bridge.describe()
        tree["bridge"] = {"downsampling": facts.downsampling}
        if facts.temporal_downsampling > 1:
            tree["bridge"]["temporal_downsampling"] = facts.temporal_downsampling
    return address(tree)


def _initial_identity(init: str) -> Any:
    """The tokenizer that a run starts from, and the pivot that it inherits, by their content."""
    try:
        files = [*weight_files(tokenizer_folder(init)), find_pivot(Path(init))]
    except CheckpointError:  # a run that has begun does not need it any more
        return init
    return [content(file) for file in files if file is not None]


def _link_or_copy(source: Path, target: Path, *, link: bool) -> None:
    """A checkpoint is never changed once written, so a link to it does; events grow."""
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
