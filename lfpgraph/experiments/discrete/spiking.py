"""LIF networks on digits: beta 0.3, 0.6, 0.9 and 5, 15, 25 steps (LFP, section on spiking networks)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...rewards import RateCodedSpikes
from ..common.data import flat_digits
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, Way, fit
from ..common.models import LifNet, seeded
from ..common.rates import chosen_rates

__all__ = ["run"]

BETAS = (0.3, 0.6, 0.9)
STEPS = (5, 15, 25)
RATES = (3e-3, 1e-2, 2e-2)


def run(settings: Settings) -> Report:
    """`lfp`, surrogate gradients and backprop, with the cross-entropy of spike counts; the rates are chosen with one seed."""
    train, test = flat_digits()
    ways = [
        Way("LFP", "lfp", _counts_loss),
        Way("surrogate", "surrogate", _counts_loss),
    ]
    cases: list[Case] = []
    notes = ["backprop has no gradient to use: its row is the untrained network"]
    for steps in STEPS:
        for beta in BETAS:

            def build(steps: int = steps, beta: float = beta) -> nn.Module:
                return LifNet(steps=steps, beta=beta)

            name, start = f"{steps} steps, beta {beta}", seeded(build)
            how: dict[str, Any] = {"epochs": 10, "name": name, "score": _score, "start": start}
            chosen = chosen_rates(start(0), ways, RATES, train, replace(settings, seeds=1), **how)
            best = [replace(way, lr=case.more["lr"]) for way, case in zip(ways, chosen)]
            cases += fit(start(0), [*best, Way("backprop", None, _counts_loss)], train, test, settings, **how)
            notes += [f"{name}, {way.name}: rate {way.lr:g}, chosen on a validation part" for way in best]
    return Report("spiking", "accuracy", cases, draw_bars, (10, 4.5), notes)


def _counts_loss(spikes: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(spikes.sum(0), labels)


def _score(spikes: Tensor, labels: Tensor) -> float:
    return (torch.as_tensor(RateCodedSpikes.predictions(spikes)) == labels).float().mean().item()
