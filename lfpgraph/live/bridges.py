"""Where autograd stops and reward goes on: a step function's output, made of values that have a signal to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Bridge", "bridge", "is_bridge", "wake"]


class Bridge(torch.autograd.Function):
    """The identity, with edges to other values.

    Nothing goes along them, as without the bridge, until `wake` has been called on the autograd node: then backward gives
    each source zeros in the shape of a signal, for a rule to put its answers in their place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *sources: Tensor) -> Tensor:
        ctx.kinds = [(s.shape, s.dtype, s.device) for s in sources]
        ctx.awake = False
        return x.detach()  # no view of x, so it can be written to

    @staticmethod
    def backward(ctx: Any, s: Tensor) -> Any:
        if not ctx.awake or torch.is_grad_enabled():  # a derivative that is itself differentiated is the true one
            return (None,) * (1 + len(ctx.kinds))
        zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.kinds]
        return (None, *zeros)


def bridge(x: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """x, with the gradient edges of its sources; no signals go along them unless a rule says so."""
    return Bridge.apply(x, *sources)


def is_bridge(node: Any) -> bool:
    """Whether an autograd node is a bridge's."""
    return isinstance(node, Bridge._backward_cls)  # type: ignore[attr-defined]


def wake(node: Any) -> None:
    """Let an autograd node, if it is a bridge's, hand signals to its sources."""
    if is_bridge(node):
        node.awake = True
