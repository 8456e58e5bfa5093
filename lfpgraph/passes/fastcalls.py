"""A static graph as a quick Python function: the operations that PyTorch binds by hand are called by that binding.

`torch.ops.aten.mul.Tensor(a, b)` parses its arguments by schema and takes twice the time of `torch.mul(a, b)`, which small
models feel: a step of theirs is hundreds of such calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._prims_common import suggest_memory_format

from ..kernels import KERNELS
from ..native import matmul
from ..native.passes import LEAST, begin
from ..rules.loops import ADDED, LSTM, RECURRENT, added_over
from ..secants.operations import OPERATIONS
from .inplace import last_readers
from .nodes import elements, hint

__all__ = ["quick_module", "quick_products"]

# Operations whose binding in the torch namespace takes the arguments of the schema, in its order and by its names.
_FUNCTIONS = (
    "_batch_norm_impl_index abs add addcdiv addcmul addmm baddbmm bmm cat clone convolution copysign cos div exp exp2 log "
    "mean mm mul native_batch_norm native_layer_norm neg permute pow reciprocal relu reshape rsqrt sigmoid sin sqrt squeeze "
    "sub sum t tanh transpose unsqueeze where"
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
    found[torch.ops.aten.linalg_vector_norm.default] = torch.linalg.vector_norm
    found[torch.ops.aten._foreach_norm.Scalar] = torch._foreach_norm
    found[torch.ops.aten._foreach_add_.Scalar] = torch._foreach_add_
    return found


def _in_order(op: Any, *places: int, order: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """An operation whose kernel takes some of its arguments to lie in order in memory, without looking.

    The kernel was chosen while tracing, by strides that real tensors may not have.

    Args:
        order: brings an argument in order, given the last of them.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        last = args[places[-1]]
        return op(*(order(x, last) if i in places else x for i, x in enumerate(args)), **kwargs)

    run.__name__ = op.__name__
    return run


def _with_rows(x: Tensor, _: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _laid_out_as(x: Tensor, other: Tensor) -> Tensor:
    return x.contiguous(memory_format=suggest_memory_format(other))


def _fragile() -> dict[Any, Callable[..., Any]]:
    """Kernels of fused attention, which take rows (of queries, signals and so on) to lie in order, and those of group norms."""
    aten = torch.ops.aten
    group_norm, group_norm_backward = aten.native_group_norm.default, aten.native_group_norm_backward.default
    found = {
        group_norm: _in_order(group_norm, 0, order=_laid_out_as),
        group_norm_backward: _in_order(group_norm_backward, 0, 1, order=_laid_out_as),
    }
    for kernel in ("flash_attention_for_cpu", "flash_attention", "cudnn_attention", "efficient_attention"):
        forward = getattr(aten, f"_scaled_dot_product_{kernel}").default
        backward = getattr(aten, f"_scaled_dot_product_{kernel}_backward").default
        out = 5 if kernel == "efficient_attention" else 4  # its fifth argument is a mask
        found[forward] = _in_order(forward, 0, 1, 2, order=_with_rows)
        found[backward] = _in_order(backward, 0, 1, 2, 3, out, order=_with_rows)
    return found


_QUICK = _table() | _fragile()
_VIEWS = {torch.ops.aten.reshape.default, torch.reshape}
_STEPS = {ADDED, LSTM, RECURRENT}
# Operations that run in C where it is compiled, and which argument's size says whether that is worth it.
_LOOKED_AT = {
    **OPERATIONS,
    torch.ops.lfpgraph.scale_by_floored_size.default: 1,
    torch.ops.lfpgraph.scale_by_floored_size_.default: 1,
}
_WORTH_A_CALL = 8  # times the least product that is quicker by oneDNN: from there on a compiled graph calls one
_PRODUCTS = {torch.ops.aten.mm.default: matmul.mm, torch.ops.aten.addmm.default: matmul.addmm}


def quick_module(module: fx.GraphModule, walk: bool = False) -> fx.GraphModule:
    """A copy of the module that calls the quick bindings, and our own operations past the dispatcher.

    Args:
        walk: it is a walk back, whose products may come from the quicker library; else only those may that recurrent layers read.
    """
    quick = _QUICK | _PRODUCTS if walk else _QUICK
    graph = _copied(module.graph)
    over = last_readers(graph, ADDED)
    for node in graph.nodes:
        if (place := _LOOKED_AT.get(node.target)) is not None:
            x = node.args[place].meta["val"]  # of the sizes that were traced
            if x.device.type == "cpu" and elements(x) >= LEAST:
                begin(x.dtype)
        if node.op == "call_function" and node.target in quick:
            own = node.target in _PRODUCTS and _is_of_steps(node)
            node.target = _PRODUCTS[node.target] if own else quick[node.target]
    for node in over:
        node.target = added_over
    return fx.GraphModule(module, graph)


def quick_products(module: fx.GraphModule, walk: bool) -> fx.GraphModule:
    """For a compiler: the module with its large products by the quicker library where `quick_module` has them so, a copy then."""
    if not matmul.onednn_is_quicker():
        return module
    graph = _copied(module.graph)
    for node in graph.nodes:
        operation = matmul.OPERATIONS.get(node.target) if not node.kwargs else None
        if operation is not None and (walk or _is_of_steps(node)):
            a, b = (n.meta["val"] for n in node.args[-2:])
            plain = a.device.type == "cpu" and a.dtype is torch.float32
            if plain and hint(a.shape[0]) * hint(a.shape[1]) * hint(b.shape[1]) >= _WORTH_A_CALL * matmul.least():
                node.target = operation
    return fx.GraphModule(module, graph)


def _copied(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))  # type: ignore[arg-type]
    copy.set_codegen(graph._codegen)
    return copy


def _is_of_steps(product: fx.Node) -> bool:
    """Whether the steps of a recurrent layer alone read a product (and the walk back, which gets it with the outputs)."""
    read_by = [user for view in product.users for user in view.users if view.target in _VIEWS]
    others = [user for user in product.users if user.target not in _VIEWS and user.op != "output"]
    return bool(read_by) and not others and all(user.target in _STEPS for user in read_by)
