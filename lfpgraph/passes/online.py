"""The joint graph cut so that nothing is kept between forward and feedback, for rules without reward through time.

Feedback runs the model once more, in its own order, and the signals of each operation as soon as all they need is
there: those of a loop's first step before the second step begins. Where no signal comes from later steps, no more than
one step is ever held, however many there are. Sums of parameter signals over the steps are taken in that order, too.
Random draws, and what leads to them, are kept as always: they are never drawn twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from ..graph.graph import ancestors
from .nodes import users_of
from .partition import build, random_nodes

__all__ = ["split_online"]

aten = torch.ops.aten


def split_online(traced: fx.GraphModule, n_values: int, n_outputs: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut the joint graph; arguments and results as `partition.split`."""
    graph = traced.graph
    after = users_of(_placeholders(graph)[n_values:], list(graph.nodes))
    drawn = {n for n in random_nodes(list(graph.nodes)) if n not in after and n.op != "placeholder"}
    ahead = drawn | ancestors(r for r in _results(graph)[:n_outputs] if isinstance(r, fx.Node))
    _sum_in_order(graph, after, ahead)
    nodes, results = list(graph.nodes), _results(graph)
    values, signals = _placeholders(graph)[:n_values], _placeholders(graph)[n_values:]
    asked = [r for r in results[n_outputs:] if isinstance(r, fx.Node)]
    needed = ancestors(asked, lambda n: n not in drawn)
    body = [n for n in _as_they_come(nodes, ahead) if n in needed and n.op == "call_function"]
    used = {source for n in body for source in n.all_input_nodes}.union(asked)
    saved = [n for n in nodes if n in used and (n in drawn or n in values)]
    forward = build(
        traced, values, [n for n in nodes if n in ahead and n.op != "placeholder"], [*results[:n_outputs], *saved]
    )
    return forward, build(traced, [*saved, *signals], body, results[n_outputs:])


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "placeholder"]


def _results(graph: fx.Graph) -> list[object]:
    return list(graph.output_node().args[0])  # type: ignore[arg-type]


def _moments(nodes: Sequence[fx.Node], ahead: set[fx.Node]) -> dict[fx.Node, int]:
    """For each node, the place of the last operation of the model that it waits for."""
    moments: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        waits = max((moments[n] for n in node.all_input_nodes), default=-1)
        moments[node] = place if node in ahead and node.op == "call_function" else waits
    return moments


def _as_they_come(nodes: Sequence[fx.Node], ahead: set[fx.Node]) -> list[fx.Node]:
    """The model's operations in their order, each followed by the signals that waited for it."""
    moments = _moments(nodes, ahead)
    return sorted((n for n in nodes if n.op != "output"), key=lambda n: (moments[n], n not in ahead))


def _sum_in_order(graph: fx.Graph, after: set[fx.Node], ahead: set[fx.Node]) -> None:
    """Rewrite sums of signals so that the terms which can be had first are added first."""
    moments = _moments(list(graph.nodes), ahead)
    inner = {n for n in graph.nodes if n in after and n.target is aten.add.Tensor and _is_plain(n)}
    for root in [n for n in graph.nodes if n in inner and not (len(n.users) == 1 and next(iter(n.users)) in inner)]:
        leaves, sums, stack = [], [], [root]
        while stack:
            node = stack.pop()
            if node in inner and (node is root or len(node.users) == 1):
                sums.append(node)
                stack += [a for a in node.args if isinstance(a, fx.Node)]
            else:
                leaves.append(node)
        if len(leaves) < 3:
            continue
        leaves.sort(key=lambda n: moments.get(n, len(moments)))
        total = leaves[0]
        with graph.inserting_before(root):
            for leaf in leaves[1:]:
                total = graph.call_function(aten.add.Tensor, (total, leaf))
                total.meta = dict(root.meta)
        root.replace_all_uses_with(total)
        for node in sums:  # from the root inwards
            graph.erase_node(node)


def _is_plain(node: fx.Node) -> bool:
    """A sum of two different tensors of one shape."""
    terms = [n for n in node.args if isinstance(n, fx.Node)]
    shapes = {tuple(map(str, n.meta["val"].shape)) for n in terms}
    return len(terms) == len(set(terms)) == 2 and not node.kwargs and len(shapes) == 1
