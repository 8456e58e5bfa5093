"""A comparison that several operations read is copied for each of them, so that each run through it stands alone.

`fired = u > 1; spikes = fired.float(); u = torch.where(fired, 0, u)` is two functions of u. Comparisons cost little, and
reward passes one only inside a run that comes back to float (`regions`).
"""

from __future__ import annotations

import torch
from torch import fx

from ..registry import find_rule
from .graph import OpGraph

__all__ = ["copy_shared_comparisons"]


def copy_shared_comparisons(graph: OpGraph) -> None:
    """Give every user of a comparison one of its own. In place; the graph computes the same."""
    changed = False
    for node in reversed(list(graph.graph.nodes)):
        entry = find_rule(node.target)
        value = node.meta.get("val")
        if entry is None or entry.family.name != "comparison" or not isinstance(value, torch.Tensor):
            continue
        for user in [user for user in node.users if user.op != "output"][1:]:
            with graph.graph.inserting_after(node):
                own = graph.graph.node_copy(node, _same)
            user.replace_input_with(node, own)
            changed = True
    if changed:
        graph.module.recompile()


def _same(node: fx.Node) -> fx.Node:
    return node
