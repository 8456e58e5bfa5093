"""Passes over graphs of a recurrent step (`engine.slopes`): nothing twice, gate by gate, no factors with ones, only sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph.graph import shape_of
from ..native.operations import KNOWN

__all__ = ["by_gate", "leave_ones_out", "merge_alike", "of_sum"]

aten = torch.ops.aten


def merge_alike(graph: fx.Graph) -> None:
    """Of operations that are alike, keep the first: of such as draw nothing and write nothing.

    What lies in the memory of a result is left, so that two results stay apart. torch's own pass imports its compiler.
    """
    results = {_memory_of(node) for node in graph.output_node().all_input_nodes}
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or _memory_of(node) in results:
            continue
        kept = first.setdefault(repr((node.target, node.args, node.kwargs)), node)
        if kept is not node:
            node.replace_all_uses_with(kept)
            graph.erase_node(node)


def _memory_of(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None


def by_gate(graph: fx.Graph, gates: int) -> None:
    """Give the slopes at the gates gate by gate, and those at the product with the state as multiples of the others."""
    end = graph.output_node()
    found = list(end.args[0])  # type: ignore[arg-type]
    x_h, x_c, z_h, z_c = found[1:5]
    width = x_h.meta["val"].shape[-1] // gates
    if all(_is_factor_of(z, x) for x, z in ((x_h, z_h), (x_c, z_c)) if x is not None):
        factor = z_h if z_h is not x_h else None
        if factor is not None:
            with graph.inserting_before(end):
                ones = graph.call_function(aten.ones_like.default, (x_h,))
                ones.meta = dict(x_h.meta)
                found[5] = graph.call_function(factor.target, (ones, *factor.args[1:]))
                found[5].meta = dict(x_h.meta)
        found[3] = found[4] = None
    for place in range(1, 5):
        found[place] = None if found[place] is None and place > 2 else _gates_of(graph, found[place], gates, width)
    end.args = (found,)


def _is_factor_of(z: fx.Node, x: fx.Node) -> bool:
    """Whether z is x, or x times the epsilon factor of something."""
    return z is x or (z.target is torch.ops.lfpgraph.epsilon_factor.default and z.args[0] is x)


def _gates_of(graph: fx.Graph, node: fx.Node | None, gates: int, width: int) -> list[fx.Node | None]:
    """What a node holds for each gate, None for zeros."""
    if node is None:
        return [None] * gates
    if gates == 1:
        return [node]
    with graph.inserting_before(graph.output_node()):
        if (parts := _parts_of(graph, node, gates, width)) is not None:
            return parts
        return [graph.call_function(aten.slice.Tensor, (node, 1, i * width, (i + 1) * width)) for i in range(gates)]


def _parts_of(graph: fx.Graph, node: Any, gates: int, width: int) -> list[fx.Node | None] | None:
    """What is joined to a node, None for zeros, with the epsilon factor that the node has; None where it is not joined."""
    if node.target is aten.cat.default and len(node.args[0]) == gates:
        return [None if part.target is aten.zeros.default else part for part in node.args[0]]
    if node.target is not torch.ops.lfpgraph.epsilon_factor.default:
        return None
    parts, (of, *rest) = _parts_of(graph, node.args[0], gates, width), node.args[1:]
    for i, part in enumerate(parts or []):
        if part is not None:
            at = graph.call_function(aten.slice.Tensor, (of, 1, i * width, (i + 1) * width))
            parts[i] = graph.call_function(node.target, (part, at, *rest))  # type: ignore[index]
            parts[i].meta = dict(part.meta)  # type: ignore[index,union-attr]
    return parts


def leave_ones_out(graph: fx.Graph) -> None:
    """Replace products with ones by their other factor."""
    ones = {node for node in graph.nodes if node.target is aten.ones_like.default}
    for node in list(graph.nodes):
        if node.target is aten.mul.Tensor and ones & set(node.args):
            other = node.args[1] if node.args[0] in ones else node.args[0]
            if isinstance(other, fx.Node) and shape_of(other) == shape_of(node):
                node.replace_all_uses_with(other)
                ones |= {node} if other in ones else set()
    graph.eliminate_dead_code()


def of_sum(graph: fx.Graph) -> fx.Graph | None:
    """A step's graph that is given the sum of its two products in place of both; None where one of them is read by itself."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))  # type: ignore[arg-type]
    x, z = list(copied.nodes)[:2]
    for node in {*x.users, *z.users}:
        if node.target is aten.add.Tensor and set(node.args) == {x, z} and not node.kwargs:
            node.replace_all_uses_with(x)
            copied.erase_node(node)
        elif node.target not in KNOWN:
            return None
    z.replace_all_uses_with(x)
    copied.erase_node(z)
    return copied
