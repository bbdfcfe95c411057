"""What is trained here, as files of other projects: one table of targets."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from rpiae.core.errors import UsageError, unknown
from rpiae.core.model.folders import load_tokenizer
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import whole_folder


@frozen(kw_only=True)
class Target:
    """A format that ``rpiae export`` writes.

    Attributes:
        function: ``module:name`` of what writes it: ``write(model, folder, …)`` of a tokenizer, into a
            folder that is there, or ``write(folder, out)`` of a folder of latents, which makes ``out``
            whole itself. Both give sentences on what was written and what was left out.
        of: what it is made of.
        options: keyword arguments that it takes.
        square: whether ``size`` is one side, as the format has squares alone.
    """

    function: str
    of: Literal["tokenizer", "latents"] = "tokenizer"
    options: frozenset[str] = frozenset()
    square: bool = False

    def load(self) -> Callable[..., list[str]]:
        """What writes it; its libraries are imported when it runs."""
        module, _, name = self.function.partition(":")
        function: Callable[..., list[str]] = getattr(importlib.import_module(module), name)
        return function


_OF_GRAPHS = frozenset({"size", "dynamic", "dtype"})

#: Formats by the name that users give.
TARGETS: Mapping[str, Target] = {
    "reference": Target(function="rpiae.interop.reference.tokenizers:write_reference"),
    "diffusers": Target(
        function="rpiae.interop.diffusers.exporting:write_diffusers",
        options=frozenset({"size"}),
        square=True,
    ),
    "torch-export": Target(
        function="rpiae.interop.graphs.files:write_torch_export", options=_OF_GRAPHS
    ),
    "onnx": Target(function="rpiae.interop.graphs.files:write_onnx", options=_OF_GRAPHS),
    "webdataset": Target(function="rpiae.interop.latents:write_webdataset", of="latents"),
    "datasets": Target(function="rpiae.interop.latents:write_datasets", of="latents"),
}


@frozen(kw_only=True)
class Exported:
    """What came of an export.

    Attributes:
        folder: what was written.
        told: sentences on what is in it, what was assumed and what was left out.
    """

    folder: Path
    told: tuple[str, ...]


def export_model(
    source: RPiAE | str | os.PathLike[str], *, to: str, out: str | os.PathLike[str], **options: Any
) -> Exported:
    """Write a tokenizer, or a folder of latents, in a format of others, into a new folder.

    The folder is there whole or not at all.

    Args:
        source: a tokenizer, its folder or its run's; for ``webdataset`` and ``datasets``, what ``rpiae
            encode`` wrote.
        to: one of ``TARGETS``.
        out: the new folder.
        options: ``size``, (H, W) of images in pixels, of ``diffusers`` a square; ``dynamic``, whether sides
            vary; ``dtype``, ``"fp32"``, ``"bf16"`` or ``"fp16"``, that graphs compute in. The last
            two are of ``torch-export`` and ``onnx``.

    Raises:
        UsageError: if there is no such target or option, the folder is not new, or the format cannot
            hold this.
        CheckpointError: if the source is damaged or something else.
        RunError: if it cannot be written, or what was written gives other results.
    """
    if to not in TARGETS:
        raise UsageError(unknown("target", to, TARGETS))
    target, folder = TARGETS[to], Path(out)
    strange = sorted(name for name in options if name not in target.options)
    if strange:
        takers = [name for name, each in TARGETS.items() if strange[0] in each.options]
        raise UsageError(
            f"{strange[0]} does not go with {to}"
            + (f", only with {', '.join(takers)}: leave it out" if takers else "")
        )
    if target.square and "size" in options:
        options["size"] = _side(to, *options["size"])
    if target.of == "latents":
        if isinstance(source, RPiAE):
            raise UsageError(f"{to} is a format of latents: name a folder that rpiae encode wrote")
        return Exported(folder=folder, told=tuple(target.load()(source, folder)))
    model = source if isinstance(source, RPiAE) else load_tokenizer(source)
    write = target.load()
    with whole_folder(folder) as unfinished:
        told = write(model, unfinished, **options)
    return Exported(folder=folder, told=tuple(told))


def _side(to: str, height: int, width: int) -> int:
    if height != width:
        raise UsageError(f"{to} has squares alone: {height}×{width} pixels are none")
    return height
