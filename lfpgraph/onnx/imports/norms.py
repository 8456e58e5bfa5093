"""Normalising ONNX operators in torch: norms by statistics of a batch, group or layer, softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OnnxError
from .table import Node, imports


@imports("BatchNormalization")
def batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Any:
    if node.get("training_mode", 0):
        raise OnnxError(f"BatchNormalization {node.name!r} is in training mode; export the model for inference.")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, node.get("epsilon", 1e-5))


@imports("InstanceNormalization")
def instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Any:
    return F.group_norm(x, x.shape[1], scale, bias, node.get("epsilon", 1e-5))


@imports("GroupNormalization")
def group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Any:
    groups = node.get("num_groups")
    if node.version < 21:  # one scale for each group; since 21 for each channel
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


@imports("LayerNormalization")
def layer_norm(node: Node, x: Tensor, scale: Any, bias: Any = None) -> Any:
    axis = node.get("axis", -1) % x.dim()
    eps, shape = node.get("epsilon", 1e-5), list(x.shape[axis:])
    if node.outputs == 1:
        fits = list(scale.shape) == shape and (bias is None or list(bias.shape) == shape)
        if fits:
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
    if node.version >= 13:
        return function(x, node.get("axis", -1))
    axis = node.get("axis", 1) % x.dim()  # before opset 13 all axes from this one on are one
    return function(x.flatten(axis), -1).reshape(x.shape)


@imports("Hardmax")
def hardmax(node: Node, x: Tensor) -> Any:
    axis = node.get("axis", -1 if node.version >= 13 else 1)
    return F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)
