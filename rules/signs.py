"""What a graph says of a value's sign: some rules are half as long where no input is negative."""

from __future__ import annotations

import operator

import torch
from torch import fx

from lfpgraph.registry import CAST, POOLING, RANDOM, REDUCTION, VIEW, find_rule

__all__ = ["is_nonnegative"]

aten = torch.ops.aten
# No result of these is negative.
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
# No result of these is negative where no argument is; but for interpolations that overshoot.
_KEEPING = {CAST, POOLING, RANDOM, REDUCTION, VIEW}
_OVERSHOOTING = {
    aten._upsample_bicubic2d_aa.default,
    aten._upsample_bicubic2d_aa.vec,
    aten.upsample_bicubic2d.default,
    aten.upsample_bicubic2d.vec,
}
_SELECTING = {
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d.default,
    operator.getitem,
}


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
    """Whether a result has no negative entry where no tensor argument has one."""
    if node.op != "call_function":
        return False
    if node.target in _SELECTING:
        return True
    if node.target in (aten.add.Tensor, aten.mul.Tensor):
        numbers = [a for a in (*node.args, node.kwargs.get("alpha")) if isinstance(a, int | float)]
        return all(a >= 0 for a in numbers)
    if node.target is aten.constant_pad_nd.default:
        return all(a >= 0 for a in node.args[2:3])  # type: ignore[operator,misc]
    entry = find_rule(node.target)
    return entry is not None and entry.family in _KEEPING and node.target not in _OVERSHOOTING
