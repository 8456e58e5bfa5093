"""Batch, layer and group norms and their backward forms, in operations that ONNX has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..registry import decomposes

aten = torch.ops.aten


@decomposes(aten._native_batch_norm_legit_functional.default)
def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, training: bool,
    momentum: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Output, mean and inverse deviation of the batch, new running statistics."""
    if not training:
        out, mean, invstd = batch_norm_eval(x, weight, bias, running_mean, running_var, momentum, eps)
        return out, mean, invstd, running_mean, running_var
    axes = [0, *range(2, x.dim())]
    mean = x.mean(axes)
    centred = x - _channels(mean, x)
    var = (centred * centred).mean(axes)
    invstd = torch.rsqrt(var + eps)
    count = torch.scalar_tensor(x.numel() // x.shape[1], dtype=var.dtype, device=x.device)
    unbiased = var * (count / (count - 1))
    new_mean = running_mean * (1 - momentum) + mean * momentum
    new_var = running_var * (1 - momentum) + unbiased * momentum
    return _scaled(centred, invstd, weight, bias), mean, invstd, new_mean, new_var


@decomposes(aten._native_batch_norm_legit.default)
def batch_norm_legit(x: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """The first three results; running statistics are written elsewhere."""
    return batch_norm(x, *args)[:3]


@decomposes(aten._native_batch_norm_legit.no_stats)
def batch_norm_no_stats(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    """Instance norms are of this kind."""
    zeros = torch.zeros((x.shape[1],), dtype=x.dtype, device=x.device)
    return batch_norm(x, weight, bias, zeros, zeros, True, momentum, eps)[:3]


@decomposes(aten._native_batch_norm_legit_no_training.default)
def batch_norm_eval(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """With the running statistics; the other results are empty, as ATen's are."""
    empty = torch.zeros((0,), dtype=x.dtype, device=x.device)
    invstd = torch.rsqrt(running_var + eps)
    return _scaled(x - _channels(running_mean, x), invstd, weight, bias), empty, empty


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """Values [c] to be met by x [n, c, ...]."""
    return values.reshape(-1, *[1] * (x.dim() - 2))


def _scaled(centred: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    out = centred * _channels(invstd if weight is None else invstd * weight, centred)
    return out if bias is None else out + _channels(bias, centred)


@decomposes(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    s: Tensor, x: Tensor, weight: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    mean: Tensor | None, invstd: Tensor | None, training: bool, eps: float, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Signals of x, weight and bias of a batch norm."""
    axes = [0, *range(2, x.dim())]
    if not training:
        assert running_mean is not None and running_var is not None
        mean, invstd = running_mean, torch.rsqrt(running_var + eps)
    assert mean is not None and invstd is not None
    normal = (x - _channels(mean, x)) * _channels(invstd, x)
    of_bias = s.sum(axes)
    of_weight = (s * normal).sum(axes)
    scale = invstd if weight is None else invstd * weight
    of_x = None
    if mask[0] and training:
        count = torch.scalar_tensor(x.numel() // x.shape[1], dtype=s.dtype, device=x.device)
        inner = s - _channels(of_bias / count, x) - normal * _channels(of_weight / count, x)
        of_x = inner * _channels(scale, x)
    elif mask[0]:
        of_x = s * _channels(scale, x)
    return of_x, of_weight if mask[1] else None, of_bias if mask[2] else None


@decomposes(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    s: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, invstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Signals of x, weight and bias of a layer norm."""
    outer, inner = list(range(x.dim() - len(shape))), list(range(x.dim() - len(shape), x.dim()))
    normal = (x - mean) * invstd
    of_x = None
    if mask[0]:
        scaled = s if weight is None else s * weight
        rest = scaled - scaled.mean(inner, keepdim=True) - normal * (scaled * normal).mean(inner, keepdim=True)
        of_x = rest * invstd
    of_weight = (s * normal).sum(outer) if mask[1] and outer else s * normal
    of_bias = s.sum(outer) if mask[2] and outer else s
    return of_x, of_weight if mask[1] else None, of_bias if mask[2] else None


@decomposes(aten.native_group_norm.default)
def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, c: Any, places: Any, groups: int, eps: float
) -> tuple[Tensor, ...]:
    """Output, and mean and inverse deviation [n, groups]."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    centred = grouped - mean
    invstd = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    out = (centred * invstd).reshape(x.shape)
    if weight is not None:
        out = out * _channels(weight, x)
    if bias is not None:
        out = out + _channels(bias, x)
    return out, mean.squeeze(-1), invstd.squeeze(-1)


@decomposes(aten.native_group_norm_backward.default)
def group_norm_backward(
    s: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, n: Any, c: Any, places: Any, groups: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Signals of x, weight and bias of a group norm."""
    grouped = (x.shape[0], groups, -1)
    normal = (x.reshape(grouped) - mean.unsqueeze(-1)) * invstd.unsqueeze(-1)
    axes = [0, *range(2, x.dim())]
    of_x = None
    if mask[0]:
        scaled = (s if weight is None else s * _channels(weight, x)).reshape(grouped)
        rest = scaled - scaled.mean(-1, keepdim=True) - normal * (scaled * normal).mean(-1, keepdim=True)
        of_x = (rest * invstd.unsqueeze(-1)).reshape(x.shape)
    of_weight = (s * normal.reshape(x.shape)).sum(axes) if mask[1] else None
    return of_x, of_weight, s.sum(axes) if mask[2] else None
