"""Rules of the LRP papers for the layer at a model's input, where entries of zero mean something or have bounds.

Their messages are no products with x, so a signal is the message divided by x, stabilized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lfpgraph.errors import RuleError
from lfpgraph.numerics import stabilize
from lfpgraph.registry import Call, Signals

from .layers import LayerRule, Operands, negative, positive

__all__ = ["Box", "Flat", "WSquare"]

_LEAST = 1e-12  # stands for the epsilon of a stabilized signal where the ruleset's is 0


@dataclass(frozen=True)
class _InputlessRule(LayerRule):
    """Messages that do not look at x: w_ij^2 or 1. They hand a reward to entries of zero, too."""

    stabilizer: float = 1e-6

    def signals(self, call: Call, operands: Operands, s: Tensor) -> Signals:
        _, weight_place, bias_place = operands.places
        with torch.enable_grad():
            ones = torch.ones_like(operands.x).requires_grad_()
            w = self.weights(operands.w.detach()).requires_grad_(call.wanted[weight_place])
            b = None if operands.b is None else self.bias(operands.b.detach()).requires_grad_(call.wanted[bias_place])
            z = operands.layer(ones, w, b)
            leaves = _leaves(operands.places, (ones, w, b))
            found = torch.autograd.grad(z, list(leaves.values()), call.share(s, z.detach(), self.stabilizer))
        return _signals_of(call, {i: g * leaf.detach() for (i, leaf), g in zip(leaves.items(), found)})

    def weights(self, w: Tensor) -> Tensor:
        """What stands for the weights."""
        raise NotImplementedError

    def bias(self, b: Tensor) -> Tensor:
        """What stands for the bias."""
        return self.weights(b)


@dataclass(frozen=True)
class WSquare(_InputlessRule):
    """Messages w_ij^2, for inputs without bounds (Montavon et al. 2017, eq. 12)."""

    def weights(self, w: Tensor) -> Tensor:
        return w * w


@dataclass(frozen=True)
class Flat(_InputlessRule):
    """The same message from every input: a layer's reward spread over its field of view (Lapuschkin et al. 2019)."""

    def weights(self, w: Tensor) -> Tensor:
        return torch.ones_like(w)

    def bias(self, b: Tensor) -> Tensor:
        return torch.zeros_like(b)


@dataclass(frozen=True)
class Box(LayerRule):
    """Messages x w - low w+ - high w-, for inputs between low and high (deep Taylor; Montavon et al. 2017, eq. 13).

    Attributes:
        low, high: smallest and largest value an input can have; one number, or one for each channel (dimension 1).
        stabilizer: moves the sum that is divided by away from zero.

    Raises:
        RuleError: not low < high, or not as many of both.
    """

    low: float | tuple[float, ...] = -3.0
    high: float | tuple[float, ...] = 3.0
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("low", "high"):  # lists, arrays and tensors of one number for each channel, too
            value = getattr(self, name)
            if not isinstance(value, int | float):
                object.__setattr__(self, name, tuple(float(v) for v in value))
        lows, highs = (v if isinstance(v, tuple) else (v,) for v in (self.low, self.high))
        alike = len(lows) == len(highs) or 1 in (len(lows), len(highs))
        if (
            not alike
            or not all(a < b for a in lows for b in highs if len(lows) != len(highs))
            or not all(a < b for a, b in zip(lows, highs))
        ):
            raise RuleError(
                f"the box rule needs low < high, one number each or one for each channel; got {self.low} and {self.high}"
            )

    def signals(self, call: Call, operands: Operands, s: Tensor) -> Signals:
        place, *others = operands.places
        w, b = operands.w, operands.b
        with torch.enable_grad():
            bounds = (operands.x, _filled(operands.x, self.low), _filled(operands.x, self.high))
            x, low, high = ends = [t.detach().requires_grad_() for t in bounds]
            parts = [(x, w, b)] + [
                (bound, part(w), None if b is None else part(b)) for bound, part in ((low, positive), (high, negative))
            ]
            z, z_low, z_high = (operands.layer(*part) for part in parts)
            total = z - z_low - z_high
            leaves = _leaves(others, (w, b))
            share = call.share(s, total.detach(), self.stabilizer)
            found = torch.autograd.grad(total, [*ends, *leaves.values()], share, allow_unused=True)
        messages = {place: sum(t.detach() * g for t, g in zip(ends, found))}
        messages |= {i: g * leaf.detach() for (i, leaf), g in zip(leaves.items(), found[3:]) if g is not None}
        return _signals_of(call, messages)


def _filled(x: Tensor, value: float | tuple[float, ...]) -> Tensor:
    """A tensor like x of one value, or of one for each entry of dimension 1."""
    if not isinstance(value, tuple):
        return torch.full_like(x, value)
    if x.dim() < 2 or x.shape[1] != len(value):
        raise RuleError(f"the box rule has {len(value)} bounds for an input of shape {list(x.shape)}")
    return torch.cat([torch.full_like(part, v) for part, v in zip(x.split(1, 1), value)], 1)


def _leaves(places: Sequence[Any], tensors: Sequence[Any]) -> dict[int, Tensor]:
    """The tensors that want a derivative, by place."""
    return {i: t for i, t in zip(places, tensors) if t is not None and t.requires_grad}


def _signals_of(call: Call, messages: Mapping[int, Any]) -> Signals:
    """Signals of the tensor arguments that want one and have messages: those, divided by the argument, stabilized."""
    epsilon = call.stabilized = call.epsilon or _LEAST
    return [
        messages[i] / stabilize(x.detach(), epsilon) if call.wanted[i] and i in messages else None
        for i, x in enumerate(call.inputs)
    ]
