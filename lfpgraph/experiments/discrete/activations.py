"""Activations, and what has no derivative but zero: steps in four layers, few bits, coarse weights.

MLPs on digits (LFP, section on non-differentiable activations).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from ...composites.composite import get_composite
from ..common.data import flat_digits
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, Way
from ..common.models import ACTIVATIONS, mlp, seeded
from ..common.rates import best_by_folds

__all__ = ["Coarse", "run"]

RATES = (3e-3, 1e-2, 3e-2)

Rounding = Callable[[Tensor], Tensor]


def heaviside(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def few_bits(x: Tensor, bits: int) -> Tensor:
    """x, kept between 0 and 1 and rounded to as many levels as the bits have."""
    levels = 2**bits - 1
    return (x.clamp(0, 1) * levels).round() / levels


def binary(w: Tensor) -> Tensor:
    return w.sign() * w.detach().abs().mean()


def ternary(w: Tensor) -> Tensor:
    """Minus one, zero or one, times the mean size (BitNet b1.58)."""
    size = w.detach().abs().mean()
    return (w / size).clamp(-1, 1).round() * size


# Of activations and of weights; None leaves them as they are (activations: relu).
KINDS: dict[str, tuple[Rounding | None, Rounding | None]] = {
    "steps": (heaviside, None),
    "2 bits": (partial(few_bits, bits=2), None),
    "4 bits": (partial(few_bits, bits=4), None),
    "binary weights": (None, binary),
    "ternary weights": (None, ternary),
}


class Coarse(nn.Module):
    """Five linear layers, four of them with an activation behind them; the first and the last keep their weights.

    Args:
        activation, weight: what rounds them.
        through: written with straight-through, `x + (f(x) - x).detach()`, as people write it for backprop.
    """

    def __init__(self, activation: Rounding | None, weight: Rounding | None, through: bool = False) -> None:
        super().__init__()
        sizes = (64, 128, 128, 128, 128, 10)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, sizes[1:]))
        self.activation, self.weight, self.through = activation, weight, through

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            inner = 0 < i < len(self.layers) - 1
            w = layer.weight if self.weight is None or not inner else self._rounded(self.weight, layer.weight)
            x = linear(x, w, layer.bias)  # type: ignore[arg-type]
            if i < len(self.layers) - 1:
                x = torch.relu(x) if self.activation is None else self._rounded(self.activation, x)
        return x

    def _rounded(self, function: Rounding, x: Any) -> Tensor:
        return x + (function(x) - x).detach() if self.through else function(x)


def run(settings: Settings) -> Report:
    """`lfp`, the published rule and backprop on plain functions; what is written with straight-through; surrogate gradients.

    Every way has its own best rate, chosen by folds. The published rule has a wide epsilon where there are steps, as it
    hands all reward to what is compared, however small that is.
    """
    ways = {
        "LFP": Way("LFP", "lfp", cross_entropy),
        "backprop": Way("backprop", None, cross_entropy),
        "published": Way("published", "lfp-epsilon", cross_entropy),
        "straight-through": Way("straight-through", None, cross_entropy),
        "surrogate": Way("surrogate", "surrogate", cross_entropy),
    }
    wide = replace(ways["published"], composite=get_composite("lfp-epsilon").with_options(epsilon=0.1))
    todo: list[tuple[str, Way, Callable[[], nn.Module]]] = []
    for name, layer in ACTIVATIONS.items():
        published = wide if name == "Heaviside" else ways["published"]
        todo += [
            (name, way, partial(mlp, [64, 128, 64, 10], layer)) for way in (ways["LFP"], ways["backprop"], published)
        ]
    for name, (activation, weight) in KINDS.items():
        for way in (ways["LFP"], ways["backprop"], wide, ways["straight-through"], ways["surrogate"]):
            if way.name == "surrogate" and weight is not None:
                continue  # it has a derivative for activations alone
            todo.append((name, way, partial(Coarse, activation, weight, through=way.name == "straight-through")))
    train, test = flat_digits()

    def one(name: str, way: Way, build: Callable[[], nn.Module]) -> tuple[Case, str]:
        start = seeded(build)
        return best_by_folds(start(0), way, RATES, train, test, settings, epochs=20, name=name, start=start)

    found = settings.runs.together([partial(one, *task) for task in todo])
    cases, notes = [case for case, _ in found], [note for _, note in found]
    return Report("activations", "accuracy", cases, draw_bars, (14, 4.5), notes)
