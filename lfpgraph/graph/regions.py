"""Regions: runs of operations that together are one activation function or one normalisation.

Note [Implementation invariance]: the same function written differently must get the same feedback (Sundararajan et
al. 2017). A rule applied to each op of `0.5 * x * (1 + tanh(...))` would split the product and lose reward to the
constant; a fused gelu does neither. So single-entry, single-exit runs are found by structure alone and get one rule.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import fx

from ..registry import find_rule
from ..rules.norms import MEANS, ROOTS, SPREADS
from .graph import ACTIVE, WEIGHT, OpGraph, is_float

__all__ = ["Region", "active_positions", "find_regions"]

aten = torch.ops.aten
_MAX_RUN = 64
_REDUCTIONS = MEANS | SPREADS
_ROOTS = ROOTS | {aten.div.Tensor, aten.linalg_vector_norm.default, aten.std.correction}
_EXPANSIONS = {aten.expand.default, aten.unsqueeze.default}


@dataclass(frozen=True)
class Region:
    """Nodes in order, from the node `entry` (outside) to the last one; `kind` is "activation" or "normalisation"."""

    kind: str
    entry: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def exit(self) -> fx.Node:
        return self.nodes[-1]


def active_positions(graph: OpGraph, node: fx.Node) -> int:
    """How many tensor arguments of a node are active, a tensor used twice counting twice."""
    count = 0

    def visit(source: fx.Node) -> fx.Node:
        nonlocal count
        count += graph.info[source].kind == ACTIVE
        return source

    fx.node.map_arg((node.args, node.kwargs), visit)
    return count


def find_regions(graph: OpGraph) -> list[Region]:
    """All regions of the network part, disjoint, normalisations before activations."""
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    taken: set[fx.Node] = set()
    found: list[Region] = []
    for kind in ("normalisation", "activation"):
        for node in reversed(list(graph.graph.nodes)):
            region = None if node in taken else _region_ending_at(graph, node, kind, order, taken)
            if region is not None:
                found.append(region)
                taken.update(region.nodes)
    return found


def _eligible(graph: OpGraph, node: fx.Node, kind: str) -> bool:
    info = graph.info.get(node)
    if info is None or info.kind != ACTIVE or info.part != "network" or node.op != "call_function":
        return False
    entry = find_rule(node.target)
    if entry is None:
        return False
    if kind == "normalisation" and (node.target in _REDUCTIONS or node.target in _EXPANSIONS):
        return True
    return entry.family.elementwise


def _is_weighted_affine(graph: OpGraph, node: fx.Node) -> bool:
    """Adds or multiplies a weight-like tensor: a linear layer's part, with a rule of its own."""
    entry = find_rule(node.target)
    if entry is None or not entry.family.affine or active_positions(graph, node) != 1:
        return entry is not None and entry.family.name == "quotient" and _divides_by_weight(graph, node)
    return any(graph.info[source].kind == WEIGHT for source in node.all_input_nodes)


def _divides_by_weight(graph: OpGraph, node: fx.Node) -> bool:
    divisor = node.args[1]
    return isinstance(divisor, fx.Node) and graph.info[divisor].kind == WEIGHT


def _region_ending_at(
    graph: OpGraph, exit_: fx.Node, kind: str, order: dict[fx.Node, int], taken: set[fx.Node]
) -> Region | None:
    if not _eligible(graph, exit_, kind) or not is_float(exit_.meta.get("val")) or _is_weighted_affine(graph, exit_):
        return None
    run = _closed_run(graph, exit_, kind, order, taken)
    roots = {s for node in run for s in node.all_input_nodes if graph.info[s].kind == ACTIVE and s not in run}
    candidates = sorted(roots, key=order.__getitem__) if len(roots) == 1 else []
    candidates += sorted(run - {exit_}, key=order.__getitem__)
    for entry in candidates:
        nodes = _between(graph, entry, exit_, run)
        if nodes is None:
            continue
        entry, nodes = _trim(graph, entry, nodes, order)
        if len(nodes) < 2 or not _same_shape(entry, exit_) or not is_float(entry.meta.get("val")):
            continue
        ordered = tuple(sorted(nodes, key=order.__getitem__))
        accept = _normalises(ordered) if kind == "normalisation" else _is_activation(graph, ordered, exit_)
        if accept:
            return Region(kind, entry, ordered)
    return None


def _closed_run(
    graph: OpGraph, exit_: fx.Node, kind: str, order: dict[fx.Node, int], taken: set[fx.Node]
) -> set[fx.Node]:
    """The exit and the eligible nodes before it whose every user is in the run."""
    run: set[fx.Node] = set()
    heap = [(-order[exit_], exit_)]
    queued = {exit_}
    while heap and len(run) < _MAX_RUN:
        _, node = heapq.heappop(heap)
        if node is not exit_ and not all(user in run for user in node.users):
            continue
        run.add(node)
        for source in node.all_input_nodes:
            if source not in queued and source not in taken and _eligible(graph, source, kind):
                queued.add(source)
                heapq.heappush(heap, (-order[source], source))
    return run


def _between(graph: OpGraph, entry: fx.Node, exit_: fx.Node, run: set[fx.Node]) -> set[fx.Node] | None:
    """Nodes on the way from entry to exit, or None if an active value comes in beside the entry."""
    seen: set[fx.Node] = set()
    stack = [exit_]
    while stack:
        node = stack.pop()
        if node is entry or node in seen:
            continue
        if node not in run:
            return None
        seen.add(node)
        stack.extend(source for source in node.all_input_nodes if graph.info[source].kind == ACTIVE)
    return seen


def _trim(
    graph: OpGraph, entry: fx.Node, nodes: set[fx.Node], order: dict[fx.Node, int]
) -> tuple[fx.Node, set[fx.Node]]:
    """Leave a bias or scale of a layer before the run to the layer, so that a written-out bias equals a fused one."""
    while True:
        first = [node for node in entry.users if node in nodes]
        if len(first) != 1 or not _is_weighted_affine(graph, first[0]) or len(nodes) < 2:
            return entry, nodes
        entry, nodes = first[0], nodes - {first[0]}


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    return len(a.meta["val"].shape) == len(b.meta["val"].shape) and all(
        str(m) == str(n) for m, n in zip(a.meta["val"].shape, b.meta["val"].shape)
    )


def _is_activation(graph: OpGraph, nodes: tuple[fx.Node, ...], exit_: fx.Node) -> bool:
    """Elementwise in one shape, and more than an affine map."""
    if not all(_same_shape(node, exit_) for node in nodes):
        return False
    return any(_nonlinear(graph, node) for node in nodes)


def _nonlinear(graph: OpGraph, node: fx.Node) -> bool:
    entry = find_rule(node.target)
    assert entry is not None
    if entry.family.name == "quotient":
        divisor = node.args[1]
        return isinstance(divisor, fx.Node) and graph.info[divisor].kind == ACTIVE
    if entry.family.name == "product":
        return active_positions(graph, node) > 1
    return not entry.family.affine


def _normalises(nodes: tuple[fx.Node, ...]) -> bool:
    targets = {node.target for node in nodes}
    return bool(targets & _REDUCTIONS) and bool(targets & _ROOTS)
