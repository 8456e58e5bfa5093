"""Which parameters are multiplied with activations: a zero among these blocks reward, where a zero that is added does not."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..registry import CONTRACTION, SPLIT, VIEW
from ..rules.loops import LSTM, RECURRENT, added_to_steps
from .graph import ACTIVE, CASTS, WEIGHT, OpGraph, is_float

aten = torch.ops.aten

__all__ = ["is_added", "is_cut", "is_factor", "joined_factors"]

_SAME = CASTS | {aten.clone.default}
_SCALES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
_DROPOUT = {aten.dropout.default, aten.native_dropout.default}


def is_factor(graph: OpGraph, parameter: fx.Node) -> bool:
    """Whether a parameter meets an activation other than as something added to it; operations on parameters alone between
    them do not count."""
    stack, seen = [parameter], {parameter}
    while stack:
        node = stack.pop()
        for user in node.users:
            info = graph.info[user]
            if info.kind == ACTIVE and not is_added(graph, user, node):
                return True
            if info.kind == WEIGHT and user not in seen:
                seen.add(user)
                stack.append(user)
    return False


def joined_factors(graph: OpGraph) -> set[fx.Node]:
    """The two matrices, by their placeholders, of each layer of low rank that is written as two: LoRA's `B(A(x))`.

    What is between them is narrower than what goes in and what comes out. There is nothing but views, casts, numbers that are
    multiplied with, and dropout, and nothing else reads what the first makes. Any change of basis R between them,
    `(B / R) (R A)`, is the same function, so the size of a single entry means nothing there.
    """
    layers = {node: found for node in graph.operations() if (found := _layer(graph, node)) is not None}
    joined: set[fx.Node] = set()
    for node, (_, weight) in layers.items():
        ends = list(_ends(graph, node))
        if ends and all(end in layers and layers[end][0] is source for source, end in ends):
            pair = weight, *(layers[end][1] for _, end in ends)
            width = _width(node, weight)
            whole = all(_width(source, layers[end][1]) == width for source, end in ends)  # no view has put more into it
            if whole and all(width**2 < n.meta["val"].numel() for n in pair):
                joined.update(pair)
    return joined


def _width(node: fx.Node, weight: fx.Node) -> int:
    """How many numbers a value has at each place, before or behind a layer with this weight."""
    return int(node.meta["val"].shape[1 if weight.meta["val"].dim() > 2 else -1])


def _layer(graph: OpGraph, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The activation and the parameter, of two dimensions or more, that an operation multiplies, each entry with each."""
    inputs = [n for n in node.all_input_nodes if not (graph.info[n].kind != ACTIVE and is_added(graph, node, n))]
    active = [n for n in inputs if graph.info[n].kind == ACTIVE and is_float(n.meta.get("val"))]
    if graph.info[node].family is not CONTRACTION or len(active) != 1 or len(inputs) != 2:
        return None
    (weight,) = (n for n in inputs if n is not active[0])
    while _only_shows(graph, weight):
        (weight,) = _tensors(weight)
    by_groups = isinstance(node.target, OpOverload) and _given(node).get("groups", 1) != 1
    value = weight.meta.get("val")
    matrix = weight.op == "placeholder" and isinstance(value, Tensor) and value.dim() > 1
    return (active[0], weight) if matrix and graph.info[weight].kind == WEIGHT and not by_groups else None


def _only_shows(graph: OpGraph, node: fx.Node) -> bool:
    """Whether a value is another one in another shape or type."""
    alike = node.target in _SAME or (node.op == "call_function" and graph.info[node].family is VIEW)
    return alike and len(_tensors(node)) == 1


def _tensors(node: fx.Node) -> list[fx.Node]:
    """What a node reads but sizes, which are nodes of their own where they are open."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor | list | tuple)]


def _ends(graph: OpGraph, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What reads a layer's output, behind views, multiplications with numbers and dropout: (what is read, who reads it)."""
    for user in node.users:
        scaled = user.target in _SCALES and len(user.all_input_nodes) == 1 and user.args[0] is node
        dropped = user.target in _DROPOUT or (
            user.target is operator.getitem and node.target in _DROPOUT and user.args[1] == 0
        )
        if _only_shows(graph, user) or scaled or dropped:
            yield from _ends(graph, user)
        else:
            yield node, user


def is_cut(graph: OpGraph, vector: fx.Node) -> bool:
    """Whether a vector is cut into matrices, as what shards flattened parameters does (FSDP of torch's first version)."""
    stack = [vector] if vector.meta["val"].dim() == 1 else []
    while stack:
        for user in stack.pop().users:
            value, family = user.meta.get("val"), graph.info[user].family
            if graph.info[user].kind != WEIGHT or not (family is VIEW or user.target is operator.getitem):
                continue
            if isinstance(value, Tensor) and value.numel() <= vector.meta["val"].numel():
                if sum(size > 1 for size in value.shape) > 1:
                    return True
            stack.append(user)
    return False


def is_added(graph: OpGraph, node: fx.Node, operand: fx.Node) -> bool:
    """Whether an operation only adds an operand: as one of a sum, or as its bias."""
    if graph.info[node].family is SPLIT:
        return True
    if node.target in (LSTM, RECURRENT):
        return any(operand is argument for argument in added_to_steps(node.target, node.args))
    if not isinstance(node.target, OpOverload):
        return False
    given = _given(node)
    names = [argument.name for argument in node.target._schema.arguments]
    bias = "self" if "beta" in names else "bias"  # of addmm and its like; of linear, convolutions and norms
    return given.get(bias) is operand and [v is operand for v in given.values()].count(True) == 1


def _given(node: fx.Node) -> dict[str, Any]:
    """An operation's arguments by name."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args)), **node.kwargs}
