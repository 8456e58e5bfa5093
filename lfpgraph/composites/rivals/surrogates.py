"""Surrogate derivatives: a piecewise constant run executed once more with soft steps, and the derivative of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ...graph.graph import CASTS
from ...registry import Call, Signals

__all__ = ["SLOPES", "soft_vjp"]

aten = torch.ops.aten

# Derivative of a step at x, the distance from its threshold, with steepness k.
SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "atan": lambda x, k: k / 2 / (1 + (torch.pi / 2 * k * x).square()),
    "box": lambda x, k: ((k * x).abs() <= 1).to(x.dtype),
    "fast_sigmoid": lambda x, k: 1 / (k * x.abs() + 1).square(),
    "identity": lambda x, k: torch.ones_like(x),
}
_ABOVE = {aten.ge.Scalar, aten.ge.Tensor, aten.gt.Scalar, aten.gt.Tensor}
_BELOW = {aten.le.Scalar, aten.le.Tensor, aten.lt.Scalar, aten.lt.Tensor}
_SIGNS = {aten.sgn.default, aten.sign.default}
_NOT = {aten.bitwise_not.default, aten.logical_not.default}
_AND = {aten.bitwise_and.Tensor, aten.logical_and.default}
_OR = {aten.bitwise_or.Tensor, aten.logical_or.default}
_WHERE = {aten.where.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.self}


def soft_vjp(call: Call, s: Tensor, surrogate: str, slope: float, rounding: set[OpOverload]) -> Signals:
    """Signals of a run's inputs through its soft twin.

    A comparison becomes a number with the surrogate's derivative, and what is made of it follows: casts, not, and, or,
    `where`. A sign counts as two steps; rounding (`rounding`, and ceil, floor, trunc) as the identity.
    """
    leaves = [
        x.detach().requires_grad_() if want and isinstance(x, Tensor) and x.is_floating_point() else x
        for x, want in zip(call.inputs, call.wanted)
    ]
    local: dict[fx.Node, Any] = dict(zip(call.sources, leaves))
    step = lambda x: _Step.apply(x, surrogate, slope)  # noqa: E731
    with torch.enable_grad():
        for inner in call.nodes:
            args, kwargs = fx.node.map_arg((inner.args, inner.kwargs), lambda n: local[n])
            local[inner] = _soft(inner.target, args, kwargs, step, rounding)
        z = local[call.nodes[-1]]
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    found = iter(torch.autograd.grad(z, wanted, s.to(z.dtype), allow_unused=True) if z.requires_grad else [])
    return [next(found, None) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in leaves]


def _soft(op: Any, args: Any, kwargs: Any, step: Callable[[Tensor], Tensor], rounding: set[OpOverload]) -> Any:
    """What an operation of the soft twin gives: numbers from 0 to 1 where there were booleans."""
    if op in _ABOVE:
        return step(args[0] - args[1])
    if op in _BELOW:
        return step(args[1] - args[0])
    if op is aten.heaviside.default:
        return step(args[0])
    if op in _SIGNS:
        return 2 * step(args[0]) - 1
    if op in rounding or op in CASTS:
        return args[0]
    if op in _NOT:
        return 1 - args[0]
    if op in _AND:
        return args[0] * args[1]
    if op in _OR:
        return args[0] + args[1] - args[0] * args[1]
    if op in _WHERE and args[0].is_floating_point():
        return args[0] * args[1] + (1 - args[0]) * args[2]
    return op(*args, **kwargs)


class _Step(torch.autograd.Function):
    """Heaviside with a derivative of our choice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, surrogate: str, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.chosen = (surrogate, slope)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        surrogate, slope = ctx.chosen
        return gradients[0] * SLOPES[surrogate](x, slope), None, None
