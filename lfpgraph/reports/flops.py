"""Floating-point operations of each node of a graph, from its shapes alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..graph.graph import is_float

__all__ = ["node_flops"]


def node_flops(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """FLOPs of every node, for the example's sizes.

    Products (matrix products, convolutions, attention) are counted by torch's own formulas, a multiply-add as two;
    every other operation on floats counts one per element of its output. Views and moves of integers count nothing.
    Nodes of equal operation and shapes are counted once and remembered.
    """
    known: dict[Any, int] = {}
    result = {}
    for node in nodes:
        key = _key(node)
        if key not in known:
            known[key] = _count(node)
        result[node] = known[key]
    return result


def _describe(value: Any) -> Any:
    value = value.meta.get("val") if isinstance(value, fx.Node) else value
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(str(n) for n in value.shape))
    return str(value)


def _key(node: fx.Node) -> Any:
    leaves = tree_leaves((node.args, node.kwargs), is_leaf=lambda x: isinstance(x, fx.Node))
    return (node.target, tuple(_describe(leaf) for leaf in leaves))


def _count(node: fx.Node) -> int:
    value = node.meta.get("val")
    items: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    outputs = [t for t in items if is_float(t)]
    if not outputs or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    counter = FlopCounterMode(display=False)
    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta.get("val"))
        with torch.no_grad(), counter:
            node.target(*args, **kwargs)
        flops = int(counter.get_total_flops())
    except Exception:  # a shape function that does not run again: the elements are counted instead
        flops = 0
    if flops:
        return flops
    return 0 if node.target.is_view else sum(map(_elements, outputs))


def _elements(tensor: Tensor) -> int:
    try:
        return int(tensor.numel())
    except Exception:  # a size that only the data decides
        return 0
