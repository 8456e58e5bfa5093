"""A pass over a static graph that runs eagerly: two operations that can share one walk through memory become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..graph.graph import shape_of
from .nodes import stays

__all__ = ["fuse_pairs"]

aten = torch.ops.aten
ops = torch.ops.lfpgraph
_Call = tuple[Any, tuple[Any, ...]] | None  # operation and arguments


def fuse_pairs(graph: fx.Graph) -> None:
    """Change the graph, before `write_in_place` sees it."""
    for node in graph.nodes:
        found = _PAIRS[node.target](*node.args) if node.target in _PAIRS and not node.kwargs else None
        if found is not None:
            node.target, node.args = found
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


def _rows(total: Any, rows: Any) -> _Call:
    """The signal of a matrix that is a layer's weight and an embedding: only the rows that were looked up are added."""
    if _is(total, aten.embedding_dense_backward.default):
        total, rows = rows, total
    if not _is(rows, aten.embedding_dense_backward.default) or not isinstance(total, fx.Node):
        return None
    alike = shape_of(total) == shape_of(rows) and total.meta["val"].dtype == rows.meta["val"].dtype
    return (ops.add_rows.default, (total, *rows.args)) if alike else None


_PAIRS: dict[Any, Callable[..., _Call]] = {
    ops.epsilon_factor.default: _rectified,
    ops.scale_by_size.default: _product,
    aten.add.Tensor: _rows,
}
