"""A run's folder: what lies in it, and who is at work there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from attrs import evolve

from rpiae.core.config.recipe import RunConfig
from rpiae.core.config.tree import dump_toml
from rpiae.core.errors import UsageError
from rpiae.core.model.resolve import ResolvedRun
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import write_text
from rpiae.core.runtime.locks import hold
from rpiae.core.runtime.processes import Runtime
from rpiae.core.training.checkpoint import list_checkpoints
from rpiae.runs.start import brings_pivot
from rpiae.tasks.tokenizer.pivot import inherit_pivot, write_pivot

CONFIG_FILE = "config.toml"


SUMMARY_FILE = "summary.json"


#: Seconds to wait for the folder of a run that was killed just now: its loading processes hold the
#: lock until they too have ended.
PATIENCE = 3.0


def with_folder(resolved: ResolvedRun) -> ResolvedRun:
    """The run with an output folder: the given one, or a new one under ``runs/``."""
    if resolved.config.out:
        return resolved
    config = resolved.config
    parts = (config.encoder, config.bridge, config.decoder)
    stem = "-".join([*(part.label for part in parts), config.recipe.label])
    return evolve(resolved, config=evolve(config, out=str(free_folder(stem))))


def free_folder(stem: str) -> Path:
    """A folder under ``runs/`` that is not there yet, called after what is in it."""
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in stem)
    number, path = 1, Path("runs") / stem
    while path.exists():
        number += 1
        path = Path("runs") / f"{stem}-{number}"
    return path


class Claim(contextlib.AbstractContextManager["Claim"]):
    """A run's folder, held by one run at a time."""

    def __init__(self, folder: Path, runtime: Runtime, *, resume: bool) -> None:
        self._folder = folder
        self._runtime = runtime
        self._resume = resume
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Claim:
        self._runtime.on_main(self._acquire)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _acquire(self) -> None:
        folder = self._folder
        self._held.enter_context(hold(folder, worker="run", patience=PATIENCE))
        if not self._resume and list_checkpoints(folder / "checkpoints"):
            self._held.close()
            raise UsageError(
                f"{folder} already holds a run: go on with --resume {folder}, or name another --out"
            )


def begin(config: RunConfig, model: RPiAE, folder: Path) -> None:
    """Write down the pivot, then the config: with it, the folder holds a run."""
    if not (brings_pivot(config) and inherit_pivot(folder, Path(config.init))):
        write_pivot(folder, model.roles["encoder"])
    write_text(folder / CONFIG_FILE, dump_toml(config))
