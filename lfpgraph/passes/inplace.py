"""A pass over a static graph: elementwise operations work in place, which is quick.

An operation writes over its argument where nothing reads that again; never over arguments of the graph, results of the
graph or views of either.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from ..graph.graph import shape_of
from .nodes import is_elementwise, is_fresh, is_view

__all__ = ["storages", "write_in_place"]

aten = torch.ops.aten

_COMMUTE = {aten.add.Tensor, aten.mul.Tensor}


def write_in_place(graph: fx.Graph) -> int:
    """Change the graph; returns how many operations write over an argument now."""
    nodes = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    storage = storages(nodes)
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


def storages(nodes: Iterable[fx.Node]) -> dict[fx.Node, object]:
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


def _in_place_form(node: fx.Node) -> torch._ops.OpOverload | None:
    """The in-place form of an elementwise operation, of ATen's or ours; None where there is none or it is one already."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or not is_elementwise(op):
        return None
    name = op._schema.name.partition("::")[2]
    packet = getattr(getattr(torch.ops, op.namespace), name + "_", None) if not name.endswith("_") else None
    overload = getattr(packet, op._overloadname, None) if packet is not None else None
    return overload if isinstance(overload, torch._ops.OpOverload) else None


def _can_take(node: fx.Node, source: object, storage: dict[fx.Node, object], last: dict[object, int], at: int) -> bool:
    """Whether the node, at its place in the graph, may write its result over `source`."""
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
