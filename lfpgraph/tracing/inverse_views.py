"""Views that change nothing, and pairs of views of which the second undoes the first.

Where a model writes in place to a view, the traced graph has no writes: what is written goes back into the shape of the
tensor that the view is of, and comes out of it again for the next operation. Such a pair between two operations would hide
that they form one activation function (Note [Implementation invariance]).
"""

from __future__ import annotations

import sys

import torch
from torch import fx

from ..graph.graph import shape_of

__all__ = ["cancel_inverse_views"]

_aten = torch.ops.aten
_RESHAPES = {
    _aten._unsafe_view.default, _aten.reshape.default, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims,
    _aten.unsqueeze.default, _aten.view.default,
}  # fmt: skip
_ORDERS = {_aten.permute.default, _aten.t.default, _aten.transpose.int}


def cancel_inverse_views(graph: fx.Graph) -> None:
    """Let what reads a view that undoes the one before it, or that changes nothing, read the source."""
    for node in graph.nodes:
        if node.target in (_aten.slice.Tensor, _aten.slice_scatter.default) and _is_whole(node):
            node.replace_all_uses_with(node.args[node.target is _aten.slice_scatter.default])
            continue
        if node.target is _aten.select_scatter.default and _writes_all(node):
            node.target, node.args, node.kwargs = _aten.unsqueeze.default, (node.args[1], _dim(node, 2)), {}
        while (source := _undone(node)) is not None:
            node.replace_all_uses_with(source)
            node = source


def _undone(node: fx.Node) -> fx.Node | None:
    """What a view gives back, untouched; None if it is not the inverse of the view that it reads."""
    first = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(first, fx.Node) or first.op != "call_function" or not node.users:
        return None
    source = first.args[0] if first.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.target in _RESHAPES and first.target in _RESHAPES:
        return source if shape_of(source) == shape_of(node) else None
    if node.target is _aten.select.int and first.target is _aten.unsqueeze.default:
        alike = int(first.args[1]) % first.meta["val"].dim() == _dim(node, 1)  # type: ignore[arg-type]
        return source if alike else None
    if node.target in _ORDERS and first.target in _ORDERS:
        before, after = _order(first), _order(node)
        return source if [before[i] for i in after] == sorted(before) else None
    return None


def _is_whole(node: fx.Node) -> bool:
    """Whether a slice is all of its dimension."""
    after = dict(zip(("dim", "start", "end", "step"), node.args[1 + (node.target is _aten.slice_scatter.default) :]))
    given = {"start": None, "end": None, "step": 1, **after, **node.kwargs}
    return bool(given["start"] in (None, 0) and given["end"] in (None, sys.maxsize) and given["step"] == 1)


def _writes_all(node: fx.Node) -> bool:
    """Whether what is written as one row of a dimension is the only one."""
    value = node.args[1].meta["val"]  # type: ignore[union-attr]
    sizes = shape_of(node)
    return sizes is not None and sizes[_dim(node, 2)] == "1" and value.dtype == node.meta["val"].dtype


def _dim(node: fx.Node, place: int) -> int:
    """The dimension that an argument names, counted from the front."""
    return int(node.args[place]) % node.args[0].meta["val"].dim()  # type: ignore[union-attr, arg-type]


def _order(node: fx.Node) -> list[int]:
    """Of each dimension of a view that orders them anew, which one of its source it is."""
    rank = node.meta["val"].dim()
    dims = list(range(rank))
    if node.target is _aten.permute.default:
        return [int(i) % rank for i in node.args[1]]  # type: ignore[union-attr, arg-type]
    pair = node.args[1:] if node.target is _aten.transpose.int else (0, 1)
    if rank > 1:
        i, j = (int(d) % rank for d in pair)  # type: ignore[arg-type]
        dims[i], dims[j] = j, i
    return dims
