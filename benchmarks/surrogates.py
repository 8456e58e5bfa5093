"""Surrogate gradients: what backprop needs for a network of steps, and what feedback is measured against there."""

from __future__ import annotations

from typing import Any

import torch
from lfpgraph.models_zoo.other_kinds import LIF
from torch import Tensor, nn

__all__ = ["SURROGATE", "SurrogateLIF", "SurrogateStep"]

SURROGATE = "backprop: the same network with surrogate gradients"


class _Surrogate(torch.autograd.Function):
    """A step forward; backward the derivative of a fast sigmoid (Zenke and Ganguli 2018)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return g / (25 * x.abs() + 1) ** 2


class SurrogateStep(nn.Module):
    """A step with a surrogate gradient."""

    def forward(self, x: Tensor) -> Tensor:
        spike: Tensor = _Surrogate.apply(x)  # type: ignore[no-untyped-call]
        return spike


class SurrogateLIF(LIF):
    """Leaky integrate-and-fire neurons whose spikes have one."""

    def forward(self, current: Tensor, membrane: Tensor) -> tuple[Tensor, Tensor]:
        membrane = self.beta * membrane + current
        spike: Tensor = _Surrogate.apply(membrane - self.threshold)  # type: ignore[no-untyped-call]
        return spike, membrane - self.threshold * spike
