"""Selections that leave nothing but a mask: one_hot(argmax(x)), zeros scattered with ones at topk's places, x == max(x).

Such a mask is a piecewise constant function of x, entry by entry: winner takes all. Between x and the mask are only
indices and booleans, which carry no reward; so the mask itself remembers x (`NodeInfo.selects`) and hands it its reward
by the identity rule, as any activation does. Masks of another shape than x select nothing of it entry by entry.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import fx

from ..registry import NOTHING
from .graph import CASTS, family_of, is_float, shape_of

__all__ = ["MASKS", "selected_from"]

aten = torch.ops.aten
_INDICES = {aten.argmax.default, aten.argmin.default, aten.argsort.default}
_WITH_INDICES = {
    aten.kthvalue.default,
    aten.max.dim,
    aten.median.dim,
    aten.min.dim,
    aten.mode.default,
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
}
_EXTREMES = {aten.amax.default, aten.amin.default}
MASKS = {*CASTS, aten.scatter.value, aten.where.Scalar}


def selected_from(mask: fx.Node, is_active: Callable[[fx.Node], bool]) -> fx.Node | None:
    """The float tensor that a mask selects from, of the mask's shape; None if the node is no such mask."""
    if mask.target not in MASKS or not is_float(mask.meta.get("val")):
        return None
    sources: set[fx.Node] = set()
    selects = False
    seen, stack = {mask}, [n for n in mask.all_input_nodes if not _is_plain_base(n, mask)]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if _picks(node):
            selects = True
            picker = node.args[0] if node.target is operator.getitem else node
            sources |= {n for n in picker.all_input_nodes if is_float(n.meta.get("val"))}  # type: ignore[union-attr]
        elif is_float(node.meta.get("val")):
            sources |= {node} if is_active(node) else set()
        elif node.op != "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):  # sizes know no values
            stack += node.all_input_nodes
    if not selects or len(sources) != 1:
        return None
    (source,) = sources
    return source if is_active(source) and shape_of(source) == shape_of(mask) else None


def _picks(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return node.args[0].target in _WITH_INDICES  # type: ignore[union-attr,operator]
    return node.target in _INDICES or node.target in _EXTREMES


def _is_plain_base(node: fx.Node, mask: fx.Node) -> bool:
    """What a mask is scattered into: of no account if it holds nothing of the input."""
    return mask.target is aten.scatter.value and node is mask.args[0] and family_of(node) is NOTHING
