"""A pass over the joint graph: the many small products of a weight that is used at every time step become one.

A recurrent weight's feedback is `sum_t s_t^T h_t`: each product writes a whole matrix and each sum reads two, for a few rows
of work. Side by side they are one product, `cat(s)^T cat(h)`; sums over rows likewise. And what all steps read, each its own
part, gets the parts' signals side by side: each alone would be a tensor of zeros as large as the whole, written and added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..graph.graph import shape_of
from .nodes import hint, stays

__all__ = ["join_products"]

aten = torch.ops.aten
_Cats = dict[tuple[fx.Node, ...], fx.Node]  # joined already
_FEW = 4  # terms below which nothing is gained
_SHORT = 512  # rows of a term, up to which its product waits for memory


def join_products(graph: fx.Graph, parts_alone: bool = False) -> int:
    """Change the graph; returns how many products, sums over rows and parts went into larger ones.

    Args:
        parts_alone: join parts alone, which takes less memory than before; rows of all steps must wait for their product.
    """
    joined = 0
    cats: _Cats = {}
    for root in list(graph.nodes):
        if not _is_sum(root) or any(_is_sum(user) and len(root.users) == 1 for user in root.users):
            continue
        leaves = _leaves(root)
        groups: dict[Any, list[fx.Node]] = defaultdict(list)
        for leaf in leaves:
            groups[_kind(leaf)].append(leaf)
        kinds = [kind for kind in groups if kind is not None and (kind[0] == "parts" or not parts_alone)]
        large = {kind: groups[kind] for kind in kinds if len(groups[kind]) >= _least(kind)}
        if not large:
            continue
        joined += sum(map(len, large.values()))
        taken = {leaf for terms in large.values() for leaf in terms}
        rest = [leaf for leaf in leaves if leaf not in taken]
        with graph.inserting_before(root):
            terms = [*rest, *(_JOIN[kind[0]](graph, group, cats) for kind, group in large.items())]
            total = terms[0]
            for term in terms[1:]:
                total = _call(graph, aten.add.Tensor, total, term)
        root.replace_all_uses_with(total)
        graph.erase_node(root)
    if joined:
        graph.eliminate_dead_code(is_impure_node=stays)
    return joined


def _is_sum(node: fx.Node) -> bool:
    return (
        node.target is aten.add.Tensor
        and not node.kwargs
        and all(isinstance(term, fx.Node) and shape_of(term) == shape_of(node) for term in node.args)
    )


def _leaves(root: fx.Node) -> list[fx.Node]:
    """The terms of a sum of sums, in order."""
    found: list[fx.Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node is root or (_is_sum(node) and len(node.users) == 1):
            stack += reversed(node.args)  # type: ignore[arg-type]
        else:
            found.append(node)
    return found


def _kind(node: fx.Node) -> Any:
    """Terms of one kind can be joined; None cannot."""
    if len(node.users) != 1 or not node.args:
        return None
    first = node.args[0]
    if node.target is aten.mm.default and isinstance(first, fx.Node) and first.target is aten.t.default:
        rows = first.args[0].meta["val"].shape[0]  # type: ignore[union-attr]
        return ("product",) if hint(rows) <= _SHORT else None
    if node.target is aten.sum.dim_IntList and isinstance(first, fx.Node):
        value = first.meta["val"]
        if list(node.args[1]) == [0] and value.dim() == 2 and len(node.args) < 4 and not node.kwargs:  # type: ignore[arg-type]
            return ("rows", *node.args[2:]) if hint(value.shape[0]) <= _SHORT else None
    if node.target is aten.select_backward.default:
        given: Any = node.args
        _, sizes, dim, _ = given
        return ("parts", dim, *sizes) if isinstance(sizes[dim], int) else None
    return None


def _least(kind: Any) -> int:
    """How many terms of a kind are worth joining; of parts also half of all there are, since the others are zeros."""
    if kind[0] != "parts":
        return _FEW
    _, dim, *sizes = kind
    return max(_FEW, sizes[dim] // 2)


def _product(graph: fx.Graph, terms: list[fx.Node], cats: _Cats) -> fx.Node:
    signals = _cat(graph, [term.args[0].args[0] for term in terms], cats)  # type: ignore[union-attr]
    inputs = _cat(graph, [term.args[1] for term in terms], cats)
    return _call(graph, aten.mm.default, _call(graph, aten.t.default, signals), inputs)


def _rows(graph: fx.Graph, terms: list[fx.Node], cats: _Cats) -> fx.Node:
    return _call(graph, aten.sum.dim_IntList, _cat(graph, [term.args[0] for term in terms], cats), *terms[0].args[1:])


def _parts(graph: fx.Graph, terms: list[fx.Node], cats: _Cats) -> fx.Node:
    signals: dict[int, fx.Node] = {}
    given: Any = [term.args for term in terms]
    for s, sizes, dim, place in given:
        place %= sizes[dim]
        signals[place] = _call(graph, aten.add.Tensor, signals[place], s) if place in signals else s
    zeros = _call(graph, aten.zeros_like.default, given[0][0]) if len(signals) < sizes[dim] else None
    return _call(graph, aten.stack.default, [signals.get(i, zeros) for i in range(sizes[dim])], dim)


def _cat(graph: fx.Graph, parts: list[Any], cats: _Cats) -> fx.Node:
    """The parts one below the other; once, where several sums join the same."""
    key = tuple(parts)
    if key not in cats:
        cats[key] = _call(graph, aten.cat.default, parts)
    return cats[key]


_JOIN: dict[str, Callable[[fx.Graph, list[fx.Node], _Cats], fx.Node]] = {
    "product": _product,
    "rows": _rows,
    "parts": _parts,
}


def _call(graph: fx.Graph, op: Any, *args: Any) -> fx.Node:
    """A new node with its fake value."""
    node = graph.call_function(op, args)
    values = fx.node.map_arg(args, lambda n: n.meta["val"])
    mode = next(v.fake_mode for v in torch.utils._pytree.tree_leaves(values) if hasattr(v, "fake_mode"))
    with torch.no_grad(), mode:
        node.meta["val"] = op(*values)
    return node
