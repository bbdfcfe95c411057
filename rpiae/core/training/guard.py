"""When a stage has to be taken back: a loss that leaps, or that is not finite."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, field

from rpiae.core.config.recipe import SpikeGuardConfig
from rpiae.core.errors import CheckpointError, TrainingError
from rpiae.core.training.checkpoint import SavedState, checkpoint_path, read_state, write_state

#: Losses that the usual one is the median of, and the fewest that make one.
REMEMBERED = 100
FEWEST = 20


class SpikeError(TrainingError):
    """Training went wrong at a step, and may go on from an earlier one."""


@define(kw_only=True)
class SpikeGuard:
    """Knows the usual loss of a stage, and keeps a state that it can go back to.

    That state is of the stage's first step, and then of every so many steps, whatever else is saved: so
    what comes of a stage that was taken back does not depend on where it was interrupted.

    Attributes:
        config: what is guarded; None where nothing is.
        folder: where the state is kept.
        stage: index of the stage.
        retries: how often it was taken back so far.
    """

    config: SpikeGuardConfig | None
    folder: Path
    stage: int
    retries: int = 0
    _recent: deque[float] = field(factory=lambda: deque(maxlen=REMEMBERED), init=False)

    @property
    def helps(self) -> bool:
        """Whether the stage can still be taken back; it is once."""
        return self.config is not None and not self.retries

    def due(self, step: int) -> bool:
        """Whether the state of a step is to be kept."""
        return self.config is not None and self.helps and step % self.config.every == 0

    def problems(self, losses: Sequence[float]) -> Sequence[str]:
        """How a loss of some steps leaps beyond what is usual, in words; nothing where none does."""
        for loss in losses:
            usual = statistics.median(self._recent) if len(self._recent) >= FEWEST else None
            self._recent.append(loss)
            if self.helps and usual is not None and loss > self.config.factor * usual:  # type: ignore[union-attr]  # it helps
                return [f"its loss is {loss:.4g}, where {usual:.4g} is usual"]
        return []

    def begin(self, state: Mapping[str, Any]) -> None:
        """Keep the state of the stage's first step.

        Raises:
            CheckpointError: if it cannot be written.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        write_state(checkpoint_path(self.folder, self.stage, 0), state)

    def keep(self, checkpoint: Path, step: int) -> None:
        """Keep a checkpoint, whatever becomes of it, and let go of the one before.

        Raises:
            CheckpointError: if it cannot be written.
        """
        target = checkpoint_path(self.folder, self.stage, step)
        try:
            self.folder.mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.link(checkpoint, target)
        except OSError:
            _copied(checkpoint, target)
        for other in self.folder.iterdir():
            if other != target:
                other.unlink(missing_ok=True)

    def kept(self, step: int) -> SavedState | None:
        """The state that a stage at this step goes back to; None where it is not there any more."""
        assert self.config is not None
        newest = step - step % self.config.every
        # A step is looked at before its own state is kept.
        for candidate in (newest, newest - self.config.every):
            path = checkpoint_path(self.folder, self.stage, candidate)
            with contextlib.suppress(CheckpointError):
                if path.exists():
                    return read_state(path)
        return None

    def forget(self) -> None:
        """Let go of what is kept, at the stage's end."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: how often the stage was taken back, and the losses that are remembered."""
        return {"retries": self.retries, "losses": list(self._recent)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.retries = saved["retries"]
        self._recent.clear()
        self._recent.extend(saved["losses"])


def _copied(source: Path, target: Path) -> None:
    """A copy under another name, whole or not there.

    Raises:
        CheckpointError: if it cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        shutil.copyfile(source, part)
        part.rename(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write {target}: {error.strerror}") from None
