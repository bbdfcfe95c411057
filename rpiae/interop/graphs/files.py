"""Folders of graphs: an encoder, a decoder, and what has to be known to use them."""

from __future__ import annotations

import copy
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rpiae.core.errors import UsageError, unknown
from rpiae.core.model.tokenizer import RPiAE
from rpiae.core.runtime.files import write_text
from rpiae.interop.graphs.onnx import OPSET, check_onnx, save_onnx
from rpiae.interop.graphs.tracing import TOLERANCES, Graph, Sides, Sizes, graphs, sizes_of
from rpiae.latents.encoding import tokenizer_digest

FACTS_FILE = "export.json"

#: What graphs compute in, by the names that users give.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: A graph and its file → the file's graph, run: input → outputs.
Save = Callable[[Graph, Path], Callable[[Tensor], Sequence[Tensor]]]


def write_torch_export(
    model: RPiAE,
    folder: Path,
    *,
    size: Sides | None = None,
    dynamic: bool = False,
    dtype: str = "fp32",
) -> list[str]:
    """Write ``encoder.pt2`` and ``decoder.pt2``, which ``torch.export.load`` reads, and ``export.json``.

    Args:
        model: a tokenizer of images.
        folder: a new one, which is there.
        size: (H, W) of the images; that of the training crops where not given.
        dynamic: whether sides vary instead, in multiples of the pixels of a latent position.
        dtype: what is computed in, one of ``DTYPES``.

    Returns:
        Sentences on what was written.

    Raises:
        UsageError: if the tokenizer cannot be exported so.
        RunError: if it cannot be traced, or the files give other results.
    """
    return _write(model, folder, "pt2", _save_torch_export, size, dynamic, dtype, {})


def write_onnx(
    model: RPiAE,
    folder: Path,
    *,
    size: Sides | None = None,
    dynamic: bool = False,
    dtype: str = "fp32",
) -> list[str]:
    """Write ``encoder.onnx`` and ``decoder.onnx``, and ``export.json``; as ``write_torch_export``.

    Raises:
        MissingExtraError: if onnx, onnxscript or onnxruntime is not installed.
    """
    check_onnx(_known(dtype))
    return _write(model, folder, "onnx", save_onnx, size, dynamic, dtype, {"opset": OPSET})


def _save_torch_export(graph: Graph, path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    torch.export.save(graph.program, path)
    return torch.export.load(path).module()


def _write(
    model: RPiAE,
    folder: Path,
    ending: str,
    save: Save,
    size: Sides | None,
    dynamic: bool,
    dtype: str,
    also: Mapping[str, Any],
) -> list[str]:
    tolerance = TOLERANCES[_known(dtype)]
    sizes = sizes_of(model, size=size, dynamic=dynamic)
    digest = tokenizer_digest(model) if model.config is not None else ""
    model = copy.deepcopy(model).to(device="cpu", dtype=_known(dtype)).eval().requires_grad_(False)
    written: dict[str, Any] = {}
    for graph in graphs(model, sizes):
        path = folder / f"{graph.name}.{ending}"
        difference = graph.check(save(graph, path), path.name, tolerance)
        given, *outputs = graph.shapes
        written[graph.name] = {
            "file": path.name, "inputs": {given: graph.shapes[given]},
            "outputs": {name: graph.shapes[name] for name in outputs},
            "checked": [list(trial.shape) for trial in graph.trials],
            "largest_difference": difference,
        }  # fmt: skip
    facts = {
        "format": 1, "rpiae": importlib.metadata.version("rpiae"),
        "torch": torch.__version__, **also,
        "tokenizer_sha256": digest, "computed_in": dtype, "size": sizes.fixed,
        "unit": sizes.unit, "image_range": [0, 1], "latent_norm": _latent_norm(model),
        "tolerance": tolerance, "graphs": written,
    }  # fmt: skip
    write_text(folder / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
    return _told(model, sizes, written)


def _told(model: RPiAE, sizes: Sizes, written: Mapping[str, Mapping[str, Any]]) -> list[str]:
    unit = sizes.unit
    of = (
        "{}×{} pixels".format(*sizes.fixed)
        if sizes.fixed
        else f"sides in multiples of {unit} pixels"
    )
    differences = ", ".join(
        f"{each['largest_difference']:.1g} ({name})" for name, each in written.items()
    )
    told = [
        f"{' and '.join(each['file'] for each in written.values())} are of images with {of}, in any "
        f"number; {FACTS_FILE} says what goes in and comes out.",
        f"They were run and compared with the tokenizer: the largest differences are {differences}.",
        "Images go in as values in [0, 1], and come out not clamped to that.",
    ]
    if model.latent_mean is not None:
        told.append(
            f"Latents are raw: the latent_norm is in {FACTS_FILE}, for a diffusion model, and in no "
            "graph."
        )
    return told


def _latent_norm(model: RPiAE) -> dict[str, list[float]] | None:
    if model.latent_mean is None or model.latent_std is None:
        return None
    return {"mean": model.latent_mean.tolist(), "std": model.latent_std.tolist()}


def _known(dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise UsageError(unknown("dtype", dtype, DTYPES))
    return DTYPES[dtype]
