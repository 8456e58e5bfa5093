"""Passes over the joint graph: what is computed at every time step alike is computed once, or in one large operation.

A recurrent weight's feedback is `sum_t s_t^T h_t`: each product writes a whole matrix and each sum reads two, for a few rows
of work. Side by side they are one product, `cat(s)^T cat(h)`, and `(sum_t s_t)^T h` where all steps read the same, as a
spiking network reads one picture; sums over rows likewise. And what all steps read, each its own part, gets the parts'
signals side by side: each alone would be a tensor of zeros as large as the whole, written and added.
"""

from __future__ import annotations

import contextlib
import operator
from collections import defaultdict
from typing import Any

import torch
from torch import fx

from ..graph.graph import ancestors, shape_of
from .nodes import draws, hint, is_view, is_write, stays

__all__ = ["compute_once", "join_products"]

aten = torch.ops.aten
_FEW = 4  # terms below which nothing is gained
_SHORT = 512  # rows of a term, up to which its product waits for memory


def compute_once(graph: fx.Graph, n_outputs: int) -> int:
    """Compute once what the forward half computes several times of the same values; returns how many nodes went.

    What is returned, or shares memory with what is, stays apart: who is given two tensors may write to one of them.
    """
    results: Any = graph.output_node().args[0]
    forward = ancestors([node for node in results[:n_outputs] if isinstance(node, fx.Node)])
    given = set()
    for node in results:
        while isinstance(node, fx.Node):
            given.add(node)
            node = node.args[0] if node.args and is_view(node) else None
    first: dict[Any, fx.Node] = {}
    went = 0
    for node in list(graph.nodes):
        other = node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload)
        if other or node not in forward or node in given or draws(node) or is_write(node):
            continue
        same = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
            went += 1
    return went


def join_products(graph: fx.Graph, little_memory: bool = False) -> int:
    """Change the graph; returns how many products, sums over rows and parts went into larger ones.

    Args:
        little_memory: join only what takes less memory than before; rows of all steps would have to wait for their product.
    """
    joined = 0
    made = _Joined(graph)
    for root in list(graph.nodes):
        if not _is_sum(root) or any(_is_sum(user) and len(root.users) == 1 for user in root.users):
            continue
        leaves = _leaves(root)
        groups: dict[Any, list[fx.Node]] = defaultdict(list)
        for leaf in leaves:
            groups[_kind(leaf, little_memory)].append(leaf)
        large = {k: terms for k, terms in groups.items() if k is not None and len(terms) >= _least(k)}
        if not large:
            continue
        joined += sum(map(len, large.values()))
        taken = {leaf for terms in large.values() for leaf in terms}
        rest = [leaf for leaf in leaves if leaf not in taken]
        with graph.inserting_before(root):
            terms = [*rest, *(getattr(made, kind[0])(group) for kind, group in large.items())]
            total = terms[0]
            for term in terms[1:]:
                total = made.call(aten.add.Tensor, total, term)
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


def _kind(node: fx.Node, little_memory: bool) -> Any:
    """Terms of one kind can be joined, by the method of `_Joined` that it names first; None cannot."""
    if len(node.users) != 1 or not node.args:
        return None
    first: Any = node.args[0]
    if node.target is aten.mm.default and isinstance(first, fx.Node) and first.target is aten.t.default:
        rows = first.args[0].meta["val"].shape[0]  # type: ignore[union-attr]
        if little_memory:
            return ("product", node.args[1])
        return ("product",) if hint(rows) <= _SHORT else None
    if node.target is aten.sum.dim_IntList and isinstance(first, fx.Node) and not little_memory:
        value = first.meta["val"]
        if list(node.args[1]) == [0] and value.dim() == 2 and len(node.args) < 4 and not node.kwargs:  # type: ignore[arg-type]
            return ("rows", *node.args[2:]) if hint(value.shape[0]) <= _SHORT else None
    if node.target is operator.getitem and first.target is aten.convolution_backward.default:
        _, *same = first.args
        return None if same[-1][0] else ("convolution", repr(same), node.args[1])
    if node.target is aten.select_backward.default:
        given: Any = node.args
        _, sizes, dim, _ = given
        return ("parts", dim, *sizes) if isinstance(sizes[dim], int) else None
    return None


def _least(kind: Any) -> int:
    """How many terms of a kind are worth joining; of parts also half of all there are, since the others are zeros."""
    name, *same = kind
    if name == "parts":
        dim, *sizes = same
        return max(_FEW, sizes[dim] // 2)
    reads_one = name == "convolution" or (name == "product" and same)  # all terms read the same
    return 2 if reads_one else _FEW


class _Joined:
    """What terms become; each method takes those of one kind. What several of them need is there once."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.made: dict[Any, fx.Node] = {}
        self.order = {node: i for i, node in enumerate(graph.nodes)}

    def product(self, terms: list[fx.Node]) -> fx.Node:
        """The feedback of a weight: of the signals one below the other, or of their total where all read the same."""
        by_input: dict[Any, list[fx.Node]] = defaultdict(list)
        for term in terms:
            by_input[term.args[1]].append(term.args[0].args[0])  # type: ignore[union-attr,arg-type]
        signals = self.cat([self.total(group) for group in by_input.values()])
        return self.call(aten.mm.default, self.call(aten.t.default, signals), self.cat(list(by_input)))

    def rows(self, terms: list[fx.Node]) -> fx.Node:
        """The feedback of a bias."""
        signals: list[Any] = [term.args[0] for term in terms]
        alike = set.intersection(*map(_factors, signals))  # the weight's product wants the total as well
        joined = self.total(signals) if alike else self.cat(signals)
        return self.call(aten.sum.dim_IntList, joined, *terms[0].args[1:])

    def convolution(self, terms: list[fx.Node]) -> fx.Node:
        """The feedback of a convolution's weight or bias, where all steps read the same: of the total of the signals."""
        calls: list[Any] = [term.args[0] for term in terms]
        total = self.total([call.args[0] for call in calls])
        key = ("convolution", *calls)
        if key not in self.made:
            self.made[key] = self.call(aten.convolution_backward.default, total, *calls[0].args[1:])
        return self.call(operator.getitem, self.made[key], terms[0].args[1])

    def parts(self, terms: list[fx.Node]) -> fx.Node:
        """The signals of the parts of one tensor, side by side."""
        signals: dict[int, fx.Node] = {}
        given: Any = [term.args for term in terms]
        for s, sizes, dim, place in given:
            place %= sizes[dim]
            signals[place] = self.call(aten.add.Tensor, signals[place], s) if place in signals else s
        zeros = self.call(aten.zeros_like.default, given[0][0]) if len(signals) < sizes[dim] else None
        return self.call(aten.stack.default, [signals.get(i, zeros) for i in range(sizes[dim])], dim)

    def cat(self, parts: list[Any]) -> fx.Node:
        """The parts one below the other."""
        key = ("cat", *parts)
        if key not in self.made:
            self.made[key] = parts[0] if len(parts) == 1 else self.call(aten.cat.default, parts)
        return self.made[key]

    def total(self, signals: list[fx.Node]) -> fx.Node:
        """The sum of signals: each is added as soon as it is there, so that none waits for the others."""
        key = ("total", *signals)
        if key not in self.made:
            there = all(signal in self.order for signal in signals)
            first, *others = sorted(signals, key=self.order.__getitem__) if there else signals
            for signal in others:
                with self.graph.inserting_after(signal) if there else contextlib.nullcontext():
                    first = self.call(aten.add.Tensor, first, signal)
            self.made[key] = first
        return self.made[key]

    def call(self, op: Any, *args: Any) -> fx.Node:
        """A new node with its fake value."""
        node = self.graph.call_function(op, args)
        values = fx.node.map_arg(args, lambda n: n.meta["val"])
        mode = next(v.fake_mode for v in torch.utils._pytree.tree_leaves(values) if hasattr(v, "fake_mode"))
        with torch.no_grad(), mode:
            node.meta["val"] = op(*values)
        return node


def _factors(signal: fx.Node) -> set[Any]:
    """What a signal is multiplied with for the feedback of weights."""
    turned = [node for node in signal.users if node.target is aten.t.default]
    return {user.args[1] for node in turned for user in node.users if user.target is aten.mm.default}
