"""Regions: runs of operations that together are one activation function or one normalisation.

Note [Implementation invariance]: the same function written differently must get the same feedback (Sundararajan et
al. 2017). A rule applied to each op of `0.5 * x * (1 + tanh(...))` would split the product and lose reward to the
constant; a fused gelu does neither. So single-entry, single-exit runs are found by structure alone and get one rule.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import fx

from ..registry import ACTIVATION, COMPARISON, NORMALISATION, PRODUCT, QUOTIENT, Family
from ..rules.norms import MEANS, ROOTS, SPREADS
from .graph import ACTIVE, WEIGHT, OpGraph, is_float, shape_of

__all__ = ["Region", "active_positions", "find_regions", "let_entries_give_sizes", "may_join"]

aten = torch.ops.aten
_MAX_RUN = 64
_REDUCTIONS = MEANS | SPREADS
_ROOTS = ROOTS | {aten.div.Tensor, aten.linalg_vector_norm.default, aten.std.correction}
_ASK_SIZES = {  # and type, of a tensor whose numbers they do not read
    aten.empty_like.default, aten.full_like.default, aten.new_empty.default, aten.new_full.default, aten.new_ones.default,
    aten.new_zeros.default, aten.ones_like.default, aten.rand_like.default, aten.rand_like.generator, aten.randint_like.default,
    aten.randint_like.low_dtype, aten.randn_like.default, aten.randn_like.generator, aten.zeros_like.default,
}  # fmt: skip
_EXPANSIONS = {aten.expand.default, aten.expand_as.default, aten.unsqueeze.default}


@dataclass(frozen=True)
class Region:
    """Nodes in order, from the node `entry` (outside) to the last one; `family` is ACTIVATION or NORMALISATION."""

    family: Family
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


def let_entries_give_sizes(graph: OpGraph) -> None:
    """Have what asks a value within a region for its size and type ask the region's entry, if that is laid out alike. In place.

    So that value has no reader outside, and a function with a mask of its own making (`v * torch.ones_like(v)`) is one function.
    A live run sees nothing of a question whose answer is written to before it is read.
    """
    asking = [node for node in graph.graph.nodes if node.target in _ASK_SIZES and isinstance(node.args[0], fx.Node)]
    for user in asking:
        source = user.args[0]
        while len(source.users) == 1 and _may_be_left_out(graph, source):
            other = _alike(source, source.all_input_nodes)
            if other is None:
                break
            _ask_instead(user, source, other)
            graph.graph.erase_node(source)
            source = other
    for region in find_regions(graph, sizes=False) if asking else ():
        inside = {*region.nodes}
        for node in region.nodes[:-1]:
            if _alike(node, [region.entry]) is not None:
                for user in [u for u in node.users if u not in inside]:
                    _ask_instead(user, node, region.entry)
    if asking:
        graph.module.recompile()


def _may_be_left_out(graph: OpGraph, node: fx.Node) -> bool:
    """Whether an operation that nobody reads the numbers of might be part of a region, and draws no numbers itself."""
    family = graph.info[node].family
    joins = family is not None and (family.elementwise or family is COMPARISON)
    return joins and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def _ask_instead(user: fx.Node, source: fx.Node, other: fx.Node) -> None:
    user.kwargs = {"dtype": source.meta["val"].dtype, **user.kwargs}
    user.replace_input_with(source, other)


def _alike(node: fx.Node, others: Sequence[fx.Node]) -> fx.Node | None:
    """The first of other nodes whose tensor has this one's sizes and strides, or of which a new one like it has.

    What is made like a part of a tensor (`x[:, :3]`) is laid out as if that were a whole: by rows, where it lies by rows.
    """

    def layout(node: fx.Node) -> Any:
        value: Any = node.meta.get("val")
        is_one = isinstance(value, torch.Tensor) and value.layout is torch.strided
        if not is_one:
            return None
        strides = list(value.stride())
        by_rows = all(isinstance(n, int) for n in strides) and all(a > b for a, b in pairwise([*strides, 0]))
        return shape_of(node), value.device, by_rows or [str(n) for n in strides]

    wanted = layout(node)
    return next((n for n in others if wanted is not None and layout(n) == wanted), None)


def find_regions(graph: OpGraph, sizes: bool = True) -> list[Region]:
    """All regions of the network part, disjoint, normalisations before activations.

    Args:
        sizes: a value that is asked for its size is read; else as if nobody asked.
    """
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    taken: set[fx.Node] = set()
    found: list[Region] = []
    for family in (NORMALISATION, ACTIVATION):
        eligible = [node for node in order if _eligible(graph, node, family)]
        if len(eligible) < 2 or (family is NORMALISATION and not any(n.target in _ROOTS for n in eligible)):
            continue
        for node in reversed(eligible):
            region = None if node in taken else _region_ending_at(graph, node, family, order, taken, sizes)
            if region is not None:
                found.append(region)
                taken.update(region.nodes)
    return found


def may_join(op: object, family: Family | None) -> bool:
    """Whether an operation may be part of a region; whether its tensors have one shape can decide that."""
    return op in _REDUCTIONS or op in _EXPANSIONS or (family is not None and family.elementwise)


def _eligible(graph: OpGraph, node: fx.Node, family: Family) -> bool:
    """Whether a node may belong to a region of the family."""
    info = graph.info[node]
    if info.kind != ACTIVE or info.part != "network" or info.family is None or info.selects is not None:
        return False
    if family is NORMALISATION and (node.target in _REDUCTIONS or node.target in _EXPANSIONS):
        return True
    return info.family.elementwise


def _is_weighted_affine(graph: OpGraph, node: fx.Node) -> bool:
    """Adds or multiplies a weight-like tensor: a linear layer's part, with a rule of its own."""
    family = graph.info[node].family
    if family is QUOTIENT:
        return _divisor_kind(graph, node) == WEIGHT
    if family is None or not family.affine or active_positions(graph, node) != 1:
        return False
    return any(graph.info[source].kind == WEIGHT for source in node.all_input_nodes)


def _divisor_kind(graph: OpGraph, node: fx.Node) -> str | None:
    """The class of what a node divides by; None for a number."""
    divisor = node.args[1]
    return graph.info[divisor].kind if isinstance(divisor, fx.Node) else None


def _region_ending_at(
    graph: OpGraph, exit_: fx.Node, family: Family, order: dict[fx.Node, int], taken: set[fx.Node], sizes: bool
) -> Region | None:
    """The longest region of the family that ends at a node that may belong to one."""
    if not is_float(exit_.meta.get("val")) or _is_weighted_affine(graph, exit_):
        return None
    run = _closed_run(graph, exit_, family, order, taken, frozenset() if sizes else _ASK_SIZES)
    roots = {s for node in run for s in node.all_input_nodes if graph.info[s].kind == ACTIVE and s not in run}
    candidates = sorted(roots, key=order.__getitem__) if len(roots) == 1 else []
    candidates += sorted(run - {exit_}, key=order.__getitem__)
    for entry in candidates:
        nodes = _between(graph, entry, exit_, run)
        if nodes is None:
            continue
        entry, nodes = _trim(graph, entry, nodes)
        if len(nodes) < 2 or shape_of(entry) != shape_of(exit_) or not is_float(entry.meta.get("val")):
            continue
        ordered = tuple(sorted(nodes, key=order.__getitem__))
        accept = _normalises(graph, ordered) if family is NORMALISATION else _is_activation(graph, ordered)
        if accept:
            return Region(family, entry, ordered)
    return None


def _closed_run(
    graph: OpGraph, exit_: fx.Node, family: Family, order: dict[fx.Node, int], taken: set[fx.Node], unread: Set[object]
) -> set[fx.Node]:
    """The exit and the eligible nodes before it whose every user is in the run, or is one of these operations."""
    run: set[fx.Node] = set()
    heap = [(-order[exit_], exit_)]
    queued = {exit_}
    while heap and len(run) < _MAX_RUN:
        _, node = heapq.heappop(heap)
        if node is not exit_ and not all(user in run or user.target in unread for user in node.users):
            continue
        run.add(node)
        for source in node.all_input_nodes:
            if source not in queued and source not in taken and _eligible(graph, source, family):
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


def _trim(graph: OpGraph, entry: fx.Node, nodes: set[fx.Node]) -> tuple[fx.Node, set[fx.Node]]:
    """Leave a bias or scale of a layer before the run to the layer, so that a written-out bias equals a fused one."""
    while True:
        first = [node for node in entry.users if node in nodes]
        if len(first) != 1 or not _is_weighted_affine(graph, first[0]) or len(nodes) < 2:
            return entry, nodes
        entry, nodes = first[0], nodes - {first[0]}


def _is_activation(graph: OpGraph, nodes: tuple[fx.Node, ...]) -> bool:
    """Elementwise in one shape, and more than an affine map."""
    same_shape = all(shape_of(node) == shape_of(nodes[-1]) for node in nodes)
    return same_shape and any(_nonlinear(graph, node) for node in nodes)


def _nonlinear(graph: OpGraph, node: fx.Node) -> bool:
    """Whether a node of a run is no affine map of the run's entry."""
    family = graph.info[node].family
    assert family is not None
    if family is QUOTIENT:
        return _divisor_kind(graph, node) == ACTIVE
    if family is PRODUCT:
        return active_positions(graph, node) > 1
    return not family.affine


def _normalises(graph: OpGraph, nodes: tuple[fx.Node, ...]) -> bool:
    """Whether something meets statistics of its own there; a norm that is expanded to the shape of what it is of is none."""
    targets = {node.target for node in nodes}
    meets = any(len({n for n in node.all_input_nodes if graph.info[n].kind == ACTIVE}) > 1 for node in nodes)
    return meets and bool(targets & _REDUCTIONS) and bool(targets & _ROOTS)
