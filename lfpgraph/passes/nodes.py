"""Questions that several passes ask of a node: is it a view, is its value memory of its own, how large is it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx

__all__ = [
    "draws",
    "elements",
    "hint",
    "is_elementwise",
    "is_fresh",
    "is_view",
    "is_write",
    "size_in_bytes",
    "stays",
    "users_of",
]

aten = torch.ops.aten

# Views of the whole of their argument: a write to one writes all of it. A reshape may also copy, which is as good.
_WHOLE_VIEWS = {
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.t.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
}

# Operations, besides elementwise ones, whose results are new memory on every backend.
_FRESH = {
    aten._batch_norm_impl_index.default,
    aten._batch_norm_impl_index_backward.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.bmm.default,
    aten.cat.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.embedding_dense_backward.default,
    aten.mean.dim,
    aten.mm.default,
    aten.native_batch_norm.default,
    aten.native_batch_norm_backward.default,
    aten.native_group_norm_backward.default,
    aten.native_layer_norm_backward.default,
    aten._fused_rms_norm_backward.default,
    aten._softmax_backward_data.default,
    aten.stack.default,
    aten.sum.dim_IntList,
    torch.ops.lfpgraph.scaled_product.default,
}
_OURS = {"lfpgraph_loops", "lfpgraph_steps"}  # so do operations of our own for recurrent layers
# Elementwise by their tag, and yet the result may be the argument.
_NOT_FRESH = {aten.alias.default, aten.conj_physical.default, aten.detach.default}


def is_view(node: fx.Node) -> bool:
    """Whether the value lives in its argument's memory, or may."""
    if node.target is aten.reshape.default:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(r.alias_info is not None for r in node.target._schema.returns)


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def stays(node: fx.Node) -> bool:
    """Whether a node stays though nobody reads it: the graph's ends, what raises counters in place, and draws, since those
    that follow depend on them.
    """
    return node.op in ("placeholder", "output") or node.target is aten._foreach_add_.Scalar or draws(node)


def is_write(node: fx.Node) -> bool:
    """Whether a node writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def is_elementwise(op: torch._ops.OpOverload) -> bool:
    """Whether each entry of the result comes from the same entry of the first argument; of ATen's operations or ours."""
    return op.namespace in ("aten", "lfpgraph") and torch.Tag.pointwise in op.tags


def is_fresh(node: fx.Node) -> bool:
    """Whether the value is memory that the graph itself has allocated, all of that memory, and no entry twice."""
    while node.target in _WHOLE_VIEWS or is_write(node):
        node = node.args[0]  # type: ignore[assignment]
    if node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    op = node.target
    if node.op != "call_function" or not isinstance(op, torch._ops.OpOverload) or op in _NOT_FRESH:
        return False
    return op in _FRESH or op.namespace in _OURS or (is_elementwise(op) and not is_view(node))


def size_in_bytes(node: fx.Node) -> int:
    """Bytes of the node's value at the traced sizes."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return 0
    return elements(value) * value.element_size()


def elements(value: Tensor) -> int:
    """How many entries a value has at the traced sizes."""
    return math.prod(map(hint, value.shape))


def hint(size: int | torch.SymInt) -> int:
    """A size as a number: what it was when the graph was traced."""
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else 1


def users_of(roots: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The roots and, of `nodes` in their order, all that depend on one."""
    found = set(roots)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found
