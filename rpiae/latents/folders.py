"""Folders that latents are written into: new ones, and those that hold the beginning of the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rpiae.core.errors import UsageError
from rpiae.core.runtime.locks import LOCK_FILE, hold
from rpiae.latents.index import AnyPlan, read_index, write_index
from rpiae.latents.layout import EARLIER_FORMATS, INDEX_FILE, UNFINISHED


def check_folder(folder: Path, plan: AnyPlan) -> None:
    """Refuse a folder that is neither new nor holds the beginning of just this plan.

    Raises:
        UsageError: if it holds anything else.
        CheckpointError: if its index is damaged.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name another --out")
    if not (folder / INDEX_FILE).exists():
        others = [p.name for p in folder.iterdir() if not _ours(p)] if folder.exists() else []
        if others:
            raise UsageError(
                f"{folder} holds other things than latents, such as {sorted(others)[0]}: name "
                "another --out"
            )
        return
    before, _ = read_index(folder)
    if before.format in EARLIER_FORMATS:
        raise UsageError(
            f"{folder} holds latents of an earlier rpiae, of format {before.format}: they can be read, "
            "but not gone on with. Name another --out"
        )
    if before.contents != plan.contents:
        raise UsageError(
            f"{folder} holds latents of {before.contents}, and these are of {plan.contents}: name "
            "another --out"
        )
    if different := differences(before.identity(), plan.identity()):
        raise UsageError(
            f"{folder} holds latents that were made otherwise: {' · '.join(different)}. Ask for the "
            "same to go on with them, or name another --out"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In which entries two JSON objects differ, in words."""
    there, here = _flat(before), _flat(now)
    return [
        f"{name} is {_shown(there.get(name))} there and {_shown(here.get(name))} here"
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    ]


def prepare(folder: Path, plan: AnyPlan, held: contextlib.ExitStack) -> None:
    """Hold a folder that a plan may be carried out in; leave nothing half-written there, and an index.

    Args:
        folder: the folder.
        plan: what it is to hold.
        held: what holds it until it is closed.

    Raises:
        UsageError: if it holds anything else, or another process is at work in it.
        CheckpointError: if its index is damaged.
    """
    _claim(folder, held)
    check_folder(folder, plan)
    for path in folder.glob(f".*{UNFINISHED}"):  # of interrupted calls
        path.unlink(missing_ok=True)
    if not (folder / INDEX_FILE).exists():
        write_index(folder, plan, complete=False)


def _claim(folder: Path, held: contextlib.ExitStack) -> None:
    """Hold a folder, so that one call at a time writes into it."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name another --out")
    held.enter_context(hold(folder, worker="rpiae encode"))


def _ours(path: Path) -> bool:
    return path.name == LOCK_FILE or (path.name.startswith(".") and path.suffix == UNFINISHED)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree whose tables are spelt out: ``data.files``."""
    rows: dict[str, Any] = {}
    for name, value in tree.items():
        inside = _flat(value) if isinstance(value, dict) else {}
        rows |= {f"{name}.{key}": each for key, each in inside.items()} or {name: value}
    return rows


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text[:13] + '…"' if len(text) == 66 else text  # a sha256
