"""How a parameter moves: an MLP on digits of memory devices, or of which few weights move, or whose layers learn alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.nn.functional import cross_entropy

from ...composites.softhebb import softhebb
from ...training.policies import ElectronicSynapses, Policy, SaRA
from ..common.data import flat_digits
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, Way
from ..common.models import mlp, seeded
from ..common.rates import at_best

__all__ = ["POLICIES", "run"]

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
POLICIES: dict[str, Callable[[], Policy] | None] = {
    "none": None,
    "32 levels": partial(ElectronicSynapses, 32),
    "32 levels, v = 3, one way": partial(ElectronicSynapses, 32, 3.0, unidirectional=True),
    "SaRA, 10 %": partial(SaRA, 0.1, progressive=210),
}


def run(settings: Settings) -> Report:
    """Accuracy on held-out digits after 20 epochs; SoftHebb has a model of its own, with one hidden layer that learns alone."""
    train, test = flat_digits()
    start = seeded(lambda: mlp([64, 128, 64, 10]))
    cases, notes = list[Case](), list[str]()
    for name, policy in POLICIES.items():
        ways = [
            Way(way, composite, cross_entropy, policy=policy) for way, composite in (("LFP", "lfp"), ("backprop", None))
        ]
        found, chosen = at_best(
            start(0), ways, RATES, train, test, settings, epochs=20, name=name, start=start, choosing=1
        )
        cases += found
        notes += chosen
    one = seeded(lambda: nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, 10)))
    local = [
        Way(name, composite, cross_entropy, optimizer="SGD", clip=None)
        for name, composite in (("SoftHebb", "softhebb"), ("SoftHebb, losers alike", softhebb("alike", anti=False)))
    ]
    found, chosen = at_best(
        one(0), local, (0.1, 0.3, 1.0), train, test, settings, epochs=20, name="one hidden layer, batch norm", start=one,
        choosing=1,
    )  # fmt: skip
    return Report("policies", "accuracy", cases + found, draw_bars, (11, 4), notes + chosen)
