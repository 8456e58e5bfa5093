"""Rules of the LRP papers for layers, the products of an activation and weights: each a layer run with other operands.

A rule hands input i of output j the share z_ij / sum_i z_ij of j's reward, for messages z_ij of its own (the epsilon rule
has z_ij = x_i w_ij). All of them are sums of terms `layer(f(x), g(w), h(b))`, so one mechanism serves every operation that
is linear in x and in w: run the layer on the modified operands, divide the reward by the results, and take the
vector-Jacobian product. Where f and g are linear on each side of zero (clamp), the vjp at the true x and w is the message
divided by x_i (or w_ij), which is the signal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lfpgraph.numerics import stabilize
from lfpgraph.signs import is_nonnegative

from .linear import ADDEND, contraction

__all__ = ["AlphaBeta", "Box", "Flat", "Gamma", "WSquare", "ZPlus", "epsilon_rule"]

Signals = list[Tensor | None]
_LEAST = 1e-12  # stands for the epsilon of a stabilized signal where the ruleset's is 0


def epsilon_rule(node: Any, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """The epsilon rule (Bach et al. 2015, eq. 58): the layer's own vjp; the engine applies epsilon to the output."""
    return contraction(node, s, *args, **kwargs)


class _Operands:
    """A layer's operands as leaves of a tape: x, w and b, b being None where nothing is added."""

    def __init__(self, node: Any) -> None:
        self.node = node
        tensors = range(len(node.inputs))
        addend = ADDEND.get(node.op)
        self.places: list[Any] = [
            next(i for i in tensors if node.active[i]),
            next(i for i in tensors if not node.active[i] and i != addend),
            addend if addend is not None and addend < len(node.inputs) else None,
        ]
        self.leaves: list[Any] = [
            None if i is None else node.inputs[i].detach().requires_grad_(node.wanted[i]) for i in self.places
        ]
        self.x, self.w, self.b = self.leaves
        self.x_is_positive = is_nonnegative(node.unit.inputs[self.places[0]])

    def layer(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """The layer on other operands."""
        tensors = list(self.node.inputs)
        for place, value in zip(self.places, (x, w, b)):
            if place is not None:
                tensors[place] = value
        return self.node.run(tensors)

    def signals(self, outputs: Sequence[Tensor], given: Sequence[Tensor]) -> Signals:
        """The vjp of `outputs` at the operands, in the order of the operation's tensor arguments."""
        result: Signals = [None] * len(self.node.inputs)
        wanted = [(i, leaf) for i, leaf in zip(self.places, self.leaves) if leaf is not None and leaf.requires_grad]
        pairs = [(z, g) for z, g in zip(outputs, given) if z.requires_grad]
        if wanted and pairs:
            zs, gs = zip(*pairs)
            found = torch.autograd.grad(zs, [leaf for _, leaf in wanted], gs, allow_unused=True)
            for (i, _), g in zip(wanted, found):
                result[i] = g
        return result


def is_layer_call(node: Any) -> bool:
    """Whether a call has one activation and one other factor; attention scores and the like have the contraction's rule."""
    addend = ADDEND.get(node.op)
    factors = [active for i, active in enumerate(node.active) if i != addend]
    bias_is_active = addend is not None and addend < len(node.active) and node.active[addend]
    return sum(factors) == 1 and len(factors) == 2 and not bias_is_active


def _positive(t: Tensor) -> Tensor:
    return t.clamp(min=0)


def _negative(t: Tensor) -> Tensor:
    return t.clamp(max=0)


Part = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _SplitRule:
    """Messages by sign: x+ meets one part of the weights, x- another, and the bias counts with the first.

    Attributes:
        stabilizer: moves each sum that is divided by away from zero.
    """

    stabilizer: float = 1e-6
    own_stabilizer: ClassVar[bool] = True

    def __call__(self, node: Any, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        if not is_layer_call(node):
            return contraction(node, s, *args, **kwargs)
        reward = node.reward(s)
        outputs: list[Tensor] = []
        given: list[Tensor] = []
        with torch.enable_grad():
            operands = _Operands(node)
            for weight, with_positive, with_negative in self.groups(node):
                terms = self._terms(operands, with_positive, with_negative)
                with torch.no_grad():
                    share = reward / stabilize(sum(t.detach() for t in terms[1:]) + terms[0].detach(), self.stabilizer)
                    share = weight(share)
                outputs += terms
                given += [share] * len(terms)
            return operands.signals(outputs, given)

    def _terms(self, operands: _Operands, with_positive: Part, with_negative: Part) -> list[Tensor]:
        x, w, b = operands.x, operands.w, operands.b
        bias = None if b is None else with_positive(b)
        if operands.x_is_positive:
            return [operands.layer(x, with_positive(w), bias)]
        none = None if b is None else torch.zeros_like(b)
        return [
            operands.layer(_positive(x), with_positive(w), bias),
            operands.layer(_negative(x), with_negative(w), none),
        ]

    def groups(self, node: Any) -> list[tuple[Part, Part, Part]]:
        """For each sum of messages: the factor of its share, the weights that x+ meets, and those that x- meets."""
        raise NotImplementedError


@dataclass(frozen=True)
class AlphaBeta(_SplitRule):
    """Positive messages share alpha times the reward, negative ones take beta of it back (Bach et al. 2015, eq. 60).

    Raises:
        ValueError: alpha - beta is not 1, or one of them is negative.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(f"alpha - beta must be 1, both not negative; got {self.alpha} and {self.beta}")

    def groups(self, node: Any) -> list[tuple[Part, Part, Part]]:
        found: list[tuple[Part, Part, Part]] = [
            (lambda r: r * self.alpha, _positive, _negative),
            (lambda r: r * -self.beta, _negative, _positive),
        ]
        return found[: 1 + (self.beta != 0)]


@dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """Positive messages share the whole reward (Montavon et al. 2017, eq. 14): alpha 1, beta 0."""

    alpha: float = 1.0
    beta: float = 0.0


@dataclass(frozen=True)
class Gamma(_SplitRule):
    """Messages of the output's own sign count (1 + gamma) times (Montavon et al. 2019, table 10.1; Andeol et al. 2021).

    The generalised form: for positive outputs x+ (w + gamma w+) + x- (w + gamma w-), for negative ones the other way.
    """

    gamma: float = 0.25

    def groups(self, node: Any) -> list[tuple[Part, Part, Part]]:
        z = node.output

        def more_positive(t: Tensor) -> Tensor:
            return t + self.gamma * _positive(t)

        def more_negative(t: Tensor) -> Tensor:
            return t + self.gamma * _negative(t)

        where_positive = (lambda r: torch.where(z > 0, r, 0.0), more_positive, more_negative)
        where_negative = (lambda r: torch.where(z < 0, r, 0.0), more_negative, more_positive)
        return [where_positive] if node.unit.rectified is not None else [where_positive, where_negative]


@dataclass(frozen=True)
class _InputlessRule:
    """Messages that do not look at x: w_ij^2 or 1. They hand a reward to entries of zero, too."""

    stabilizer: float = 1e-6
    own_stabilizer: ClassVar[bool] = True

    def __call__(self, node: Any, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        if not is_layer_call(node):
            return contraction(node, s, *args, **kwargs)
        reward = node.reward(s)
        operands = _Operands(node)
        place, weight_place, bias_place = operands.places
        with torch.enable_grad():
            ones = torch.ones_like(operands.x).requires_grad_()
            w = self.weights(operands.w.detach()).requires_grad_(node.wanted[weight_place])
            b = None if operands.b is None else self.bias(operands.b.detach()).requires_grad_(node.wanted[bias_place])
            z = operands.layer(ones, w, b)
            leaves = [t for t in (ones, w, b) if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(z, leaves, reward / stabilize(z.detach(), self.stabilizer)))
        answers: Signals = [None] * len(node.inputs)
        epsilon = node.stabilized = node.epsilon or _LEAST
        for i, leaf, true in ((place, ones, operands.x), (weight_place, w, operands.w), (bias_place, b, operands.b)):
            if leaf is not None and leaf.requires_grad:
                messages = next(found) * leaf.detach()
                answers[i] = messages / stabilize(true.detach(), epsilon) if node.wanted[i] else None
        return answers

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
class Box:
    """Messages x w - low w+ - high w-, for inputs between low and high (deep Taylor; Montavon et al. 2017, eq. 13).

    Attributes:
        low, high: smallest and largest value an input can have; one number, or one for each channel (dimension 1).
        stabilizer: moves the sum that is divided by away from zero.

    Raises:
        ValueError: not low < high.
    """

    low: float | tuple[float, ...] = -3.0
    high: float | tuple[float, ...] = 3.0
    stabilizer: float = 1e-6
    own_stabilizer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        lows, highs = (v if isinstance(v, tuple) else (v,) for v in (self.low, self.high))
        if not all(a < b for a in lows for b in highs if len(lows) != len(highs)) or not all(
            a < b for a, b in zip(lows, highs)
        ):
            raise ValueError(f"the box rule needs low < high; got {self.low} and {self.high}")

    def __call__(self, node: Any, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
        if not is_layer_call(node):
            return contraction(node, s, *args, **kwargs)
        reward = node.reward(s)
        operands = _Operands(node)
        place, weight_place, bias_place = operands.places
        w, b = operands.w, operands.b
        with torch.enable_grad():
            x, low, high = (
                t.detach().requires_grad_()
                for t in (operands.x, _filled(operands.x, self.low), _filled(operands.x, self.high))
            )
            parts = [(x, w, b)] + [
                (bound, part(w), None if b is None else part(b))
                for bound, part in ((low, _positive), (high, _negative))
            ]
            z, z_low, z_high = (operands.layer(*part) for part in parts)
            total = z - z_low - z_high
            leaves = [x, low, high, *(t for t in (w, b) if t is not None and t.requires_grad)]
            share = reward / stabilize(total.detach(), self.stabilizer)
            found = list(torch.autograd.grad(total, leaves, share, allow_unused=True))
        messages = sum(t.detach() * g for t, g in zip((x, low, high), found))
        epsilon = node.stabilized = node.epsilon or _LEAST
        answers: Signals = [None] * len(node.inputs)
        if node.wanted[place]:
            answers[place] = messages / stabilize(x.detach(), epsilon)
        for i in (weight_place, bias_place):
            if i is not None and node.wanted[i]:
                g = found[3 + (i == bias_place and node.wanted[weight_place])]
                value = node.inputs[i]
                answers[i] = None if g is None else g * value / stabilize(value, epsilon)
        return answers


def _filled(x: Tensor, value: float | tuple[float, ...]) -> Tensor:
    """A tensor like x of one value, or of one for each entry of dimension 1."""
    if not isinstance(value, tuple):
        return torch.full_like(x, value)
    if x.dim() < 2 or x.shape[1] != len(value):
        raise ValueError(f"the box rule has {len(value)} bounds for an input of shape {list(x.shape)}")
    return torch.cat([torch.full_like(part, v) for part, v in zip(x.split(1, 1), value)], 1)
