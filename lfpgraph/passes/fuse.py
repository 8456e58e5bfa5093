"""Passes over a static graph that runs eagerly: operations that can share a walk through memory, or a start, become one."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..graph.graph import shape_of
from ..kernels import DECOMPOSITIONS, KERNELS, SMALL, define, scale_by_floored_size
from ..native.gpu import scaled_by_floored
from .nodes import elements, stays

__all__ = ["COMPARED", "SCALE_ALL", "SCALE_NORMED", "fuse_pairs", "join_scalings"]

aten = torch.ops.aten
ops = torch.ops.lfpgraph
_Call = tuple[Any, tuple[Any, ...]] | None  # operation and arguments


# Operations for the scaling of many parameters' signals: a small tensor is scaled in less time than it takes to start that.


def _scale_all(signals: list[Tensor], weights: list[Tensor]) -> Any:
    """`s * abs(w)` of each pair, written over s."""
    torch._foreach_mul_(signals, torch._foreach_abs(weights))


def _scale_normed(s: Tensor, w: Tensor, norm: Tensor, share: float, unit: float) -> Tensor:
    """`scale_by_floored_size_` of a w on a GPU whose norm is known."""
    made = scaled_by_floored(s, w, share, unit, norm)
    return KERNELS[torch.ops.lfpgraph.scale_by_floored_size_.default](s, w, share, unit) if made is None else made


SCALE_ALL = define("scale_all_(Tensor(a!)[] s, Tensor[] w) -> ()", _scale_all, lambda s, w: None)
SCALE_NORMED = define(
    "scale_normed(Tensor s, Tensor w, Tensor norm, float share, float unit) -> Tensor",
    _scale_normed,
    lambda s, *_: torch.empty_like(s),
)
DECOMPOSITIONS[SCALE_NORMED] = lambda s, w, norm, share, unit: scale_by_floored_size(s, w, share, unit)


def _compared(x: Tensor, number: float, how: str) -> Tensor:
    """1 where a comparison with a number holds, 0 elsewhere: by torch eight times as quick as to compare and then to cast."""
    return _COMPARISONS[how](x, number, out=torch.empty_like(x))


_COMPARISONS: dict[str, Callable[..., Tensor]] = {n: getattr(torch, n) for n in ("eq", "ge", "gt", "le", "lt", "ne")}
COMPARED = define(
    "compared(Tensor x, float number, str how) -> Tensor",
    _compared,
    lambda x, *_: torch.empty_like(x),
    torch.Tag.pointwise,
)
DECOMPOSITIONS[COMPARED] = lambda x, number, how: _COMPARISONS[how](x, number).to(x.dtype)


def fuse_pairs(graph: fx.Graph) -> None:
    """Change the graph, before `write_in_place` sees it."""
    for node in graph.nodes:
        found = _PAIRS[node.target](*node.args, **node.kwargs) if node.target in _PAIRS else None
        if found is not None:
            node.target, node.args, node.kwargs = *found, {}
    graph.eliminate_dead_code(is_impure_node=stays)


def _is(node: Any, op: Any) -> bool:
    """Whether the node calls the operation, for one reader."""
    return isinstance(node, fx.Node) and node.target is op and len(node.users) == 1


def _rectified(s: Any, z: Any, epsilon: float, positive: bool) -> _Call:
    """A relu's signal, then the epsilon factor of the layer before it."""
    if positive and _is(s, aten.threshold_backward.default) and s.args[1:] == (z, 0):
        return ops.rectified_factor.default, (s.args[0], z, epsilon)
    return None


def _product(s: Any, w: Any) -> _Call:
    """The signal of a matrix, then its feedback."""
    return (ops.scaled_product.default, (*s.args, w)) if _is(s, aten.mm.default) else None


def _rows(total: Any, rows: Any, alpha: float = 1) -> _Call:
    """The signal of a matrix that is a layer's weight and an embedding: only the rows that were looked up are added."""
    if _is(total, aten.embedding_dense_backward.default):
        total, rows = rows, total
    if not _is(rows, aten.embedding_dense_backward.default) or not isinstance(total, fx.Node) or alpha != 1:
        return None
    alike = shape_of(total) == shape_of(rows) and total.meta["val"].dtype == rows.meta["val"].dtype
    return (ops.add_rows.default, (total, *rows.args)) if alike else None


def _cast(mask: Any, dtype: Any = None, **others: Any) -> _Call:
    """A comparison with a number, then its result as numbers of the type that was compared."""
    how = _SCALAR.get(mask.target)
    if how is None or not _is(mask, mask.target) or any(value is not None for value in others.values()):
        return None
    x, number = mask.args
    alike = dtype is x.meta["val"].dtype and dtype.is_floating_point and isinstance(number, int | float)
    return (COMPARED, (x, float(number), how)) if alike else None


_SCALAR = {getattr(aten, how).Scalar: how for how in _COMPARISONS}
_PAIRS: dict[Any, Callable[..., _Call]] = {
    aten._to_copy.default: _cast,
    ops.epsilon_factor.default: _rectified,
    ops.scale_by_size.default: _product,
    aten.add.Tensor: _rows,
}


_FEW = 1 << 14  # entries of a tensor that on a CPU need not be scaled right where its signal has been worked out


def join_scalings(graph: fx.Graph) -> None:
    """Scale the signals of small parameters by one operation; work out the norms of weights on a GPU by one.

    Args:
        graph: of feedback, behind `write_in_place`.
    """
    small: dict[Any, list[fx.Node]] = defaultdict(list)
    normed: dict[Any, list[fx.Node]] = defaultdict(list)
    end = graph.output_node()
    for node in graph.nodes:
        if node.target not in (ops.scale_by_size_.default, ops.scale_by_floored_size_.default):
            continue
        s, w = (n.meta["val"] for n in node.args[:2])
        if w.dtype not in (torch.float32, torch.float64) or s.dtype != w.dtype or s.shape != w.shape:
            continue
        if node.target is ops.scale_by_floored_size_.default:
            if w.is_cuda and node.args[1].op == "placeholder":
                normed[w.device, w.dtype].append(node)
        elif elements(w) <= (SMALL if w.is_cuda else _FEW) and set(node.users) == {end}:
            small[w.device, w.dtype].append(node)
    for nodes in normed.values():
        _norm_together(graph, nodes)
    for nodes in small.values():
        if len(nodes) > 1:
            with graph.inserting_before(end):
                graph.call_function(SCALE_ALL, ([n.args[0] for n in nodes], [n.args[1] for n in nodes]))
            for node in nodes:
                node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
                graph.erase_node(node)


def _norm_together(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    """Have nodes that scale by a floored size, in the order in which they run, given the norms of their weights."""
    with graph.inserting_before(nodes[0]):
        norms = graph.call_function(aten._foreach_norm.Scalar, ([node.args[1] for node in nodes],))
        items = [graph.call_function(operator.getitem, (norms, i)) for i in range(len(nodes))]
    values: list[Tensor] = [node.args[1].meta["val"].new_empty([]) for node in nodes]  # type: ignore[union-attr]
    norms.meta["val"] = values
    for node, item, value in zip(nodes, items, values):
        item.meta["val"] = value
        node.target, node.args = SCALE_NORMED, (*node.args[:2], item, *node.args[2:])
