"""A ViT of transformers, from its configuration with random weights, on digits."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from ...demo.data import digits
from ...models_zoo.digits import vit
from ..common.drawing import draw_curves
from ..common.harness import Report, Settings, Way
from ..common.models import seeded
from ..common.rates import tuned

__all__ = ["run"]

RATES = (5e-4, 1e-3, 2e-3, 5e-3)


def run(settings: Settings) -> Report:
    """Four layers of width 64, patches of 2 x 2."""
    train, test = digits()
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    start = seeded(vit)
    cases, notes = tuned(start(0), ways, RATES, train, test, settings, epochs=20, name="ViT", start=start)
    return Report("vit", "accuracy", cases, draw_curves, notes=notes)
