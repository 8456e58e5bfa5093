"""Rules of the LRP papers for layers: epsilon, and those that split messages by sign. `layers` is their mechanism.

Where the operands of a term are linear on each side of zero (clamp), the vjp at the true x and w is the message divided by
x_i (or w_ij), which is the signal. The rules for first layers, from `input`, are here under their names too.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lfpgraph.errors import RuleError
from lfpgraph.registry import Call, Signals

from ..linear import contraction
from .input import Box, Flat, WSquare
from .layers import LayerRule, Operands, negative, positive

__all__ = ["AlphaBeta", "Box", "Flat", "Gamma", "WSquare", "ZPlus", "epsilon_rule"]

Part = Callable[[Tensor], Tensor]


def epsilon_rule(call: Call, s: Tensor, *args: Any, **kwargs: Any) -> Signals:
    """The epsilon rule (Bach et al. 2015, eq. 58): the layer's own vjp; the engine applies epsilon to the output."""
    return contraction(call, s, *args, **kwargs)


@dataclass(frozen=True)
class _SplitRule(LayerRule):
    """Messages by sign: x+ meets one part of the weights, x- another, and the bias counts with the first."""

    stabilizer: float = 1e-6

    def signals(self, call: Call, operands: Operands, s: Tensor) -> Signals:
        outputs: list[Tensor] = []
        given: list[Tensor] = []
        with torch.enable_grad():
            for weight, with_positive, with_negative in self.groups(call):
                terms = self._terms(operands, with_positive, with_negative)
                with torch.no_grad():
                    total = functools.reduce(operator.add, (t.detach() for t in terms))
                    share = weight(call.share(s, total, self.stabilizer))
                outputs += terms
                given += [share] * len(terms)
            return operands.signals(outputs, given)

    def _terms(self, operands: Operands, with_positive: Part, with_negative: Part) -> list[Tensor]:
        x, w, b = operands.x, operands.w, operands.b
        bias = None if b is None else with_positive(b)
        if operands.x_is_positive:
            return [operands.layer(x, with_positive(w), bias)]
        none = None if b is None else torch.zeros_like(b)
        return [
            operands.layer(positive(x), with_positive(w), bias),
            operands.layer(negative(x), with_negative(w), none),
        ]

    def groups(self, call: Call) -> list[tuple[Part, Part, Part]]:
        """For each sum of messages: the factor of its share, the weights that x+ meets, and those that x- meets."""
        raise NotImplementedError


@dataclass(frozen=True)
class AlphaBeta(_SplitRule):
    """Positive messages share alpha times the reward, negative ones take beta of it back (Bach et al. 2015, eq. 60).

    Raises:
        RuleError: alpha - beta is not 1, or one of them is negative.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise RuleError(f"alpha - beta must be 1, both not negative; got {self.alpha} and {self.beta}")

    def groups(self, call: Call) -> list[tuple[Part, Part, Part]]:
        found: list[tuple[Part, Part, Part]] = [
            (lambda r: r if self.alpha == 1 else r * self.alpha, positive, negative),
            (lambda r: r * -self.beta, negative, positive),
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

    def __post_init__(self) -> None:
        if not isinstance(self.gamma, int | float) or not 0 <= self.gamma < math.inf:
            raise RuleError(f"gamma must be a number of zero or more, not {self.gamma!r}")

    def groups(self, call: Call) -> list[tuple[Part, Part, Part]]:
        z = call.output

        def more_positive(t: Tensor) -> Tensor:
            return t + self.gamma * positive(t)

        def more_negative(t: Tensor) -> Tensor:
            return t + self.gamma * negative(t)

        where_positive = (lambda r: torch.where(z > 0, r, 0.0), more_positive, more_negative)
        where_negative = (lambda r: torch.where(z < 0, r, 0.0), more_negative, more_positive)
        return [where_positive] if call.rectified else [where_positive, where_negative]
