"""A static graph as a quick Python function: the operations that PyTorch binds by hand are called by that binding.

`torch.ops.aten.mul.Tensor(a, b)` parses its arguments by schema and takes twice the time of `torch.mul(a, b)`, which small
models feel: a step of theirs is hundreds of such calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..kernels import KERNELS

__all__ = ["quick_module"]

# Operations whose binding in the torch namespace takes the arguments of the schema, in its order and by its names.
_FUNCTIONS = (
    "abs addcdiv addcmul addmm baddbmm bmm cat clone convolution copysign cos div exp exp2 log mm mul native_layer_norm neg "
    "permute pow reciprocal relu reshape rsqrt sigmoid sin sqrt squeeze sub sum t tanh transpose unsqueeze where add mean"
).split()
_METHODS = ("abs_ add_ addcdiv_ addcmul_ copysign_ div_ exp_ expand mul_ neg_ relu_ sub_ sigmoid_ tanh_").split()
_OVERLOADS = {
    "default", "Tensor", "Scalar", "dim", "dims", "dim_IntList", "int", "self", "Tensor_Scalar", "Tensor_Tensor",
}  # fmt: skip


def _table() -> dict[Any, Callable[..., Any]]:
    found: dict[Any, Callable[..., Any]] = dict(KERNELS)
    for names, owner in ((_FUNCTIONS, torch), (_METHODS, Tensor)):
        for name in names:
            packet = getattr(torch.ops.aten, name)
            for overload in packet.overloads():
                if overload in _OVERLOADS:
                    found[getattr(packet, overload)] = getattr(owner, name)
    return found


_QUICK = _table()


def quick_module(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of the module that calls the quick bindings, and our own operations past the dispatcher."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))  # type: ignore[arg-type]
    graph.set_codegen(module.graph._codegen)
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _QUICK:
            node.target = _QUICK[node.target]
    return fx.GraphModule(module, graph)
