"""Writes in place of an exported graph as operations that return what is written, where that is plain to see.

torch's own way, functionalisation, traces the whole graph anew. Here are the writes that layers do: activations and sums in
place, and the statistics of batch norms. Views of what is written are left to torch.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from .cells import emit

__all__ = ["MAY_RETURN_SELF", "detach_what_is_read", "is_written", "put_after", "return_writes"]

_aten = torch.ops.aten
_NAMES = "add copy detach div elu hardsigmoid hardswish hardtanh leaky_relu mul relu sigmoid silu sub tanh".split()
_FORMS: dict[Any, OpOverload] = {
    getattr(written, name): getattr(getattr(_aten, op), name)
    for op in _NAMES
    for written in [getattr(_aten, f"{op}_")]
    for name in written.overloads()
    if name in getattr(_aten, op).overloads()
}
# Composite operations whose result lies in memory of its own; of the others that is said by their schema.
_OWN_MEMORY = {
    getattr(_aten, name).default
    for name in (
        "batch_norm conv1d conv2d conv3d group_norm instance_norm layer_norm linear matmul max_pool1d max_pool2d max_pool3d"
    ).split()
}
MAY_RETURN_SELF = {
    _aten.contiguous.default,
    _aten.expand_as.default,
    _aten.to.device,
    _aten.to.dtype,
    _aten.to.dtype_layout,
    _aten.to.other,
    _aten.type_as.default,
}


def return_writes(graph: fx.Graph) -> dict[fx.Node, fx.Node] | None:
    """Change the graph so that it writes nothing.

    Returns:
        For each placeholder that was written to what it holds in the end. None, and nothing is changed, where the graph
        has writes of another kind.
    """
    writes = {
        n for n in graph.nodes if isinstance(n.target, OpOverload) and (n.target._schema.is_mutable or _is_norm(n))
    }
    place = {node: i for i, node in enumerate(graph.nodes)}
    if not all(_is_plain_norm(node) if _is_norm(node) else _is_plain(node, place) for node in writes):
        return None
    held: dict[fx.Node, fx.Node] = {}
    for node in sorted(writes, key=place.__getitem__):
        for written, value in (_norm if _is_norm(node) else _write)(graph, node):
            at = place[value] = place[node]
            later = {user for user in written.users if place.get(user, at) > at}
            written.replace_all_uses_with(value, delete_user_cb=later.__contains__)
            first = next((p for p, last in held.items() if last is written), written)
            if first.op == "placeholder":
                held[first] = value
    return {node: held[node] for node in graph.nodes if node in held}


def _is_norm(node: fx.Node) -> bool:
    return node.target is _aten.batch_norm.default


def _is_plain_norm(node: fx.Node) -> bool:
    if len(node.args) != 9:  # some by name
        return False
    _, _, _, mean, variance, training, momentum, eps, _ = node.args
    tracked = mean is not None and variance is not None
    numbers = isinstance(momentum, float) and isinstance(eps, float)
    return numbers and isinstance(training, bool) and (tracked or mean is variance)


def _is_plain(node: fx.Node, place: dict[fx.Node, int]) -> bool:
    """Whether a write is one of a known kind, to memory that no view is of, and in the dtype of what is written to."""
    source = node.args[0] if node.target in _FORMS else None
    if not isinstance(source, fx.Node) or not (source.op == "placeholder" or _is_own(source)):
        return False
    own = node.meta["val"]
    if any(place[user] < place[node] and not _is_own(user) for user in source.users):
        return False
    others = [n.meta["val"] for n in node.all_input_nodes]
    return all(not isinstance(x, Tensor) or x.dtype == own.dtype for x in others) or node.target is _aten.copy_.default


def _is_own(node: fx.Node) -> bool:
    """Whether a node's value lies in memory that is no argument's, or in that of what it writes to."""
    op = node.target
    if not isinstance(op, OpOverload) or op in _OWN_MEMORY or op in _FORMS:
        return isinstance(op, OpOverload)
    composite = op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return not composite and not any(r.alias_info is not None for r in op._schema.returns)


def _write(graph: fx.Graph, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Replace a write; returns what was written to and what it holds now."""
    with graph.inserting_before(node):
        value = emit(graph, node, _FORMS[node.target], *node.args, **node.kwargs)
    source: Any = node.args[0]
    node.replace_all_uses_with(value)
    graph.erase_node(node)
    return [(source, value)]


def _norm(graph: fx.Graph, node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """The same of a batch norm, which writes its statistics while it trains."""
    x, w, b, mean, variance, training, *rest, _ = node.args
    statistics: list[Any] = [] if mean is None else [mean, variance]
    with graph.inserting_before(node):
        if not training:
            made = emit(graph, node, _aten._native_batch_norm_legit_no_training.default, x, w, b, mean, variance, *rest)
        elif statistics:
            op = _aten._native_batch_norm_legit_functional.default
            made = emit(graph, node, op, x, w, b, *statistics, True, *rest)
        else:
            made = emit(graph, node, _aten._native_batch_norm_legit.no_stats, x, w, b, True, *rest)
        result = emit(graph, node, operator.getitem, made, 0)
        after = [emit(graph, node, operator.getitem, made, 3 + i) for i in range(len(statistics) if training else 0)]
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    return list(zip(statistics, after))


def detach_what_is_read(body: fx.GraphModule) -> None:
    """Where a no_grad region writes to memory from outside it, detach what it reads: else reward would pass by the memory."""
    arguments = [n for n in body.graph.nodes if n.op == "placeholder"]
    written = [n for n in arguments if is_written(n)]
    for node in arguments if written else ():
        value = node.meta.get("val")
        if node not in written and isinstance(value, Tensor) and value.is_floating_point():
            put_after(body.graph, node, _aten.detach.default)
    if written:
        body.recompile()


def is_written(node: fx.Node) -> bool:
    """Whether something writes to a tensor, or to a view of it."""
    for user in node.users:
        op = user.target
        if not isinstance(op, OpOverload) or not user.args or user.args[0] is not node:
            continue
        if op._schema.is_mutable or ((op.is_view or op in MAY_RETURN_SELF) and is_written(user)):
            return True
    return False


def put_after(graph: fx.Graph, node: fx.Node, op: OpOverload) -> None:
    """Let all users of a node read an operation on it instead."""
    with graph.inserting_after(node):
        made = graph.call_function(op, (node,))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made, delete_user_cb=lambda other: other is not made)
