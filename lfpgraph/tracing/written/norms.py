"""A batch norm of an exported graph, which writes its statistics, as an operation that returns them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx

from ..cells import emit

__all__ = ["is_norm", "is_plain_norm", "norm_without_writes"]

_aten = torch.ops.aten


def is_norm(node: fx.Node) -> bool:
    """Whether a node is a batch norm."""
    return node.target is _aten.batch_norm.default


def is_plain_norm(node: fx.Node) -> bool:
    """Whether all arguments of a batch norm are given by place, and are of the usual kinds."""
    if len(node.args) != 9:  # some by name
        return False
    _, _, _, mean, variance, training, momentum, eps, _ = node.args
    tracked = mean is not None and variance is not None
    numbers = isinstance(momentum, float) and isinstance(eps, float)
    return numbers and isinstance(training, bool) and (tracked or mean is variance)


def norm_without_writes(graph: fx.Graph, node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """A batch norm's result, and the statistics that it leaves while it trains, by an operation that writes nothing."""
    x, w, b, mean, variance, training, *rest, _ = cast(Sequence[Any], node.args)
    statistics: list[Any] = [] if mean is None else [mean, variance]
    if x.meta["val"].numel() == 0:  # its kernels refuse that, or divide by zero; this is what torch.batch_norm does
        return _norm_of_nothing(graph, node, x, w, b), statistics if training else []
    if not training:
        made = emit(graph, node, _aten._native_batch_norm_legit_no_training.default, x, w, b, mean, variance, *rest)
    elif statistics:
        op = _aten._native_batch_norm_legit_functional.default
        made = emit(graph, node, op, x, w, b, *statistics, True, *rest)
    else:
        made = emit(graph, node, _aten._native_batch_norm_legit.no_stats, x, w, b, True, *rest)
    result = emit(graph, node, operator.getitem, made, 0)
    return result, [emit(graph, node, operator.getitem, made, 3 + i) for i in range(len(statistics) if training else 0)]


def _norm_of_nothing(graph: fx.Graph, node: fx.Node, x: Any, w: Any, b: Any) -> fx.Node:
    """No entries, made of what they would be made of, so that parameters have a gradient of zeros."""
    result = emit(graph, node, _aten.clone.default, x)
    for op, vector in ((_aten.mul.Tensor, w), (_aten.add.Tensor, b)):
        if vector is not None:
            result = emit(graph, node, op, result, emit(graph, node, _aten.select.int, vector, 0, 0))
    return result
