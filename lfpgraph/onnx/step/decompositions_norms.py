"""The group norm, in operations that ONNX has; torch's own decomposition of it reads memory by strides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registry import decomposes


@decomposes(torch.ops.aten.native_group_norm.default)
def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: Any, c: Any, places: Any, groups: int, eps: float
) -> tuple[Tensor, ...]:
    """Output, and mean and inverse deviation [n, groups]."""
    grouped = x.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    centred = grouped - mean
    invstd = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    out = (centred * invstd).reshape(x.shape)
    channels = (-1, *[1] * (x.dim() - 2))
    if weight is not None:
        out = out * weight.reshape(channels)
    if bias is not None:
        out = out + bias.reshape(channels)
    return out, mean.squeeze(-1), invstd.squeeze(-1)
