"""The joint graph cut in two: what forward runs and keeps, and what feedback runs."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .trace.graph import ancestors

__all__ = ["split"]

aten = torch.ops.aten
_RECOMPUTED = {
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split.Tensor,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.reshape.default,
    aten.view.default,
}


def split(traced: fx.GraphModule, n_values: int, n_outputs: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut the joint graph: ancestors of the outputs are forward, the rest is feedback, views are computed twice.

    Args:
        traced: placeholders are `n_values` values and then the signals; results are `n_outputs` outputs and then signals.

    Returns:
        Forward, values -> [outputs..., saved...], and feedback, [saved..., signals...] -> signals.
    """
    nodes = list(traced.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    values, signals = placeholders[:n_values], placeholders[n_values:]
    results = list(nodes[-1].args[0])
    from_signals = _users_of(signals, nodes)
    ahead = ancestors([r for r in results[:n_outputs] if isinstance(r, fx.Node)])
    ahead |= {n for n in _random_nodes(nodes) if n not in from_signals}
    ahead |= {n for n in nodes if n.target is operator.getitem and n.args[0] in ahead}
    feedback_nodes = [n for n in nodes if n.op not in ("placeholder", "output") and n not in ahead]
    recompute = _views_to_recompute(feedback_nodes, ahead)
    inside = set(feedback_nodes) | recompute
    available = set(ahead) | set(values)
    saved: list[fx.Node] = []
    for node in itertools.chain(recompute, feedback_nodes):
        saved += [n for n in node.all_input_nodes if n in available and n not in inside and n not in saved]
    saved += [r for r in results[n_outputs:] if isinstance(r, fx.Node) and r in available and r not in saved]
    order = {node: i for i, node in enumerate(nodes)}
    saved.sort(key=order.__getitem__)
    body = sorted(inside, key=order.__getitem__)
    forward = _build(
        traced,
        values,
        [n for n in nodes if n in ahead and n.op != "placeholder"],
        results[:n_outputs] + saved,
    )
    return forward, _build(traced, [*saved, *signals], body, results[n_outputs:])


def _users_of(roots: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(roots)
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _random_nodes(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Random operations and what they need: drawn in the forward pass, never again."""
    random = [
        n
        for n in nodes
        if isinstance(n.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in n.target.tags
    ]
    return ancestors(random)


def _views_to_recompute(feedback: Sequence[fx.Node], ahead: set[fx.Node]) -> set[fx.Node]:
    """Views among what feedback needs of forward: cheaper to take again than to keep."""
    found: set[fx.Node] = set()
    stack = [source for node in feedback for source in node.all_input_nodes]
    while stack:
        node = stack.pop()
        if node in ahead and node not in found and node.op == "call_function" and node.target in _RECOMPUTED:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def _build(
    owner: fx.GraphModule,
    inputs: Sequence[fx.Node],
    body: Sequence[fx.Node],
    results: Sequence[Any],
) -> fx.GraphModule:
    """A graph module of `body` with `inputs` as placeholders."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        env[node] = graph.placeholder(node.name)
        env[node].meta = dict(node.meta)
    for node in body:
        env[node] = graph.node_copy(node, lambda n: env[n])
    graph.output([env[r] if isinstance(r, fx.Node) else r for r in results])
    graph.lint()
    return fx.GraphModule(owner, graph)
