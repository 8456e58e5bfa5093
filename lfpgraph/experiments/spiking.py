"""LIF networks on digits: beta 0.3, 0.6, 0.9 and 5, 15, 25 steps (LFP, section on spiking networks)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..rewards import RateCodedSpikes
from .common.data import flat_digits
from .common.drawing import draw_bars
from .common.harness import Case, Report, Settings, Way, fit, rewarded
from .common.models import LifNet, seeded

__all__ = ["run"]

BETAS = (0.3, 0.6, 0.9)
STEPS = (5, 15, 25)


def run(settings: Settings) -> Report:
    """`lfp-snn` with the rate-coded reward, backprop, and backprop with a surrogate gradient (cross-entropy of counts)."""
    train, test = flat_digits()
    ways = [
        Way("LFP", "lfp-snn", rewarded(RateCodedSpikes()), clip=None),
        Way("backprop", None, _counts_loss),
        Way("surrogate", "surrogate", _counts_loss),
    ]
    cases: list[Case] = []
    for steps in STEPS:
        for beta in BETAS:

            def build(steps: int = steps, beta: float = beta) -> nn.Module:
                return LifNet(steps=steps, beta=beta)

            name = f"{steps} steps, beta {beta}"
            start = seeded(build)
            cases += fit(start(0), ways, train, test, settings, epochs=10, name=name, score=_score, start=start)
    notes = ["backprop has no gradient to use: its row is the untrained network"]
    return Report("spiking", "accuracy", cases, draw_bars, (10, 4.5), notes)


def _counts_loss(spikes: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(spikes.sum(0), labels)


def _score(spikes: Tensor, labels: Tensor) -> float:
    return (torch.as_tensor(RateCodedSpikes.predictions(spikes)) == labels).float().mean().item()
