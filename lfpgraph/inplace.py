"""Passes over a static graph: all operations functional, as partitioning needs them; elementwise ones in place, as is quick.

In place, an operation writes over its argument where nothing reads that again; never over arguments of the graph,
results of the graph or views of either.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from .trace.graph import shape_of

__all__ = ["is_fresh", "is_view", "make_functional", "write_in_place"]

aten = torch.ops.aten

# Views through which writing is writing to the whole of what they view; a reshape may also copy, which is as good.
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
# Operations, elementwise ones apart, whose results are new memory on every backend.
_FRESH = {
    aten.addmm.default,
    aten.baddbmm.default,
    aten.bmm.default,
    aten.cat.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.embedding_dense_backward.default,
    aten.mean.dim,
    aten.mm.default,
    aten.native_batch_norm_backward.default,
    aten.native_group_norm_backward.default,
    aten.native_layer_norm_backward.default,
    aten._fused_rms_norm_backward.default,
    aten._softmax_backward_data.default,
    aten.sum.dim_IntList,
}
_NOT_FRESH = {aten.alias.default, aten.conj_physical.default, aten.detach.default}
_COMMUTE = {aten.add.Tensor, aten.mul.Tensor}


def make_functional(graph: fx.Graph) -> bool:
    """Replace in-place operations on values that nothing else reads; returns whether any other mutation is left."""
    for node in graph.nodes:
        op = node.target
        if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
            continue
        form, source = _functional_form(op), node.args[0]
        if form is None or not isinstance(source, fx.Node) or source.op != "call_function" or len(source.users) != 1:
            return False
        if is_view(source):
            return False
        if form is aten.bernoulli.p and len(node.args) == 1 and not node.kwargs:
            node.args = (source, 0.5)
        node.target = form
    return True


def _functional_form(op: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    if op is aten.bernoulli_.float:
        return aten.bernoulli.p
    name = op._schema.name.removeprefix("aten::")
    overloads = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    form = getattr(overloads, op._overloadname, None)
    return form if isinstance(form, torch._ops.OpOverload) and not form._schema.is_mutable else None


def write_in_place(graph: fx.Graph) -> int:
    """Change the graph; returns how many operations write over an argument now."""
    nodes = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    storage = _storages(nodes)
    holds: dict[object, list[fx.Node]] = {}
    for node, held in storage.items():
        holds.setdefault(held, []).append(node)
    last: dict[object, int] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            last[storage[source]] = max(last.get(storage[source], -1), order[node])
    written = 0
    for position, node in enumerate(nodes):
        target = _in_place_form(node)
        if target is None:
            continue
        for place in (0, 1) if node.target in _COMMUTE and not node.kwargs else (0,):
            if place == 1:
                node.args = (node.args[1], node.args[0], *node.args[2:])
            source = node.args[0]
            if _can_take(node, source, storage, last, position):
                node.target = target
                old, new = storage[node], storage[source]  # type: ignore[index]
                for other in holds[old]:  # the node's value lives where its argument's did
                    storage[other] = new
                holds[new] += holds.pop(old)
                last[new] = max(last[new], last.pop(old, -1))
                written += 1
                break
            if place == 1:
                node.args = (node.args[1], node.args[0], *node.args[2:])
    return written


def _storages(nodes: Iterable[fx.Node]) -> dict[fx.Node, object]:
    """What holds each node's value: a node, or a node and the index of its result."""
    found: dict[fx.Node, object] = {}
    for node in nodes:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and node.target is operator.getitem:
            found[node] = found[source] if is_view(source) else (source, node.args[1])
        elif isinstance(source, fx.Node) and is_view(node):
            found[node] = found[source]
        else:
            found[node] = node
    return found


def is_view(node: fx.Node) -> bool:
    """Whether the value lives in its argument's memory, or may."""
    if node.target is aten.reshape.default:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(r.alias_info is not None for r in node.target._schema.returns)


def _in_place_form(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operation's in-place form, for elementwise ones of the aten library that are not in place already."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or not _is_elementwise(op):
        return None
    name = op._schema.name.removeprefix("aten::")
    packet = getattr(aten, name + "_", None) if not name.endswith("_") else None
    overload = getattr(packet, op._overloadname, None) if packet is not None else None
    return overload if isinstance(overload, torch._ops.OpOverload) else None


def _is_write(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_elementwise(op: torch._ops.OpOverload) -> bool:
    return op.namespace == "aten" and torch.Tag.pointwise in op.tags


def _can_take(node: fx.Node, source: object, storage: dict[fx.Node, object], last: dict[object, int], at: int) -> bool:
    if not isinstance(source, fx.Node) or last[storage[source]] > at or not is_fresh(source):
        return False
    if any(storage[n] == storage[source] and n is not source for n in node.all_input_nodes):
        return False
    new, old = node.meta.get("val"), source.meta.get("val")
    if not isinstance(new, Tensor) or not isinstance(old, Tensor):
        return False
    return (
        shape_of(node) == shape_of(source)
        and new.dtype == old.dtype
        and new.device == old.device
        and old.is_floating_point()
    )


def is_fresh(node: fx.Node) -> bool:
    """Whether the value is memory that the graph itself has made, all of it and each place once."""
    while node.target in _WHOLE_VIEWS or _is_write(node):
        node = node.args[0]  # type: ignore[assignment]
    if node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    op = node.target
    if node.op != "call_function" or not isinstance(op, torch._ops.OpOverload) or op in _NOT_FRESH:
        return False
    return op in _FRESH or (_is_elementwise(op) and not is_view(node))
