"""Constants of graphs: what depends on no input is computed once, and what nobody reads is left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx import Interpreter, Node


@torch.no_grad()
def fold_constants(program: ExportedProgram) -> None:
    """Compute, in place, what no input of a graph has a say in, and drop weights that nothing reads.

    Positions resampled for a fixed size become weights so, and the graph of one half of a model keeps
    that half's weights alone.
    """
    graph, signature = program.graph, program.graph_signature
    specs = dict(zip(graph.find_nodes(op="placeholder"), signature.input_specs, strict=True))
    known: dict[Node, Any] = {
        node: _stored(program, spec)
        for node, spec in specs.items()
        if spec.kind is not InputKind.USER_INPUT
    }
    interpreter = Interpreter(program.graph_module, garbage_collect_values=False)
    interpreter.env = known
    for node in graph.nodes:
        if node.op == "call_function" and all(each in known for each in node.all_input_nodes):
            known[node] = interpreter.run_node(node)
    first = next(iter(graph.nodes))
    for node, value in known.items():
        if node in specs or not isinstance(value, Tensor) or known.keys() >= node.users.keys():
            continue
        with graph.inserting_before(first):
            weight = graph.placeholder(f"folded_{node.name}")
        weight.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(weight, delete_user_cb=lambda user: user not in known)
        argument = TensorArgument(name=weight.name)
        specs[weight] = InputSpec(InputKind.BUFFER, argument, weight.name, persistent=True)
        program.state_dict[weight.name] = value.clone(memory_format=torch.contiguous_format)
    for node in reversed(known):
        if not node.users:
            graph.erase_node(node)
            if node in specs:
                _kept_in(program, specs[node]).pop(specs[node].target)
    signature.input_specs[:] = [specs[node] for node in graph.find_nodes(op="placeholder")]
    program.graph_module.recompile()
    program.validate()  # type: ignore[no-untyped-call]  # torch has no types for it


def _stored(program: ExportedProgram, spec: InputSpec) -> Any:
    return _kept_in(program, spec)[spec.target]


def _kept_in(program: ExportedProgram, spec: InputSpec) -> dict[Any, Any]:
    """Where a program keeps a weight, or another constant."""
    saved = spec.kind is InputKind.PARAMETER or spec.persistent
    tensors: dict[Any, Any] = program.state_dict if saved else program.constants
    return tensors
