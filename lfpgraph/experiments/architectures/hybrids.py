"""Convolution or attention, at full or at half size, searched while it trains (BossNAS, Li et al. 2021): digits."""

from __future__ import annotations

from itertools import product
from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from ...demo.data import digits
from ...models_zoo.hybrids import SearchedHybrid
from ..common.drawing import draw_curves
from ..common.harness import Case, Report, Settings, Way
from ..common.models import seeded
from ..common.rates import best_by_folds

__all__ = ["CANDIDATES", "run"]

RATES = (1e-2, 3e-2, 1e-1)
BUDGETS = (6, 12)  # epochs: few, and enough that a loss on the training set has nearly settled
CANDIDATES = ("convolution", "attention", "convolution at half size", "attention at half size")


def run(settings: Settings) -> Report:
    """Accuracy on held-out digits, and what each layer weighs its candidates by in the end."""
    train, test = digits()
    start = seeded(lambda: SearchedHybrid(1, 16, 2, 2, 10, stride=1))
    cases, notes = list[Case](), list[str]()

    def weigh(seed: int, model: nn.Module) -> dict[str, Any]:
        choices = model.get_parameter("choices").detach().softmax(1)
        return {"choices": [[round(float(v), 3) for v in row] for row in choices]}

    ways = Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)
    for epochs, way in product(BUDGETS, ways):
        name = "hybrid" if epochs == BUDGETS[0] else f"hybrid, {epochs} epochs"
        how: dict[str, Any] = {"epochs": epochs, "name": name, "start": start, "after": weigh}
        case, note = best_by_folds(start(0), way, RATES, train, test, settings, **how)
        cases.append(case)
        first = case.more["choices"][0]
        notes.append(f"{note}; seed {settings.first}, by layer: {first}")
    return Report("hybrids", "accuracy", cases, draw_curves, notes=[*notes, f"candidates: {', '.join(CANDIDATES)}"])
