"""Attention masks that follow from positions alone: one that hides nothing goes, a causal one becomes `is_causal`.

A model often makes a mask while it is traced that it leaves out when it runs. The mask costs memory at every layer and a slower
kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph import OpGraph
from .positions import Holds, Known, expression, what_is_known

__all__ = ["simplify_masks"]

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def simplify_masks(graph: OpGraph) -> None:
    """Attention without masks that hide nothing, and told that it is causal where a mask says just that. In place."""
    attention = [node for node in graph.graph.nodes if node.target is _ATTENTION and _mask(node) is not None]
    if not attention:
        return
    known: dict[fx.Node, Known] = {}
    for node in graph.graph.nodes:
        found = what_is_known(node, known)
        if found is not None:
            known[node] = found
    unread = [mask for node in attention if (mask := _without_mask(node, known)) is not None]
    for mask in dict.fromkeys(unread):
        _erase(graph.graph, mask)
    if unread:
        graph.module.recompile()


def _mask(node: fx.Node) -> fx.Node | None:
    found = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return found if isinstance(found, fx.Node) else None


def _without_mask(node: fx.Node, known: dict[fx.Node, Known]) -> fx.Node | None:
    """Take the mask from an attention that needs none. Returns the mask, if it was taken."""
    mask = _mask(node)
    holds = known.get(mask) if mask is not None else None
    if not isinstance(holds, Holds):
        return None
    query, key, value, *_ = node.args
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    causal = not holds.always
    if causal and not (holds.causal and _same_length(query, key)):
        return None
    rest = {k: v for k, v in node.kwargs.items() if k not in ("attn_mask", "dropout_p", "is_causal")}
    node.args = (query, key, value, None, dropout, causal)
    node.kwargs = rest
    return mask


def _same_length(a: Any, b: Any) -> bool:
    sizes = [x.meta["val"].shape[-2] for x in (a, b)]
    return bool(expression(sizes[0]) == expression(sizes[1]))


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """A node that nobody reads, and what only it has read."""
    stack, gone = [node], set[fx.Node]()
    while stack:
        node = stack.pop()
        if node not in gone and node.op == "call_function" and not node.users:
            stack += node.all_input_nodes
            graph.erase_node(node)
            gone.add(node)
