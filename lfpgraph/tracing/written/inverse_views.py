"""Views that change nothing, and pairs of views of which the second undoes the first.

Where a model writes in place to a view, the traced graph has no writes: what is written goes back into the shape of the
tensor that the view is of, and comes out of it again for the next operation. Such a pair between two operations would hide
that they form one activation function (Note [Implementation invariance]). A live run knows such values as one (`given_back`).

And, for writes (`writes`), what a view's source is once something was written to the view.
"""

from __future__ import annotations

import itertools
import operator
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ...graph.graph import shape_of
from ..cells import emit

__all__ = ["TURNED", "UNDO", "can_be_put_back", "cancel_inverse_views", "given_back", "part_put_back", "put_back"]

_aten = torch.ops.aten
_RESHAPES = {
    _aten._unsafe_view.default, _aten.reshape.default, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims,
    _aten.unsqueeze.default, _aten.view.default,
}  # fmt: skip
_ORDERS = {_aten.permute.default, _aten.t.default, _aten.transpose.int}
UNDO = frozenset({*_RESHAPES, *_ORDERS, _aten.select.int, _aten.slice.Tensor})
# Those of a graph that has not been taken apart yet, too.
_ALL_RESHAPES = _RESHAPES | {
    _aten.flatten.using_ints, _aten.ravel.default, _aten.reshape_as.default, _aten.unflatten.int, _aten.view_as.default
}  # fmt: skip
_ALL_ORDERS = _ORDERS | {
    _aten.mT.default, _aten.movedim.int, _aten.movedim.intlist, _aten.numpy_T.default, _aten.swapaxes.default,
    _aten.swapdims.default,
}  # fmt: skip
_SCATTERS = {
    _aten.diagonal.default: _aten.diagonal_scatter.default,
    _aten.select.int: _aten.select_scatter.default,
    _aten.slice.Tensor: _aten.slice_scatter.default,
}
_PARTS = {
    _aten.chunk.default, _aten.split.Tensor, _aten.split.sizes, _aten.split_with_sizes.default,
    _aten.tensor_split.indices, _aten.tensor_split.sections, _aten.unbind.int,
}  # fmt: skip
# Views that a tensor itself becomes.
TURNED: dict[Any, OpOverload] = {
    _aten.squeeze_.default: _aten.squeeze.default,
    _aten.squeeze_.dim: _aten.squeeze.dim,
    _aten.t_.default: _aten.t.default,
    _aten.transpose_.default: _aten.transpose.int,
    _aten.unsqueeze_.default: _aten.unsqueeze.default,
}


def cancel_inverse_views(graph: fx.Graph) -> None:
    """Let what reads a view that undoes the one before it, or that changes nothing, read the source."""
    for node in graph.nodes:
        if node.target in (_aten.slice.Tensor, _aten.slice_scatter.default) and _is_whole(node):
            node.replace_all_uses_with(node.args[node.target is _aten.slice_scatter.default])
            continue
        if node.target is _aten.select_scatter.default and _writes_all(node):
            node.target, node.args, node.kwargs = _aten.unsqueeze.default, (node.args[1], _dim(node, 2)), {}
        if node.target is _aten.slice_scatter.default and _layout(node.args[1]) == _layout(node):
            node.replace_all_uses_with(node.args[1])  # `t[:1].mul_(2)` of one row leaves nothing of what was there
            continue
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


def given_back(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Tensor, values: Any) -> int | None:
    """The same of a live run: the value that a view gives back untouched, by number (`live.values`), or None.

    What is known of the view before is what autograd's node of it has saved.
    """
    if out.grad_fn is None:
        return None
    number = values.edges.get(out.grad_fn.next_functions[0])
    if number is None or (op is _aten.slice.Tensor and _says_whole(args[1:], kwargs)):
        return number
    first = values.edge_of[number][0]
    source = values.edges.get(first.next_functions[0]) if first.next_functions else None
    name, rank = first.name(), out.dim()
    if source is None:
        return None
    if op in _RESHAPES and name.startswith(("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze")):
        undone = values.shapes[source] == out.shape
    elif op is _aten.select.int and name.startswith("Unsqueeze"):
        undone = _signed(first._saved_dim) % (rank + 1) == args[1] % (rank + 1)
    elif op in _ORDERS and name.startswith(("Permute", "Transpose", "TBackward")):
        saved = getattr(first, "_saved_dims", None)
        pair = (first._saved_dim0, first._saved_dim1) if hasattr(first, "_saved_dim0") else (0, 1)
        before = _ordered(rank, saved, pair)
        after = _ordered(rank, args[1] if op is _aten.permute.default else None, args[1:] or (0, 1))
        undone = [before[i] for i in after] == sorted(before)
    else:
        undone = False
    if undone:
        values.undone.add(number)
    return source if undone else None


def _signed(dim: int) -> int:
    """A dimension as it was given: autograd saves negative ones without their sign."""
    return dim - (1 << 64) if dim >= 1 << 63 else dim


def _is_whole(node: fx.Node) -> bool:
    """Whether a slice is all of its dimension."""
    return _says_whole(node.args[1 + (node.target is _aten.slice_scatter.default) :], node.kwargs)


def _says_whole(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    given = {"start": None, "end": None, "step": 1, **dict(zip(("dim", "start", "end", "step"), args)), **kwargs}
    return bool(given["start"] in (None, 0) and given["end"] in (None, sys.maxsize) and given["step"] == 1)


def _writes_all(node: fx.Node) -> bool:
    """Whether what is written as one row of a dimension is the only one."""
    value = node.args[1].meta["val"]  # type: ignore[union-attr]
    sizes = shape_of(node)
    return sizes is not None and sizes[_dim(node, 2)] == "1" and value.dtype == node.meta["val"].dtype


def _layout(node: fx.Node) -> tuple[Any, torch.dtype]:
    """The sizes of a tensor, and its type."""
    return shape_of(node), node.meta["val"].dtype


def _dim(node: fx.Node, place: int) -> int:
    """The dimension that an argument names, counted from the front."""
    return int(node.args[place]) % node.args[0].meta["val"].dim()  # type: ignore[union-attr, arg-type]


def _order(node: fx.Node) -> list[int]:
    """Of each dimension of a view that orders them anew, which one of its source it is."""
    dims: Any = node.args[1] if node.target is _aten.permute.default else None
    pair: Any = node.args[1:] if node.target is _aten.transpose.int else (0, 1)
    return _ordered(node.meta["val"].dim(), dims, pair)


def _ordered(rank: int, dims: Sequence[int] | None, pair: Sequence[int]) -> list[int]:
    """The same of a permutation, or of the exchange of a pair."""
    if dims is not None:
        return [_signed(i) % rank for i in dims]
    order = list(range(rank))
    if rank > 1:
        i, j = (_signed(d) % rank for d in pair)
        order[i], order[j] = j, i
    return order


def can_be_put_back(view: fx.Node, source: fx.Node) -> bool:
    """Whether it is known what a view's source is once something was written to the view."""
    op: Any = TURNED.get(view.target, view.target)
    if view.kwargs:
        return False
    if op in _SCATTERS or op in _ALL_ORDERS or op is _aten.unsqueeze.default:
        return True
    if op is operator.getitem:
        return source.target in _PARTS
    shape = getattr(source.meta["val"], "shape", None)
    known = shape is not None and all(isinstance(size, int) for size in shape)
    return known and (op in _ALL_RESHAPES or op in _PARTS or op is _aten.narrow.default)


def put_back(graph: fx.Graph, view: fx.Node, source: fx.Node, now: fx.Node, value: fx.Node) -> fx.Node:
    """The source of a view with a value in place of the view.

    Args:
        now: what the source holds before.
    """
    op: Any = TURNED.get(view.target, view.target)
    given: Any = view.args[1:]
    if op in _SCATTERS:
        return emit(graph, view, _SCATTERS[op], now, value, *given)
    if op is _aten.narrow.default:
        return emit(graph, view, _aten.slice_scatter.default, now, value, *given[:2], given[1] + given[2])
    if op in _ALL_ORDERS:
        sizes = list(range(2, 2 + source.meta["val"].dim()))  # each of its own
        turned = list(op(torch.empty(sizes, device="meta"), *given).shape)
        return emit(graph, view, _aten.permute.default, value, [turned.index(size) for size in sizes])
    if op is _aten.unsqueeze.default:
        return emit(graph, view, _aten.squeeze.dim, value, *given)
    return emit(graph, view, _aten.view.default, value, list(source.meta["val"].shape))


def part_put_back(graph: fx.Graph, item: fx.Node, parts: fx.Node, now: fx.Node, value: fx.Node) -> fx.Node:
    """The same of an item of several parts of a source."""
    given: Any = parts.args[1:]
    place: Any = item.args[1]
    if parts.target is _aten.unbind.int:
        return emit(graph, item, _aten.select_scatter.default, now, value, given[0] if given else 0, place)
    dim = given[1] if len(given) > 1 else 0
    ends = list(itertools.accumulate(part.shape[dim] for part in parts.meta["val"]))
    return emit(graph, item, _aten.slice_scatter.default, now, value, dim, ([0, *ends])[place], ends[place])
