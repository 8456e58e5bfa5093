"""A comparison that several operations read is copied for each of them, so that each run through it stands alone.

`fired = u > 1; spikes = fired.float(); u = torch.where(fired, 0, u)` is two functions of u. Comparisons cost little, and
reward passes one only inside a run that comes back to float (`regions`).
"""

from __future__ import annotations

import torch

from ..registry import COMPARISON
from .graph import OpGraph, family_of

__all__ = ["copy_shared_comparisons"]


def copy_shared_comparisons(graph: OpGraph) -> None:
    """Give every user of a comparison one of its own. In place; the graph computes the same."""
    changed = False
    for node in reversed(list(graph.graph.nodes)):
        if family_of(node) is not COMPARISON or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        for user in [user for user in node.users if user.op != "output"][1:]:
            with graph.graph.inserting_after(node):
                own = graph.graph.node_copy(node, lambda source: source)
            user.replace_input_with(node, own)
            changed = True
    if changed:
        graph.module.recompile()
