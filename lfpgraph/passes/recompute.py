"""What feedback computes again instead of keeping: a minimum cut over the forward half of the joint graph.

A node is either kept (its bytes count) or computed again from what is kept. Cheap operations may be computed again,
matrix products and random draws may not, and neither may the sums where a residual path comes back: computing those
again would run the whole model before the first signal. Then, down to the share of memory asked for, the products that
cost least for each byte they free are computed again as well.

Where memory is no object, views are taken again, and so are values that are a sum or two away from what is kept: a spike is a
comparison of a membrane that is kept, what a residual path leads to is a sum of two values that are kept. To make such a
value again reads and writes it once, about what keeping it costs, and a step then waits with less memory.

A batch norm in training is dear, since it takes two passes for its statistics. These are kept, they are small; with them its
result is one cheap operation on what the norm read, which its own feedback needs anyway.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor, fx

from ..graph.graph import ancestors
from ..kernels import DECOMPOSITIONS, LOW_PRECISION, define
from .nodes import draws, elements, hint, is_view, size_in_bytes

__all__ = ["Share", "choose_recomputed", "choose_remade", "norms_from_statistics"]

LEAST_BYTES = 1 << 16  # below this, an operation more costs more than the memory is worth
MOST_OPERATIONS = 4  # on the way from what is kept to what is made again

aten = torch.ops.aten
_PRODUCTS = {aten.addmm.default, aten.mm.default, aten.bmm.default, aten.baddbmm.default, aten.convolution.default}
_CHEAP = {
    aten.native_layer_norm.default,
    aten.native_group_norm.default,
    aten._fused_rms_norm.default,
    aten._softmax.default,
    aten._safe_softmax.default,
    aten._log_softmax.default,
    aten._native_batch_norm_legit_no_training.default,
    aten._to_copy.default,
    aten.arange.start_step,
    aten.cat.default,
    aten.constant_pad_nd.default,
    aten.embedding.default,
    aten.full.default,
    aten.index.Tensor,
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.var_mean.correction,
    operator.getitem,
}

_LIGHT = {
    aten._to_copy.default,
    aten.add.Scalar,
    aten.add.Tensor,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.eq.Scalar,
    aten.full.default,
    aten.ge.Scalar,
    aten.gt.Scalar,
    aten.le.Scalar,
    aten.lt.Scalar,
    aten.mul.Scalar,
    aten.mul.Tensor,
    aten.neg.default,
    aten.relu.default,
    aten.sub.Tensor,
    aten.where.self,
    aten.zeros.default,
}

# Batch norms: result, mean and 1 / standard deviation are the first three outputs; which argument says whether they train.
_NORMS = {
    aten._batch_norm_impl_index.default: 5,
    aten._native_batch_norm_legit.no_stats: 3,
    aten._native_batch_norm_legit_functional.default: 5,
    aten.native_batch_norm.default: 5,
}


def _normalized(x: Tensor, mean: Tensor, scale: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    """A batch norm's result, given the mean and 1 / standard deviation of each channel of x [n, channels, ...]."""
    if x.dtype in LOW_PRECISION:
        size = [-1] + [1] * (x.dim() - 2)
        found = (x - mean.view(size)) * scale.view(size)
        found = found if w is None else found * w.view(size)
        return (found if b is None else found + b.view(size)).to(x.dtype)
    return torch.native_batch_norm(x, w, b, mean, scale.reciprocal().square(), False, 0.0, 0.0)[0]


_NORMALIZED = define(
    "normalized(Tensor x, Tensor mean, Tensor scale, Tensor? w, Tensor? b) -> Tensor",
    _normalized,
    lambda x, *_: torch.empty_like(x),
    torch.Tag.pointwise,
)
DECOMPOSITIONS[_NORMALIZED] = _normalized


@contextmanager
def norms_from_statistics(nodes: Sequence[fx.Node]) -> Iterator[None]:
    """Within it, for what is computed again, results of batch norms come from what these read and from their statistics."""
    before: dict[fx.Node, tuple[fx.Node, int]] = {}
    for node in nodes:
        parts = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        trains = node.target in _NORMS and node.args[_NORMS[node.target]] is True  # type: ignore[index]
        if trains and {0, 1, 2} <= parts.keys():
            for i in (2, 1):  # the result comes after what it is made of
                node.append(parts[i])
            before[parts[0]] = (node, 0)
            x, w, b = node.args[:3]
            parts[0].target, parts[0].args = _NORMALIZED, (x, parts[1], parts[2], w, b)
    try:
        yield
    finally:
        for node, args in before.items():
            node.target, node.args = operator.getitem, args


@dataclass(frozen=True)
class Share:
    """How much is kept, of what is kept when nothing but views is computed again.

    Attributes:
        kept: bytes to come down to, as far as it goes, as a share.
        repeated: what share of the forward pass's multiplications may be done again for that. More only where more than
            `most` would be kept without.
        most: a share of bytes.
        statistics: whether the result of a batch norm may come from its statistics, by an operation without a derivative.
    """

    kept: float
    repeated: float = math.inf
    most: float = 1.0
    statistics: bool = True


def choose_recomputed(
    nodes: Sequence[fx.Node], ahead: set[fx.Node], feedback: Sequence[fx.Node], share: Share
) -> set[fx.Node]:
    """The forward nodes that feedback runs again.

    Args:
        nodes: the joint graph, in order; `ahead`: its forward half; `feedback`: the rest.
    """
    needed = {n for node in feedback for n in node.all_input_nodes if n in ahead}
    depth = _depths(nodes, ahead)
    cheap = {n for n in ahead if _is_cheap(n) and not _is_residual_sum(n, depth)}
    whole = sum(size_in_bytes(n) for n in _behind_views(needed))
    patience = share.repeated * sum(map(_multiplications, ahead)) if share.repeated < math.inf else math.inf
    while True:
        kept = _minimum_cut(nodes, needed, cheap)
        excess = sum(map(size_in_bytes, kept)) - share.kept * whole
        again = set()
        for node in sorted(_products_behind(kept, cheap), key=_cost):
            cost = _multiplications(node)
            if excess > 0 and (cost <= patience or excess > (share.most - share.kept) * whole):
                again.add(node)
                excess -= size_in_bytes(node)
                patience -= cost
        if not again:
            break
        cheap |= again
    return ancestors(needed, lambda node: node not in kept and node.op == "call_function")


def _is_cheap(node: fx.Node) -> bool:
    op = node.target
    if node.op != "call_function":
        return False
    if not isinstance(op, torch._ops.OpOverload):
        return op in _CHEAP or not isinstance(node.meta.get("val"), Tensor | list | tuple)  # sizes
    return not draws(node) and (is_view(node) or op in _CHEAP or torch.Tag.pointwise in op.tags)


def _depths(nodes: Sequence[fx.Node], ahead: set[fx.Node]) -> Mapping[fx.Node, int]:
    """For each forward node, the most matrix products (and other dear operations) on a way to it."""
    found: dict[fx.Node, int] = {}
    for node in nodes:
        if node in ahead:
            before = max((found.get(n, 0) for n in node.all_input_nodes), default=0)
            found[node] = before + (node.op == "call_function" and not _is_cheap(node))
    return found


def _is_residual_sum(node: fx.Node, depth: Mapping[fx.Node, int]) -> bool:
    """A sum of two computed values, one of them from much earlier."""
    if node.target is not aten.add.Tensor:
        return False
    depths = {depth.get(n, 0) for n in node.all_input_nodes}
    return len(depths) == 2 and min(depths) > 0


def _minimum_cut(nodes: Sequence[fx.Node], needed: set[fx.Node], cheap: set[fx.Node]) -> set[fx.Node]:
    """What to keep, in least bytes, so that the rest of `needed` can be computed again from cheap operations alone."""
    again = ancestors(needed, cheap.__contains__)
    relevant = needed.union(again, *(node.all_input_nodes for node in again))
    network = nx.DiGraph()
    for node in nodes:
        if node not in relevant:
            continue
        is_tuple = isinstance(node.meta.get("val"), list | tuple)  # never kept whole
        capacity = {} if is_tuple else {"capacity": 0 if node.op == "placeholder" else size_in_bytes(node)}
        network.add_edge((node, "in"), (node, "out"), **capacity)
        sources = [(source, "out") for source in node.all_input_nodes] if node in cheap else ["source"]
        network.add_edges_from((source, (node, "in")) for source in sources)
        if node in needed:
            network.add_edge((node, "out"), "sink")
    if "source" not in network or "sink" not in network:
        return set()
    _, (reachable, _) = nx.minimum_cut(network, "source", "sink")
    return {n for n in relevant if (n, "in") in reachable and (n, "out") not in reachable and n.op != "placeholder"}


def _products_behind(kept: set[fx.Node], cheap: set[fx.Node]) -> set[fx.Node]:
    """The products, of some size, that are kept, or that what is kept is made of by cheap operations."""
    way = ancestors(kept, cheap.__contains__)
    found = kept.union(*(node.all_input_nodes for node in way)) - cheap
    return {node for node in found if node.target in _PRODUCTS and size_in_bytes(node) >= LEAST_BYTES}


def _multiplications(node: fx.Node) -> float:
    """Of a matrix product or convolution; 0 for all else."""
    return _cost(node) * size_in_bytes(node) if node.target in _PRODUCTS else 0.0


def _cost(node: fx.Node) -> float:
    """Multiplications for each byte of a matrix product's or convolution's result."""
    value, operand = node.meta["val"], node.args[0 if node.target is not aten.addmm.default else 1]
    if node.target is aten.convolution.default:
        weight = node.args[1].meta["val"]  # type: ignore[union-attr]
        inner = elements(weight) // max(hint(weight.shape[0]), 1)
    else:
        inner = hint(operand.meta["val"].shape[-1])  # type: ignore[union-attr]
    return inner / value.element_size()


def _behind_views(needed: set[fx.Node]) -> set[fx.Node]:
    """What must be kept when only views are computed again."""
    return {node for node in map(_behind_view, needed) if node.op != "placeholder"}


def _behind_view(node: fx.Node) -> fx.Node:
    """The value that a view is a view of."""
    while node.op == "call_function" and is_view(node):
        node = node.all_input_nodes[0]
    return node


def choose_remade(feedback: Sequence[fx.Node], nodes: Sequence[fx.Node], ahead: set[fx.Node]) -> set[fx.Node]:
    """The forward nodes that feedback runs again when it may keep what it likes.

    Args:
        feedback: feedback's own nodes.
        nodes: the joint graph, in order; `ahead`: its forward half.
    """
    needed = {source for node in feedback for source in node.all_input_nodes}
    views = ancestors(needed, lambda n: n in ahead and n.op == "call_function" and is_view(n))
    kept = {n for node in (*feedback, *views) for n in node.all_input_nodes if n in ahead and n not in views}
    results = set(nodes[-1].all_input_nodes)
    light: set[fx.Node] = set()
    pinned: set[fx.Node] = set()
    for node in nodes:
        if node not in kept or node in pinned or node in results or size_in_bytes(node) < LEAST_BYTES:
            continue
        way, start = _way(node, ahead, kept)
        if way is not None:
            light |= way
            kept -= way
            pinned |= start
    return views | light


def _way(node: fx.Node, ahead: set[fx.Node], kept: set[fx.Node]) -> tuple[set[fx.Node] | None, set[fx.Node]]:
    """The light operations that make a value from what is kept, and what they start from; None where it takes more."""
    way: set[fx.Node] = set()
    start: set[fx.Node] = set()
    stack, operations = [node], 0
    while stack:
        top = stack.pop()
        if top in way or top in start:
            continue
        if top is not node and (top in kept or top not in ahead or isinstance(top.meta.get("val"), int | torch.SymInt)):
            start.add(top)
            continue
        operations += not is_view(top)
        if top.op != "call_function" or not (top.target in _LIGHT or is_view(top)) or operations > MOST_OPERATIONS:
            return None, set()
        way.add(top)
        stack += top.all_input_nodes
    return way, start & kept
