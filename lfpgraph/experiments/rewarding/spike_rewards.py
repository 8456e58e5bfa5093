"""What a spiking network is told: LIF networks on digits, rewarded for spike counts, for first spikes, or by rates."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...rewards import RateCodedSpikes, reward_loss
from ..common.data import flat_digits
from ..common.drawing import draw_bars
from ..common.harness import Case, Objective, Report, Settings, Way, accuracy
from ..common.models import LifNet, seeded
from ..common.rates import best_by_folds
from ..discrete.spiking import RATES

__all__ = ["run"]

SETTINGS = ((15, 0.9),)  # steps and beta


def run(settings: Settings) -> Report:
    """`lfp` and surrogate gradients, each at its own best rate, chosen by folds; each way reads its answer as it was rewarded."""
    train, test = flat_digits()
    told: dict[str, tuple[Objective, Any]] = {
        "softmax of counts": (lambda o, y: cross_entropy(o.sum(0), y), lambda o: o.sum(0)),
        "first spike": (lambda o, y: cross_entropy(first_spikes(o), y), first_spikes),
        "rate-coded": (rate_coded, lambda o: o.sum(0)),
    }
    todo = [(n, b, what, side) for n, b in SETTINGS for what in told for side in ("lfp", "surrogate")]

    def one(steps: int, beta: float, what: str, side: str) -> tuple[Case, str]:
        objective, read = told[what]
        start = seeded(lambda: LifNet(steps=steps, beta=beta))
        way = Way({"lfp": "LFP"}.get(side, side), side, objective)
        how: dict[str, Any] = {"epochs": 10, "name": f"{steps} steps, beta {beta}, {what}"}
        score = lambda o, y: accuracy(read(o), y)  # noqa: E731
        return best_by_folds(start(0), way, RATES, train, test, settings, score=score, start=start, **how)

    found = settings.runs.together([partial(one, *task) for task in todo])
    cases, notes = [case for case, _ in found], [note for _, note in found]
    return Report("spike_rewards", "accuracy", cases, draw_bars, (12, 4.5), notes)


def rate_coded(spikes: Tensor, labels: Tensor) -> Tensor:
    """The published reward, of a spike that did not happen as of one that did: the steps of `lfp` take it as it is."""
    return reward_loss(spikes, RateCodedSpikes()(spikes, labels), silent=1.0) / len(labels)


def first_spikes(spikes: Tensor) -> Tensor:
    """How early each neuron spikes first, [t, n, c] to [n, c]: the number of steps for the first one, 0 for none.

    Up to its first spike every step of a neuron counts, so that one that is silent is told as well.
    """
    left = torch.arange(len(spikes), 0, -1, device=spikes.device, dtype=spikes.dtype)
    seen = spikes.detach()
    waits = (seen.cumsum(0) - seen == 0).to(spikes.dtype)
    return (left[:, None, None] * waits * spikes).sum(0)
