"""Which parameters are multiplied with activations: a zero among these blocks reward, where a zero that is added does not."""

from __future__ import annotations

import operator

from torch import Tensor, fx
from torch._ops import OpOverload

from ..registry import SPLIT, VIEW
from ..rules.loops import LSTM, RECURRENT, added_to_steps
from .graph import ACTIVE, WEIGHT, OpGraph

__all__ = ["is_added", "is_cut", "is_factor"]


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
    names = [argument.name for argument in node.target._schema.arguments]
    bias = "self" if "beta" in names else "bias"  # of addmm and its like; of linear, convolutions and norms
    given = {**dict(zip(names, node.args)), **node.kwargs}
    return given.get(bias) is operand and [v is operand for v in given.values()].count(True) == 1
