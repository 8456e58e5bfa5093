"""LIF networks on digits: beta 0.3, 0.6, 0.9 and 5, 15, 25 steps (LFP, section on spiking networks)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...rewards import RateCodedSpikes
from ..common.data import flat_digits
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, Way, fit
from ..common.models import LifNet, seeded
from ..common.rates import best_by_folds

__all__ = ["run"]

BETAS = (0.3, 0.6, 0.9)
STEPS = (5, 15, 25)
RATES = (3e-3, 1e-2, 2e-2)


def run(settings: Settings) -> Report:
    """`lfp`, surrogate gradients and backprop, with the cross-entropy of spike counts.

    Rates are chosen by folds: on a part of 337 images alone the rates of some settings are told apart by chance.
    """
    train, test = flat_digits()
    ways = [
        Way("LFP", "lfp", _counts_loss),
        Way("surrogate", "surrogate", _counts_loss),
    ]

    def setting(steps: int, beta: float) -> tuple[list[Case], list[str]]:
        name, start = f"{steps} steps, beta {beta}", seeded(lambda: LifNet(steps=steps, beta=beta))
        how: dict[str, Any] = {"epochs": 10, "name": name, "score": _score, "start": start}
        best = [best_by_folds(start(0), way, RATES, train, test, settings, **how) for way in ways]
        untrained = fit(start(0), [Way("backprop", None, _counts_loss)], train, test, settings, **how)
        return [case for case, _ in best] + untrained, [note for _, note in best]

    found = settings.runs.together([partial(setting, steps, beta) for steps in STEPS for beta in BETAS])
    cases = [case for own, _ in found for case in own]
    notes = [note for _, chosen in found for note in chosen]
    notes.append("backprop has no gradient to use: its row is the untrained network")
    return Report("spiking", "accuracy", cases, draw_bars, (10, 4.5), notes)


def _counts_loss(spikes: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(spikes.sum(0), labels)


def _score(spikes: Tensor, labels: Tensor) -> float:
    return (torch.as_tensor(RateCodedSpikes.predictions(spikes)) == labels).float().mean().item()
