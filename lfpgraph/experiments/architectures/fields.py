"""A solid kept as three planes of features (Chan et al. 2022): which points of space are inside of a gyroid."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from ...demo.data import Arrays
from ...models_zoo.hybrids import TriPlane
from ..common.drawing import draw_curves
from ..common.harness import Report, Settings, Way
from ..common.models import mlp, seeded
from ..common.rates import tuned

__all__ = ["gyroid", "run"]

RATES = (3e-3, 1e-2, 3e-2, 1e-1)


def gyroid(points: int = 6000) -> tuple[Arrays, Arrays]:
    """Points in [-1, 1]^3, and 1 for those inside; a third of them is held out."""
    x = torch.rand(points, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wave, next_wave = (5 * x).sin(), (5 * x.roll(-1, 1)).cos()
    y = ((wave * next_wave).sum(1) > 0).long()
    held = points // 3
    return (x[held:], y[held:]), (x[:held], y[:held])


def run(settings: Settings) -> Report:
    """Accuracy on points that are held out; an MLP of coordinates beside it shows what the planes are worth."""
    train, test = gyroid()
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    cases, notes = [], list[str]()
    for name, build in (
        ("tri-plane", lambda: TriPlane(8, 16, 32, 2)),
        ("MLP of coordinates", lambda: mlp([3, 64, 64, 2])),
    ):
        start = seeded(build)
        found, chosen = tuned(start(0), ways, RATES, train, test, settings, epochs=10, name=name, start=start)
        cases += found
        notes += chosen
    return Report("fields", "accuracy", cases, draw_curves, (10, 4), notes)
