"""Runs of samples: many, in several processes, going on where they stopped.

Until all of them are made, the work lies in a folder beside the output: numbered files of samples, each
written whole, and an index that says what is being made.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from attrs import evolve, frozen
from safetensors import SafetensorError
from torch import Tensor

from rpiae.core.config.identity import digest
from rpiae.core.errors import CheckpointError, RunError, UsageError
from rpiae.core.runtime.files import (
    file_digest,
    read_json,
    replace_durably,
    until_whole,
    write_text,
)
from rpiae.core.runtime.locks import LOCK_FILE, hold
from rpiae.core.runtime.processes import Runtime
from rpiae.latents.folders import differences
from rpiae.latents.layout import INDEX_FILE
from rpiae.latents.pace import GLANCE, Pace, Progressed
from rpiae.latents.writing import Notice, not_in
from rpiae.sampling.chunks import read_chunk, unwritten, write_chunk
from rpiae.sampling.loaded import LoadedGenerator
from rpiae.sampling.outputs import Pictures, is_sheet, save_sheet, sheet, to_bytes, write_output
from rpiae.sampling.plan import SamplingPlan

#: Of the folder of work.
FORMAT = 1

#: Samples in a preview, the newest ones, and how many of them lie beside each other.
PREVIEWED, PREVIEW_COLUMNS = 64, 8


@frozen(kw_only=True)
class Started:
    """What is about to be made.

    Attributes:
        plan: all of it.
        kept: samples of all processes that are there already.
    """

    plan: SamplingPlan
    kept: int


@frozen(kw_only=True)
class Finished:
    """All samples are made, and where they are."""

    plan: SamplingPlan
    out: Path


Event: TypeAlias = Started | Notice | Progressed | Finished


def work_folder(out: Path) -> Path:
    """Where the work on an output lies until it is complete."""
    return out.with_name(f"{out.name}.unfinished")


def make_samples(
    generator: LoadedGenerator,
    plan: SamplingPlan,
    out: str | os.PathLike[str],
    *,
    runtime: Runtime,
    batch_size: int | None = None,
    preview: Path | None = None,
) -> Iterator[Event]:
    """Make all samples of a plan, or those that are not there yet, and write what they become.

    Under a launcher of several processes each of them calls this; file of work k is made by process k
    modulo their number, and the first one waits for the others and writes the output.

    Args:
        generator: on the runtime's device.
        plan: what is made.
        out: where to.
        runtime: the processes.
        batch_size: samples at a time; changes them by no more than rounding.
        preview: PNG file for a sheet of the newest samples.

    Yields:
        ``Started``, then what happens, and in the first process ``Finished``.

    Raises:
        UsageError: if the output or its work is something else, or another process is at it.
        RunError: if a sample is not finite, or nothing can be written; what is made stays.
    """
    target = Path(out)
    work = work_folder(target)
    with contextlib.ExitStack() as held:
        begun = runtime.on_main(lambda: _begin(plan, target, preview, held))
        plan = begun.plan
        if begun.done:
            if runtime.is_main:
                shutil.rmtree(work, ignore_errors=True)
                yield Finished(plan=plan, out=target)
            return
        yield from (Notice(text=text) for text in begun.notices if runtime.is_main)
        yield Started(plan=plan, kept=sum(len(plan.shard(number)) for number in begun.kept))
        own = range(runtime.rank, plan.num_files, runtime.num_processes)
        others = not_in(own, plan.num_files) if runtime.is_main else []
        pace = Pace(plan, work, others=others, kept=[n for n in own if n in begun.kept])
        pace.start()
        maker = _Maker(generator, plan, batch_size, preview if runtime.is_main else None)
        for number in own:
            if number not in begun.kept:
                yield from maker.made(work, number, pace)
        if runtime.is_main:
            while not pace.others_are_done():
                time.sleep(GLANCE)
                yield pace.progressed()
            _finish(plan, target, generator)
            yield Finished(plan=plan, out=target)


class _Maker:
    """Makes one file of work after the other."""

    def __init__(
        self,
        generator: LoadedGenerator,
        plan: SamplingPlan,
        batch_size: int | None,
        preview: Path | None,
    ) -> None:
        self._generator = generator
        self._plan = plan
        self._batch_size = min(batch_size or generator.batch_size, plan.chunk_size)
        self._preview = preview
        self._newest: deque[Pictures] = deque(maxlen=PREVIEWED)

    def made(self, work: Path, number: int, pace: Pace) -> Iterator[Progressed]:
        """Make the samples of a file, and write it."""
        indices = self._plan.shard(number)
        batches = []
        for start in range(0, len(indices), self._batch_size):
            batch = indices[start : start + self._batch_size]
            batches.append(self._batch(batch))
            pace.done += len(batch)
            yield pace.progressed()
        tensors = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        write_chunk(work, self._plan, number, tensors)

    def _batch(self, indices: range) -> dict[str, Tensor]:
        plan, generator = self._plan, self._generator
        labels = plan.labels[indices.start : indices.stop]
        latents = generator.latents_at_once(plan.config, labels, indices, seed=plan.seed)
        if plan.form == "latents":
            if self._preview is not None:
                self._show(self._pictures(latents, indices))
            return {"latents": latents.float().contiguous().cpu()}
        found = {"images": self._pictures(latents, indices)}
        self._show(found["images"])
        if plan.compare:
            plain = evolve(plan.config, guidance=1.0)
            latents = generator.latents_at_once(plain, labels, indices, seed=plan.seed)
            found["unguided"] = self._pictures(latents, indices)
        return found

    def _pictures(self, latents: Tensor, indices: range) -> Tensor:
        images = self._generator.decoded(latents, indices)
        return to_bytes(images, truncate=self._plan.truncate)

    def _show(self, pictures: Tensor) -> None:
        """Write the preview anew, whole."""
        if self._preview is None:
            return
        self._newest.extend(pictures.numpy())
        made = sheet([np.stack(self._newest)], PREVIEW_COLUMNS)
        try:
            self._preview.parent.mkdir(parents=True, exist_ok=True)
            save_sheet(made, self._preview, self._plan.settings())
        except OSError as error:
            raise unwritten(self._preview, error) from None


@frozen(kw_only=True)
class _Begun:
    """What there is to go on with.

    Attributes:
        plan: its files as large as those that are there.
        done: whether all was done, but for the removal of the work.
        kept: files of work that are complete.
        notices: what is to be said of others.
    """

    plan: SamplingPlan
    done: bool = False
    kept: frozenset[int] = frozenset()
    notices: tuple[str, ...] = ()


def check_output(plan: SamplingPlan, out: Path, preview: Path | None = None) -> SamplingPlan:
    """Refuse an output that is there as something else, and work on it that is of other samples.

    Args:
        plan: what is to be made.
        out: where to.
        preview: where a preview is written.

    Returns:
        The plan, its files as large as those of the work that is there.

    Raises:
        UsageError: if it is something else.
        CheckpointError: if the index of the work is damaged.
    """
    if preview is not None and os.path.lexists(preview) and not is_sheet(preview):
        raise UsageError(f"{preview} is there and is no preview: name another --preview")
    index = _read_index(out)
    if not _replaceable(plan, out) and not _is_done(index, out):
        raise UsageError(f"{out} is there already: name another --out, or remove it")
    if index is None:
        return plan
    if different := differences(index["settings"], plan.settings()):
        raise UsageError(
            f"{work_folder(out)} holds the beginning of other samples: {' · '.join(different)}. Ask for "
            "the same to go on with them, name another --out, or remove that folder"
        )
    return evolve(plan, chunk_size=index["chunk_size"])


def _replaceable(plan: SamplingPlan, out: Path) -> bool:
    """Whether nothing is lost where an output is written: a sheet of samples is soon made again."""
    if not os.path.lexists(out):
        return True
    if plan.form == "folder":
        return out.is_dir() and not any(out.iterdir())
    return plan.form == "grid" and is_sheet(out)


def _is_done(index: Mapping[str, Any] | None, out: Path) -> bool:
    """Whether the very output of some work is in its place: a kill may have left the work beside it."""
    made = index["output_sha256"] if index else ""
    return made != "" and made == _digest(out)


def _digest(output: Path) -> str:
    """sha256 of an output's content; nothing where there is none that can be read."""
    try:
        if output.is_dir():
            return digest(sorted([path.name, file_digest(path)] for path in output.iterdir()))
        return file_digest(output)
    except OSError:
        return ""


def _read_index(out: Path) -> dict[str, Any] | None:
    """What the work on an output says of itself; None where none has begun."""
    work = work_folder(out)
    if not os.path.lexists(work):
        return None
    if not work.is_dir():
        raise UsageError(f"{work} is a file, and work on {out} needs its place: remove it")
    path = work / INDEX_FILE
    if not path.exists():
        strangers = [
            p.name for p in work.iterdir() if p.name not in (LOCK_FILE, f"{INDEX_FILE}.part")
        ]
        if strangers:
            raise UsageError(
                f"{work} holds other things than samples, such as {sorted(strangers)[0]}: name another "
                "--out"
            )
        return None
    index = read_json(path)
    kinds = {"format": int, "settings": dict, "chunk_size": int, "output_sha256": str}
    if not isinstance(index, dict) or any(
        not isinstance(index.get(name), kind) for name, kind in kinds.items()
    ):
        raise CheckpointError(f"{path} is damaged: remove {work} to begin anew")
    if index["format"] != FORMAT or index["chunk_size"] < 1:
        raise CheckpointError(f"{path} is of another rpiae: remove {work} to begin anew")
    return index


def _write_index(plan: SamplingPlan, out: Path, *, output_sha256: str = "") -> None:
    """Say what is being made and, once it is made, what it is."""
    index = {
        "format": FORMAT, "settings": plan.settings(), "chunk_size": plan.chunk_size,
        "output_sha256": output_sha256,
    }  # fmt: skip
    write_text(work_folder(out) / INDEX_FILE, json.dumps(index, indent=2) + "\n")


def _begin(
    plan: SamplingPlan, out: Path, preview: Path | None, held: contextlib.ExitStack
) -> _Begun:
    """Hold the work on an output, and look at what is there of it: what is damaged is removed."""
    check_output(plan, out, preview)
    work = work_folder(out)
    held.enter_context(hold(work, worker="rpiae sample"))
    plan = check_output(plan, out, preview)
    index = _read_index(out)
    if index is None:
        _write_index(plan, out)
    elif _is_done(index, out):
        return _Begun(plan=plan, done=True)
    kept, notices = set(), []
    for number in range(plan.num_files):
        path = work / plan.file(number)
        until_whole(path).unlink(missing_ok=True)  # of an interrupted call
        if not os.path.lexists(path):
            continue
        try:
            read_chunk(work, plan, number)
            kept.add(number)
        except CheckpointError as error:
            path.unlink()
            notices.append(f"{error}; its samples are made anew")
    return _Begun(plan=plan, kept=frozenset(kept), notices=tuple(notices))


def _finish(plan: SamplingPlan, out: Path, generator: LoadedGenerator) -> None:
    """Write the output whole, and remove the work.

    Raises:
        RunError: if it cannot be written, or something else is in its place by now; the work stays.
    """
    work = work_folder(out)
    made = work / f"output{out.suffix}"  # until it is whole
    chunks = (read_chunk(work, plan, number) for number in range(plan.num_files))
    try:
        _remove(made)
        write_output(plan.form, plan, chunks, made, generator.model.facts)
        _write_index(plan, out, output_sha256=_digest(made))
        if not _replaceable(plan, out):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if plan.form == "folder":
            made.replace(out)
        else:
            replace_durably(made, out)
    except (OSError, SafetensorError) as error:
        _remove(made)
        if not _replaceable(plan, out):
            raise RunError(
                f"{out} appeared while samples were made, and is not replaced: move it away and call "
                f"again. All samples are made and stay in {work}"
            ) from None
        raise unwritten(out, error) from None
    shutil.rmtree(work, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
