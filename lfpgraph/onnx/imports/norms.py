"""Norms, softmax, losses, and reductions of axes in torch: sums, extremes, running sums and products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Node, axes_of, imports, numbers, tensor_of


@imports("BatchNormalization")
def batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
    if node.get("training_mode", 0):
        raise OnnxError(f"BatchNormalization {node.name!r} is in training mode; export the model for inference.")
    mean, var = mean.detach(), var.detach()  # exporters let equal tensors be one, a bias of zeros and a mean too
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


@imports("InstanceNormalization", "GroupNormalization")
def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Any:
    groups = node.get("num_groups", x.shape[1])
    if groups != x.shape[1] and node.version < 21:  # one scale for each group; since 21 for each channel
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@imports("LayerNormalization")
def layer_norm(node: Node, x: Tensor, scale: Any, bias: Any = None) -> Any:
    axis = node.get("axis", -1) % x.dim()
    eps, shape = node.get("epsilon", 1e-5), list(x.shape[axis:])
    if node.outputs == 1:
        if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
            return F.layer_norm(x, shape, scale, bias, eps)
        out = F.layer_norm(x, shape, eps=eps) * scale
        return out if bias is None else out + bias
    axes = list(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(((x - mean) ** 2).mean(axes, keepdim=True) + eps)
    out = (x - mean) * inverse * scale
    return (out if bias is None else out + bias), mean, inverse


@imports("RMSNormalization")
def rms_norm(node: Node, x: Tensor, scale: Tensor) -> Any:
    return F.rms_norm(x, list(x.shape[node.get("axis", -1) % x.dim() :]), scale, node.get("epsilon", 1e-5))


@imports("LpNormalization")
def lp_norm(node: Node, x: Tensor) -> Any:
    size = torch.linalg.vector_norm(x, node.get("p", 2), node.get("axis", -1), keepdim=True)
    return torch.where(size == 0, torch.zeros_like(x), x / torch.where(size == 0, torch.ones_like(size), size))


@imports("MeanVarianceNormalization")
def mean_variance(node: Node, x: Tensor) -> Any:
    axes = node.get("axes", [0, 2, 3])
    mean = x.mean(axes, keepdim=True)
    return (x - mean) / (torch.sqrt(((x - mean) ** 2).mean(axes, keepdim=True)) + 1e-9)


@imports("LRN")
def lrn(node: Node, x: Tensor) -> Any:
    size, alpha = node.get("size"), node.get("alpha", 1e-4)
    before = (size - 1) // 2
    squares = F.pad((x * x).unsqueeze(1), [0, 0] * (x.dim() - 2) + [before, size - 1 - before])
    total = sum(squares.narrow(2, i, x.shape[1]) for i in range(size))
    assert isinstance(total, Tensor)
    return x / (node.get("bias", 1.0) + alpha / size * total.squeeze(1)) ** node.get("beta", 0.75)


@imports("Softmax", "LogSoftmax")
def softmax(node: Node, x: Tensor) -> Any:
    function: Any = torch.softmax if node.kind == "Softmax" else torch.log_softmax
    axis = node.get("axis", -1 if node.version >= 13 else 1)
    if node.version >= 13 or axis in (-1, x.dim() - 1):
        return function(x, axis)
    # before opset 13 all axes from this one on are one
    return function(x.flatten(axis), -1).reshape(x.shape)


@imports("Hardmax")
def hardmax(node: Node, x: Tensor) -> Any:
    axis = node.get("axis", -1 if node.version >= 13 else 1)
    return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)


def _reduction(kind: str) -> Any:
    def run(node: Node, x: Any, axes: Any = None) -> Any:
        x = tensor_of(x)
        chosen, keep = axes_of(node, axes), bool(node.get("keepdims", 1))
        if not chosen:
            if node.get("noop_with_empty_axes", 0):
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


@imports("CumSum", "CumProd", known=True)
def cumulated(node: Node, x: Any, axis: Any) -> Any:
    x, at = tensor_of(x), int(numbers(node, axis)[0])
    turned = x.flip(at) if node.get("reverse", 0) else x
    function: Any = torch.cumsum if node.kind == "CumSum" else torch.cumprod
    if node.get("exclusive", 0):
        first = torch.full_like(turned.narrow(at, 0, 1), int(node.kind == "CumProd"))
        turned = torch.cat([first, turned.narrow(at, 0, turned.shape[at] - 1)], at)
    found = function(turned, at).to(x.dtype)
    return found.flip(at) if node.get("reverse", 0) else found
