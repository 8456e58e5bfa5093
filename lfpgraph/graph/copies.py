"""Copies of operations, so that others can be taken together as one function (`regions`), whoever else reads them.

A comparison that several operations read is copied for each of them. `fired = u > 1; spikes = fired.float();
u = torch.where(fired, 0, u)` is two functions of u. Comparisons cost little, and reward passes one only inside a run that
comes back to float.

What only leads to where no reward comes from (a running mean, a mask or a detached value among the outputs) gets a copy, too: a
normalisation is one whether or not its statistics are kept. A live run sees nothing of what is made under no_grad.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..registry import COMPARISON, NOTHING
from .graph import DETACH, OpGraph, family_of, is_float
from .regions import may_join

__all__ = ["copy_for_the_idle", "copy_shared_comparisons"]


def copy_shared_comparisons(graph: OpGraph) -> dict[fx.Node, fx.Node]:
    """Give every user of a comparison one of its own. In place; the graph computes the same. Returns of what each copy is one."""
    copies: dict[fx.Node, fx.Node] = {}
    for node in reversed(list(graph.graph.nodes)):
        if family_of(node) is not COMPARISON or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        for user in [user for user in node.users if user.op != "output"][1:]:
            with graph.graph.inserting_after(node):
                own = graph.graph.node_copy(node, lambda source: source)
            user.replace_input_with(node, own)
            copies[own] = node
    if copies:
        graph.module.recompile()
    return copies


def copy_for_the_idle(graph: OpGraph) -> dict[fx.Node, fx.Node]:
    """Give operations that no reward reaches their own copies of what might be part of a region. In place. Returns likewise."""
    if not _has_idle(graph):
        return {}
    copies = _copied(graph, _reached(graph, frozenset()), len(graph.graph.nodes))
    # A membrane that a detached reset reads is read by several others; its copy would need one of all its past.
    if any(node.target in DETACH for node in graph.operations()):
        copies |= _copied(graph, _reached(graph, DETACH), 1)
    if copies:
        graph.module.recompile()
    return copies


def _has_idle(graph: OpGraph) -> bool:
    """Whether an operation that is made of a value with reward may be one that no reward reaches, if all lead to an output."""
    floats = all(isinstance(n, fx.Node) and is_float(n.meta.get("val")) for n in graph.output_nodes)
    if graph.mutations or graph.input_mutations or not floats:
        return True
    return any(family_of(node) is NOTHING or node.target in DETACH or not node.users for node in graph.operations())


def _copied(graph: OpGraph, reached: set[fx.Node], most: int) -> dict[fx.Node, fx.Node]:
    """Copy, for those that are not reached, what is read by at most so many that are."""
    copies: dict[fx.Node, fx.Node] = {}
    for node in reversed(list(graph.graph.nodes)):
        users = [user for user in node.users if user.op != "output"]
        idle, others = [u for u in users if u not in reached], [u for u in users if u in reached]
        if node not in reached or not idle or len(others) > most or not _may_be_inside(node, others):
            continue
        with graph.graph.inserting_after(node):
            own = graph.graph.node_copy(node, lambda source: source)
        for user in idle:
            user.replace_input_with(node, own)
        copies[own] = node
    return copies


def _may_be_inside(node: fx.Node, users: list[fx.Node]) -> bool:
    """Whether a node that these others read may be in the middle of a region, and gives the same when it runs again."""
    joins = may_join(node.target, family_of(node)) and isinstance(node.meta.get("val"), torch.Tensor)
    again = torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())
    return joins and again and any(may_join(user.target, family_of(user)) for user in users)


def _reached(graph: OpGraph, ends: frozenset[Any]) -> set[fx.Node]:
    """Nodes that lead, not through `ends`, to an output with reward: no detached value, and made of inputs or parameters."""
    kinds = dict(zip(graph.placeholder_nodes, graph.placeholders))
    followed = {node for node, placeholder in kinds.items() if placeholder.kind in ("input", "parameter")}
    for node in graph.graph.nodes:
        if family_of(node) is not NOTHING and not followed.isdisjoint(node.all_input_nodes):
            followed.add(node)
    stack = [n for n in graph.user_output_nodes if n in followed and is_float(n.meta.get("val"))]
    reached: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack += [] if node.target in ends else node.all_input_nodes
    return reached
