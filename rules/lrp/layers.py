"""How the rules of the LRP papers treat a layer, the product of an activation and weights: run with other operands.

A rule hands input i of output j the share z_ij / sum_i z_ij of j's reward, for messages z_ij of its own (the epsilon rule
has z_ij = x_i w_ij). All of them are sums of terms `layer(f(x), g(w), h(b))`, so one mechanism serves every operation that
is linear in x and in w: run the layer on the modified operands, divide the reward by the results, and take the
vector-Jacobian product. The rules are in `products` and `input`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lfpgraph.registry import Call, Signals

from ..linear import ADDEND, contraction
from ..signs import is_nonnegative

__all__ = ["LayerRule", "Operands", "negative", "positive"]


class Operands:
    """A layer's operands as leaves of a tape: x, w and b, b being None where nothing is added."""

    def __init__(self, call: Call) -> None:
        self.call = call
        tensors = range(len(call.inputs))
        addend = ADDEND.get(call.op)
        self.places: list[Any] = [
            next(i for i in tensors if call.active[i]),
            next(i for i in tensors if not call.active[i] and i != addend),
            addend if addend is not None and addend < len(call.inputs) else None,
        ]
        self.leaves: list[Any] = [
            None if i is None else call.inputs[i].detach().requires_grad_(call.wanted[i]) for i in self.places
        ]
        self.x, self.w, self.b = self.leaves
        self.x_is_positive = is_nonnegative(call.sources[self.places[0]])

    def layer(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """The layer on other operands."""
        tensors = list(self.call.inputs)
        for place, value in zip(self.places, (x, w, b)):
            if place is not None:
                tensors[place] = value
        return self.call.run(tensors)

    def signals(self, outputs: Sequence[Tensor], given: Sequence[Tensor]) -> Signals:
        """The vjp of `outputs` at the operands, in the order of the operation's tensor arguments."""
        result: Signals = [None] * len(self.call.inputs)
        wanted = [(i, leaf) for i, leaf in zip(self.places, self.leaves) if leaf is not None and leaf.requires_grad]
        pairs = [(z, g) for z, g in zip(outputs, given) if z.requires_grad]
        if wanted and pairs:
            zs, gs = zip(*pairs)
            found = torch.autograd.grad(zs, [leaf for _, leaf in wanted], gs, allow_unused=True)
            for (i, _), g in zip(wanted, found):
                result[i] = g
        return result


def is_layer_call(call: Call) -> bool:
    """Whether a call has one activation and one other factor; attention scores and the like have the contraction's rule."""
    addend = ADDEND.get(call.op)
    factors = [active for i, active in enumerate(call.active) if i != addend]
    bias_is_active = addend is not None and addend < len(call.active) and call.active[addend]
    return sum(factors) == 1 and len(factors) == 2 and not bias_is_active


def positive(t: Tensor) -> Tensor:
    return t.clamp(min=0)


def negative(t: Tensor) -> Tensor:
    return t.clamp(max=0)


class LayerRule:
    """Base of the rules with messages of their own, each a frozen dataclass; as a `Rule` it has `own_stabilizer`.

    Attributes:
        stabilizer: moves each sum that is divided by away from zero.
    """

    stabilizer: float

    def __call__(self, call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        if not is_layer_call(call) or call.output.is_complex():  # complex numbers have no sign: the epsilon rule
            return contraction(call, s, *args, **kwargs)
        return self.signals(call, Operands(call), s)

    def signals(self, call: Call, operands: Operands, s: Tensor) -> Signals:
        """Signals of the operation's tensor arguments, from the signal s at its output."""
        raise NotImplementedError
