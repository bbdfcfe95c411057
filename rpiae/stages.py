"""Finished stages, kept so that other runs that begin with the same ones need not repeat them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from attrs import evolve

from rpiae.core.checkpoint import checkpoint_path, read_state, write_state
from rpiae.core.config import unparse
from rpiae.core.errors import CheckpointError
from rpiae.core.recipe import ROLES, RecipeConfig, RunConfig, StageConfig, batch_size
from rpiae.core.restoring import check_stage_end
from rpiae.core.tokenizer import RPiAE, load_state
from rpiae.data.fingerprint import data_fingerprint, files_digest
from rpiae.recording import EVENTS_FILE

#: Part of an address that names its file.
SHOWN = 20

logger = logging.getLogger(__name__)


class StageStore:
    """A folder of finished stages, by the address of all that led to them.

    A stage's end depends on the model's parts in its path, the stages up to it, seed, data,
    initialisation and precision, and on nothing else; so a run whose beginning has the same address
    goes on from there, to the bit.

    Args:
        folder: where they are kept.
        wanted: addresses that are worth keeping; all of them where not given.
    """

    def __init__(self, folder: Path, *, wanted: Collection[str] | None = None) -> None:
        self._folder = folder
        self._wanted = wanted

    def holds(self, address: str) -> bool:
        """Whether a stage's end is there."""
        return self._state(address).is_file()

    def keep(self, config: RunConfig, index: int) -> None:
        """Keep the end of a run's stage, right after it was saved.

        Raises:
            CheckpointError: if it cannot be written.
        """
        address = stage_address(config, index)
        if self.holds(address) or (self._wanted is not None and address not in self._wanted):
            return
        run = Path(config.out)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Its events first: whoever finds the state finds these.
            for source, target in (
                (run / EVENTS_FILE, self._events(address)),
                (checkpoint_path(run / "checkpoints", index + 1, 0), self._state(address)),
            ):
                part = target.with_name(f"{target.name}.{os.getpid()}.part")
                _link_or_copy(source, part, link=target.suffix == ".pt")
                part.rename(target)
        except OSError as error:
            raise CheckpointError(
                f"cannot keep stage {index + 1} of {run} in {self._folder}: {error.strerror}"
            ) from None

    def adopt(self, config: RunConfig, model: RPiAE, *, beyond: int = 0) -> int:
        """Have a run go on from the longest beginning that is kept.

        Args:
            config: the run; its folder is there.
            model: as the run initialises it; what no adopted stage had in its path stays so.
            beyond: how many stages the run itself has finished; only longer beginnings are taken.

        Returns:
            How many stages were adopted; the run's folder holds a checkpoint where any were.

        Raises:
            CheckpointError: if it cannot be read or written.
        """
        run = Path(config.out)
        for index in reversed(range(beyond, len(config.recipe.stages))):
            address = stage_address(config, index)
            if not self.holds(address):
                continue
            try:
                state = read_state(self._state(address)).state
                check_stage_end(state, source=str(self._state(address)))
            except CheckpointError as error:
                logger.warning("%s: it is removed, and the stage is trained once more", error)
                self._state(address).unlink(missing_ok=True)
                continue
            roles = roles_in_path(config.recipe.stages[: index + 1])
            own = {k: v for k, v in model.state_dict().items() if k.partition(".")[0] not in roles}
            kept = {k: v for k, v in state["model"].items() if k.partition(".")[0] in roles}
            load_state(model, kept | own, source=str(self._state(address)))
            path = checkpoint_path(run / "checkpoints", index + 1, 0)
            try:
                path.parent.mkdir(exist_ok=True)
                shutil.copyfile(self._events(address), run / EVENTS_FILE)
            except OSError as error:
                raise CheckpointError(f"cannot write {path}: {error.strerror}") from None
            write_state(path, state | {"model": kept | own})
            return index + 1
        return 0

    def _state(self, address: str) -> Path:
        return self._folder / f"{address[:SHOWN]}.pt"

    def _events(self, address: str) -> Path:
        return self._folder / f"{address[:SHOWN]}.jsonl"


def roles_in_path(stages: tuple[StageConfig, ...]) -> set[str]:
    """Roles whose weights some stages depend on or change."""
    trained = {pattern.partition(".")[0] for stage in stages for pattern in stage.train}
    bridged = any(stage.use_bridge for stage in stages)
    return {"encoder", "decoder"} | trained | ({"bridge"} if bridged else set())


def stage_address(config: RunConfig, index: int) -> str:
    """sha256 of all that the end of a run's stage depends on.

    Stages have the lengths and batches that they are run with, so that it does not matter whether a
    recipe or its caps set them.
    """
    stages = config.recipe.stages[: index + 1]
    return _address(config, stages, roles_in_path(stages))


def run_address(config: RunConfig) -> str:
    """sha256 of all that a run's result depends on; where it is written does not count."""
    return _address(config, config.recipe.stages, set(ROLES))


def _address(config: RunConfig, stages: tuple[StageConfig, ...], roles: Collection[str]) -> str:
    assert config.data is not None
    parts = {role: getattr(config, role) for role in sorted(roles)}
    limit = config.recipe.max_steps
    capped = limit is not None and any((s.steps or math.inf) > limit for s in stages)
    tree: dict[str, Any] = {
        "parts": {role: unparse(part) for role, part in parts.items()},
        "stages": [_effective(stage, config.recipe) for stage in stages],
        "max_steps": limit if capped else None,
        "seed": config.seed,
        "data": data_fingerprint(config.data),
        "init": _weights_digest(Path(config.init)) if config.init else "",
        "precision": config.precision,
    }
    # What is as usual is left out. A bridge that is in no path still decides how images are padded,
    # and parts of a batch are added up in another order.
    unusual: dict[str, Any] = {
        "downsampling": config.bridge.describe().downsampling - 1,
        "accumulate": config.recipe.accumulate - 1,
        "files": {role: files_digest(part) for role, part in parts.items() if files_digest(part)},
        "term_files": files_digest(stages),
    }
    tree |= {name: value for name, value in unusual.items() if value}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _effective(stage: StageConfig, recipe: RecipeConfig) -> Any:
    return unparse(evolve(stage, batch_size=batch_size(stage, recipe)))


def _weights_digest(folder: Path) -> str:
    """sha256 of a tokenizer, and of the pivot that a run from it inherits."""
    found = hashlib.sha256()
    for name in ("model.safetensors", "tokenizer/model.safetensors", "pivot.safetensors"):
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _link_or_copy(source: Path, target: Path, *, link: bool) -> None:
    """A checkpoint is never changed once written, so a link to it does; events grow."""
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
