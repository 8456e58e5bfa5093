"""ONNX operators that reduce axes, in torch: sums and the like, places of extremes, running sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .table import Node, axes_of, imports, numbers, tensor_of


def _reduction(kind: str) -> Any:
    def run(node: Node, x: Any, axes: Any = None) -> Any:
        x = tensor_of(x)
        chosen, keep = axes_of(node, axes), bool(node.get("keepdims", 1))
        if not chosen:
            if node.get("noop_with_empty_axes", 0):
                chosen = []
                return _REDUCTIONS[kind](x.unsqueeze(0), [0], False) if kind not in _PLAIN else x
            chosen = list(range(x.dim()))
        return _REDUCTIONS[kind](x, chosen, keep) if chosen else x

    return run


_PLAIN = {"Sum", "Mean", "Max", "Min", "Prod"}


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(name: str) -> Any:
    def run(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.dtype == torch.bool:
            return run(x.to(torch.uint8), axes, keep).to(torch.bool)
        if not x.numel() and x.is_floating_point():
            return x.sum(axes, keepdim=keep) + (float("-inf") if name == "amax" else float("inf"))
        return getattr(torch, name)(x, axes, keepdim=keep)

    return run


_REDUCTIONS: dict[str, Any] = {
    "Sum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "Mean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "Max": _extreme("amax"),
    "Min": _extreme("amin"),
    "Prod": _product,
    "L1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep, dtype=x.dtype),
    "L2": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep).sqrt(),
    "SumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep, dtype=x.dtype),
    "LogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "LogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}
for _kind in _REDUCTIONS:
    imports(f"Reduce{_kind}", known=True)(_reduction(_kind))


@imports("ArgMax", "ArgMin")
def arg_extreme(node: Node, x: Tensor) -> Any:
    axis, keep = node.get("axis", 0), bool(node.get("keepdims", 1))
    function = torch.argmax if node.kind == "ArgMax" else torch.argmin
    if not node.get("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)


@imports("CumSum", known=True)
def cumsum(node: Node, x: Tensor, axis: Any) -> Any:
    at = int(numbers(node, axis)[0])
    turned = x.flip(at) if node.get("reverse", 0) else x
    found = torch.cumsum(turned, at).to(x.dtype)
    if node.get("exclusive", 0):
        found = found - turned
    return found.flip(at) if node.get("reverse", 0) else found
