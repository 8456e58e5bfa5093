"""Where autograd stops and reward goes on: a step function's output, made of values that have a signal to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Bridge", "bridge"]


class Bridge(torch.autograd.Function):
    """The identity, with edges to other values; backward gives each the shape of a signal, which a rule then fills."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *sources: Tensor) -> Tensor:
        ctx.kinds = [(s.shape, s.dtype, s.device) for s in sources]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Any:
        zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.kinds]
        return (None, *zeros)


def bridge(x: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """x, with the gradient edges of its sources; signals along them are zero unless a rule says otherwise."""
    return Bridge.apply(x, *sources)
