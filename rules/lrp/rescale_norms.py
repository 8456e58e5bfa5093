"""DeepLIFT's rule for normalisations: product, square and root one by one, which adds up exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import Call, Signals

from .multipliers import averaged, moving

__all__ = ["normalisation"]

aten = torch.ops.aten


def normalisation(call: Call, s: Any, *args: Any, **kwargs: Any) -> Signals:
    """Multipliers of a layer, RMS, group or instance norm; one with fixed statistics is linear."""
    signal = s[0] if isinstance(s, list | tuple) else s
    laid_out = _LAID_OUT.get(call.op)
    found = None if laid_out is None or moving(call) != [0] else laid_out(call.inputs[0], *args[1:], **kwargs)
    if found is None:
        return averaged(call, s, 5)
    shape, weight, eps, centred = found
    x, x0 = (t.reshape(shape) for t in (call.inputs[0], call.reference[0]))
    signal = (signal if weight is None else signal * weight).reshape(shape)
    c, c0 = (t - t.mean(-1, True) if centred else t for t in (x, x0))
    r, r0 = (torch.rsqrt(t.square().mean(-1, True) + eps) for t in (c, c0))
    c_mean = (c + c0) / 2
    at_square = -((r * r0) ** 2) / (r + r0) * (signal * c_mean).mean(-1, True)  # of the mean square, over its size
    at_c = signal * (r + r0) / 2 + 2 * at_square * c_mean
    at_x = at_c - at_c.mean(-1, True) if centred else at_c
    return [at_x.reshape(call.inputs[0].shape), *[None] * (len(call.inputs) - 1)]


Laid = tuple[list[Any], Tensor | None, float, bool] | None


def _layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Laid:
    return [*x.shape[: x.dim() - len(shape)], -1], weight, eps, True


def _rms_norm(x: Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Laid:
    return [*x.shape[: x.dim() - len(shape)], -1], weight, torch.finfo(x.dtype).eps if eps is None else eps, False


def _by_channel(x: Tensor, weight: Any) -> Any:
    return weight if weight is None else weight.view(1, -1, *[1] * (x.dim() - 2))


def _group_norm(x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> Laid:
    return [x.shape[0], groups, -1], _by_channel(x, weight), eps, True


def _native_group_norm(x: Tensor, weight: Any, bias: Any, n: Any, c: Any, hw: Any, groups: int, eps: float) -> Laid:
    return [x.shape[0], groups, -1], _by_channel(x, weight), eps, True


def _instance_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, own: bool, momentum: Any, eps: float, *_: Any
) -> Laid:
    return ([x.shape[0], x.shape[1], -1], _by_channel(x, weight), eps, True) if own else None


_LAID_OUT: dict[Any, Callable[..., Laid]] = {
    aten._fused_rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.layer_norm.default: _layer_norm,
    aten.native_group_norm.default: _native_group_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
}
