"""Passes over a static graph: operations work in place, which is quick.

An elementwise operation writes over its argument where nothing reads that again; never over arguments of the graph, results of
the graph or views of either. Batch norms write their running statistics, and counters of calls are raised, in the buffers
themselves, where nothing else reads these.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..graph.graph import shape_of
from .nodes import is_elementwise, is_fresh, is_view

__all__ = ["raise_counters", "last_readers", "storages", "write_in_place", "write_statistics"]

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


def last_readers(graph: fx.Graph, op: torch._ops.OpOverload) -> list[fx.Node]:
    """The nodes of an operation that may write over their first argument: memory of the graph's own, read by none behind them."""
    if not graph.find_nodes(op="call_function", target=op):
        return []
    storage = storages(graph.nodes)
    last = {storage[source]: node for node in graph.nodes for source in node.all_input_nodes}
    found = []
    for node in graph.find_nodes(op="call_function", target=op):
        held: Any = storage[node.args[0]]
        if last[held] is node and is_fresh(held[0] if isinstance(held, tuple) else held):
            found.append(node)
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


class _Buffers:
    """What a graph is given of buffers, and the new values that it returns for them.

    Args:
        places: for each of the graph's first results, which of its placeholders is the buffer that it is the new value of.
    """

    def __init__(self, graph: fx.Graph, places: Sequence[int | None]) -> None:
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.places, self.end = places, graph.output_node()
        self.results: list[Any] = list(self.end.args[0])  # type: ignore[arg-type]

    def place(self, new: fx.Node | None, old: Any) -> int | None:
        """Which result a buffer's new value is; None where anything but that reads it, or reads the old one a second time."""
        if new is None or set(new.users) != {self.end} or self.results.count(new) != 1 or len(old.users) != 1:
            return None
        i = self.results.index(new)
        place = self.places[i] if i < len(self.places) else None
        return None if place is None or self.inputs[place] is not old else i

    def drop(self, graph: fx.Graph, ends: Sequence[int]) -> set[int]:
        """Return None for these results; the answer is which placeholders they are of."""
        nodes = [self.results[i] for i in ends]
        for i in ends:
            self.results[i] = None
        self.end.args = (list(self.results),)
        for node in nodes:
            graph.erase_node(node)
        return {place for i in ends if (place := self.places[i]) is not None}


def write_statistics(graph: fx.Graph, places: Sequence[int | None]) -> set[int]:
    """Let batch norms in training write their running statistics themselves, and on a GPU run by the kernels that eager ones do.

    In place of the new statistics the graph then returns None.

    Args:
        graph: forward and feedback as one, functional.
        places: as of `_Buffers`.

    Returns:
        The places of the buffers that the graph writes.
    """
    for node in graph.nodes:
        if node.target is aten.native_batch_norm_backward.default and node.args[7] is True:
            node.args = (*node.args[:3], None, None, *node.args[5:])  # it asks for the batch's own statistics alone
    buffers, written = _Buffers(graph, places), set[int]()
    for node in list(graph.nodes):
        if node.target is not aten._native_batch_norm_legit_functional.default or node.args[5] is not True:
            continue
        items = {user.args[1]: user for user in node.users}
        ends = [i for k in (3, 4) if (i := buffers.place(items.get(k), node.args[k])) is not None]
        if 0 in items and len(items) == len(node.users) and len(ends) == 2:
            written |= buffers.drop(graph, ends)
            _take_eager_form(graph, node, items)
    return written


def _take_eager_form(graph: fx.Graph, node: fx.Node, items: Mapping[Any, fx.Node]) -> None:
    """Make a batch norm, whose results are `items`, the operation that eager code runs."""
    x: Tensor = items[0].meta["val"]
    found = node.meta["val"][:3]
    if not x.is_cuda:
        node.target, node.meta["val"] = aten.native_batch_norm.default, found
        return
    node.target, node.args = aten._batch_norm_impl_index.default, (*node.args, torch.backends.cudnn.enabled)
    node.meta["val"] = (*found, x.new_empty([0], dtype=torch.uint8), 0)
    with graph.inserting_after(node):
        kind, kept = (graph.call_function(operator.getitem, (node, i)) for i in (4, 3))
    kind.meta["val"], kept.meta["val"] = node.meta["val"][4], node.meta["val"][3]
    mean, invstd = items.get(1), items.get(2)
    for user in [] if mean is None else list(mean.users):
        if user.target is aten.native_batch_norm_backward.default and user.args[5:8] == (mean, invstd, True):
            s, x_given, weight, *rest = user.args
            user.target = aten._batch_norm_impl_index_backward.default
            user.args = (kind, x_given, s, weight, *rest, kept)


def raise_counters(graph: fx.Graph, places: Sequence[int | None]) -> set[int]:
    """Raise all counters of calls by one operation, in place; takes and returns what `write_statistics` does."""
    buffers = _Buffers(graph, places)
    groups: dict[Any, list[int]] = {}
    for node in graph.nodes:
        if node.target is aten.add.Tensor and not node.kwargs and isinstance(node.args[1], int):
            old, step = node.args
            i = buffers.place(node, old)
            if i is not None and node.meta["val"].dtype is torch.int64 is old.meta["val"].dtype:  # type: ignore[union-attr]
                groups.setdefault((node.meta["val"].device, step), []).append(i)
    written: set[int] = set()
    for (_, step), ends in groups.items():
        first = buffers.results[ends[0]]
        with graph.inserting_before(first):
            graph.call_function(aten._foreach_add_.Scalar, ([buffers.results[i].args[0] for i in ends], step))
        written |= buffers.drop(graph, ends)
    return written
