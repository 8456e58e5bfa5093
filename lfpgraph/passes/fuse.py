"""A pass over a static graph that runs eagerly: the formulas of feedback become calls of `kernels`."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..graph.graph import shape_of
from . import kernels
from .nodes import is_fresh, is_view

__all__ = ["fuse_formulas"]

aten = torch.ops.aten
_ABS, _ADD = {aten.abs.default}, {aten.add.Tensor, aten.add.Scalar, aten.add_.Tensor, aten.add_.Scalar}
_MUL, _DIV = {aten.mul.Tensor, aten.mul_.Tensor}, {aten.div.Tensor, aten.div_.Tensor}
_ADDCDIV = {aten.addcdiv.default, aten.addcdiv_.default}
_WRITES = {aten.addcdiv_.default, aten.mul_.Tensor}


def fuse_formulas(graph: fx.Graph) -> int:
    """Change the graph, which `write_in_place` has seen; returns how many formulas were found."""
    found = 0
    for node in list(graph.nodes):
        call = _scaled(node) or _epsilon(node) or _identity(node) or _tied(node)
        if call is not None:
            function, args = call
            with graph.inserting_before(node):
                new = graph.call_function(function, args)
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            found += 1
    if found:
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return found


def _is(node: Any, targets: set[Any], readers: int = 1) -> bool:
    return isinstance(node, fx.Node) and node.target in targets and len(node.users) == readers


def _scaled(node: fx.Node) -> Any:
    """`s.mul_(abs(w))`, with the product that s is, if it is one."""
    if node.target is aten.mul_.Tensor and _is(node.args[1], _ABS) and _alike(node, node.args[1]):
        s, w = node.args[0], node.args[1].args[0]  # type: ignore[union-attr]
        if _is(s, {aten.mm.default}):
            return kernels.scaled_product, (*s.args, w)  # type: ignore[union-attr]
        return kernels.scale_by_size, (s, w)
    return None


def _epsilon(node: fx.Node) -> Any:
    """`addcdiv(s, s, abs(z) + e, value=-e)`, or without the absolute value."""
    if node.target not in _ADDCDIV or node.args[0] is not node.args[1] or not _is(node.args[2], _ADD):
        return None
    size, epsilon = node.args[2].args  # type: ignore[union-attr]
    if not isinstance(epsilon, float) or node.kwargs != {"value": -epsilon} or not _alike(node, size, node.args[0]):
        return None
    positive = not _is(size, _ABS)
    z = size if positive else size.args[0]  # type: ignore[union-attr]
    relu = node.args[0]
    if positive and _is(relu, {aten.threshold_backward.default}) and relu.args[1:] == (z, 0):  # type: ignore[union-attr]
        s = relu.args[0]  # type: ignore[union-attr]
        write = isinstance(s, fx.Node) and len(s.users) == 1 and is_fresh(s) and not is_view(s)
        return kernels.rectified_factor, (s, z, epsilon, write)
    return kernels.epsilon_factor, (node.args[0], z, epsilon, positive, node.target in _WRITES)


def _identity(node: fx.Node) -> Any:
    """`s * z / (copysign(e, x + 0) + x)`."""
    if node.target not in _DIV or not _is(node.args[0], _MUL) or not _is(node.args[1], _ADD):
        return None
    product, size = node.args
    sign, x = size.args  # type: ignore[union-attr]
    if not _is(sign, {aten.copysign.Tensor}) or not _is(sign.args[0], {aten.full.default}):  # type: ignore[union-attr]
        return None
    plus = sign.args[1]  # type: ignore[union-attr]
    s, z = product.args  # type: ignore[union-attr]
    shapes = isinstance(z, fx.Node) and _alike(node, x, s, z)
    if not _is(plus, _ADD) or plus.args != (x, 0.0) or not shapes:  # type: ignore[union-attr]
        return None
    epsilon = sign.args[0].args[1]  # type: ignore[union-attr]
    return kernels.identity_signal, (s, x, z, epsilon, product.target in _WRITES)  # type: ignore[union-attr,operator]


def _tied(node: fx.Node) -> Any:
    """The feedback of a matrix that is both a layer's weight and an embedding: `total.add_(embedding_dense_backward(...))`."""
    if node.target is not aten.add_.Tensor or node.kwargs or not _alike(node, *node.args):
        return None
    total, rows = node.args
    if _is(rows, {aten.embedding_dense_backward.default}):
        return kernels.add_rows, (total, *rows.args)  # type: ignore[union-attr]
    return None


def _alike(node: fx.Node, *others: Any) -> bool:
    """Whether all have one shape and type."""
    values = [n.meta.get("val") if isinstance(n, fx.Node) else None for n in (node, *others)]
    if not all(isinstance(v, torch.Tensor) for v in values):
        return False
    described = {(str(shape_of(n)), n.meta["val"].dtype) for n in (node, *others)}
    return len(described) == 1 and values[0].is_floating_point()  # type: ignore[union-attr]
