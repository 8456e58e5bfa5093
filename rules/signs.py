"""What a graph says of a value's sign: some rules are half as long where no input is negative."""

from __future__ import annotations

import torch
from torch import fx

from lfpgraph.registry import find_rule

__all__ = ["is_nonnegative"]

aten = torch.ops.aten
_NONNEGATIVE = {
    aten._softmax.default,
    aten.abs.default,
    aten.exp.default,
    aten.hardsigmoid.default,
    aten.relu.default,
    aten.relu6.default,
    aten.sigmoid.default,
    aten.softmax.int,
    aten.softplus.default,
    aten.square.default,
}
_KEEPING = {"view", "pooling", "reduction", "random", "cast"}
_KEEPING_OPS = {
    aten.add.Tensor,
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d.default,
    aten.mul.Tensor,
}
_INTERPOLATING = "upsample_bicubic"  # overshoots


def is_nonnegative(node: fx.Node) -> bool:
    """Whether a node's value can have no negative entry, as far as the operations before it tell."""
    stack, seen = [node], set()
    while stack:
        top = stack.pop()
        if top in seen or top.target in _NONNEGATIVE:
            continue
        seen.add(top)
        if not _keeps(top):
            return False
        tensors = [n for n in top.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor | list | tuple)]
        if not tensors:
            return False
        stack += tensors
    return True


def _keeps(node: fx.Node) -> bool:
    """Whether a result has no negative entry where no argument has one."""
    if node.op != "call_function":
        return False
    if getattr(node.target, "__name__", "") == "getitem":
        return True
    entry = find_rule(node.target)
    if entry is None or _INTERPOLATING in str(node.target):
        return False
    numbers = [a for a in node.args if isinstance(a, int | float)]
    if node.target is aten.constant_pad_nd.default:
        return all(a >= 0 for a in node.args[2:3])  # type: ignore[operator,misc]
    if node.target in _KEEPING_OPS:
        return all(a >= 0 for a in (*numbers, node.kwargs.get("alpha", 0))) or "pool" in str(node.target)  # type: ignore[operator]
    return entry.family.name in _KEEPING
