"""Writes that autograd does not see, under no_grad or to a detached tensor: values change, and the way back stays as it was.

Torch's functionalisation knows memory alone: what is read after such a write would be made of what was written, and cut off
from where the tensor came from. Here it is read from an operation that holds what was written (`rules.views.HELD`), and hands
its signal on to what the tensor was before.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import TraceError
from ...graph.graph import DETACH, NEW, ancestors
from ...rules.views import HELD
from ..cells import emit
from .writes import is_mutable, memory_of

__all__ = ["hold_unseen", "read_beside"]

_aten = torch.ops.aten


def hold_unseen(graph: fx.Graph, regions: Mapping[fx.Node, fx.GraphModule]) -> None:
    """Let what is read after such writes hand on its signal, where they are to what autograd follows.

    Args:
        regions: the nodes of regions without gradients, and what runs in each.

    Raises:
        TraceError: what is read after such a write is a view of it that the region has made.
    """
    for node in list(graph.nodes):
        for written in list(_unseen(node, regions.get(node))):
            root = _root(written)
            if _is_followed(root):
                _hold(graph, node, root, regions.get(node))


def _unseen(node: fx.Node, body: fx.GraphModule | None) -> Iterator[fx.Node]:
    """What a node writes to without autograd's knowledge."""
    if body is not None:
        written = {_root(n.args[0]) for n in body.graph.nodes if is_mutable(n.target)}  # type: ignore[arg-type]
        for argument, given in zip(_arguments(body), node.args[2:]):
            if argument in written:
                yield given  # type: ignore[misc]
    elif is_mutable(node.target) and any(n.target in DETACH for n in _chain(node.args[0])):
        yield node.args[0]  # type: ignore[misc]


def _arguments(body: fx.GraphModule) -> list[fx.Node]:
    return [n for n in body.graph.nodes if n.op == "placeholder"]


def _chain(node: Any) -> Iterator[fx.Node]:
    """A tensor, what it is a view of, what that is a view of, and so on."""
    while isinstance(node, fx.Node):
        yield node
        source: Any = node.args[0] if node.op == "call_function" and node.args else None
        node = source if isinstance(source, fx.Node) and memory_of(node) & memory_of(source) else None


def _root(node: fx.Node) -> fx.Node:
    return list(_chain(node))[-1]


def read_beside(graph: fx.Graph, view: fx.Node) -> bool:
    """Whether anything reads the memory of a view otherwise than through it."""
    others = {n for n in graph.nodes if memory_of(n) & memory_of(view) and view not in _chain(n)}
    return any(user not in others and user is not view for n in others for user in n.users)


def _is_followed(root: fx.Node) -> bool:
    """Whether autograd may follow a value that the graph has made."""
    if root.op != "call_function" or not _is_float(root):
        return False
    made_of = ancestors([root], lambda n: n.target not in NEW and n.target not in DETACH)
    return any(n.op == "placeholder" and _is_float(n) for n in made_of)


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _hold(graph: fx.Graph, write: fx.Node, root: fx.Node, body: fx.GraphModule | None) -> None:
    """Let all that is read of a root's memory after a write be read from what holds it."""
    nodes = list(graph.nodes)
    later = set(nodes[nodes.index(write) + 1 :])
    same = {write: write.args[0]} if body is None else _handed_back(write, body)
    alike = {n: [*_chain(same.get(n, n))] for n in nodes if n not in later or n in same}
    alike = {n: chain for n, chain in alike.items() if root in chain}
    read = [n for n in alike if later.intersection(n.users)]
    if all(any(x.target in DETACH for x in alike[n]) for n in read):
        return  # nobody reads it but as it is detached
    now: dict[fx.Node, fx.Node] = {}

    def held(node: fx.Node) -> fx.Node:
        if node in same or is_mutable(node.target):
            return held(same.get(node, node.args[0]))  # type: ignore[arg-type]
        if node not in now:
            args = [held(x) if isinstance(x, fx.Node) and x in alike else x for x in node.args]
            now[node] = emit(graph, node, node.target, *args, **node.kwargs)
        return now[node]

    with graph.inserting_before(write):
        before = emit(graph, root, _aten.clone.default, root)
    first = next(n for n in nodes[nodes.index(write) + 1 :] if n not in write.users or n.target is not operator.getitem)
    with graph.inserting_before(first):
        now[root] = emit(graph, root, HELD, before, emit(graph, root, _aten.detach.default, root))
        now[root].meta["val"] = root.meta["val"]  # for what follows it lies in the same memory
        for node in read:
            for user in later.intersection(node.users) - same.keys():
                user.replace_input_with(node, held(node))


def _handed_back(region: fx.Node, body: fx.GraphModule) -> dict[fx.Node, Any]:
    """Of each result of a region that is an argument again, which one: what an operation in place returns."""
    found = dict[fx.Node, Any]()
    arguments, results = _arguments(body), body.graph.output_node().args[0]
    for item in (n for n in region.users if n.target is operator.getitem and n.users):
        chain = list(_chain(results[item.args[1]]))  # type: ignore[index]
        if chain[-1] not in arguments or not any(
            is_mutable(n.target) for n in body.graph.nodes if chain[-1] in _chain(n)
        ):
            continue
        if not all(is_mutable(n.target) for n in chain[:-1]):
            raise TraceError(
                "forward reads a view, made under no_grad, of a tensor that is written to there, which a trace loses. "
                'wrap(model, engine="live") runs the model itself.'
            )
        found[item] = region.args[2 + arguments.index(chain[-1])]
    return found
