"""Graphs as ONNX files, run by onnxruntime."""

from __future__ import annotations

import contextlib
import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rpiae.core.errors import MissingExtraError, RunError, UsageError
from rpiae.interop.graphs.tracing import Graph, reason_of

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

#: Version of ONNX's operators that files are in: the first with GELU.
OPSET = 20

_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx(dtype: torch.dtype) -> None:
    """Refuse what cannot be written and compared here.

    Raises:
        MissingExtraError: if a library is not installed.
        UsageError: if onnxruntime's CPU kernels do not compute in ``dtype``.
    """
    for name in _LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingExtraError(
                f"exporting to ONNX needs {', '.join(_LIBRARIES)}; {name} is not installed: pip "
                'install "rpiae[interop]"'
            ) from None
    if dtype == torch.bfloat16:
        raise UsageError(
            "onnxruntime does not compute in bf16 on CPUs, so the graphs could not be compared with "
            "the tokenizer: export to ONNX in fp32 or fp16"
        )


def save_onnx(graph: Graph, path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """Write a graph as ONNX; weights beyond 2 GB lie in a second file beside it.

    Returns:
        The file's graph, run by onnxruntime on the CPU: input → outputs.

    Raises:
        RunError: if torch cannot translate the graph, or onnxruntime cannot load it.
    """
    import onnxruntime

    given, *outputs = graph.shapes
    try:
        with _quiet():
            program = torch.onnx.export(
                graph.program, dynamo=True, verbose=False, opset_version=OPSET,
                input_names=[given], output_names=outputs,
            )  # fmt: skip
            assert program is not None
            _name_sides(program, graph)
            program.save(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:  # of torch, onnxscript or onnxruntime, each in its own ways
        raise RunError(
            f"the {graph.name} cannot be exported to ONNX: {reason_of(error)}{graph.way_out}"
        ) from error

    def run(values: Tensor) -> Sequence[Tensor]:
        return [torch.from_numpy(made) for made in session.run(None, {given: values.numpy()})]

    return run


def _name_sides(program: ONNXProgram, graph: Graph) -> None:
    """Replace torch's symbols in the shapes of a file by the graph's words."""
    from onnxscript import ir

    # Of "16*rows", torch has 16 times a symbol.
    words = [word for word in next(iter(graph.shapes.values())) if isinstance(word, str)]
    example = next(
        node.meta["val"] for node in graph.program.graph.find_nodes(op="placeholder")
        if node.name in graph.shapes
    )  # fmt: skip
    symbols = [
        str(s)
        for side in example.shape
        if not isinstance(side, int)
        for s in side.node.expr.free_symbols
    ]
    names = {s: word.rpartition("*")[2] for s, word in zip(symbols, words, strict=True)}

    def named(side: Any) -> Any:
        if not isinstance(side, ir.SymbolicDim) or side.value is None:
            return side
        return re.sub(r"\bs\d+\b", lambda found: names.get(found[0], found[0]), side.value)

    nodes = program.model.graph.all_nodes()
    outputs = (value for node in nodes for value in node.outputs)
    for value in (*program.model.graph.inputs, *outputs):
        if value.shape is not None:
            value.shape = ir.Shape([named(side) for side in value.shape])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings that torch and onnxscript have about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
