"""A ViT of transformers, from its configuration with random weights, on digits."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from ..demo.data import digits
from ..models_zoo.digits import vit
from .common.drawing import draw_curves
from .common.harness import Report, Settings, Way, fit
from .common.models import seeded

__all__ = ["run"]


def run(settings: Settings) -> Report:
    """Four layers of width 64, patches of 2 x 2."""
    train, test = digits()
    ways = [Way("LFP", "lfp-epsilon", cross_entropy, lr=1e-3), Way("backprop", None, cross_entropy, lr=1e-3)]
    start = seeded(vit)
    return Report(
        "vit", "accuracy", fit(start(0), ways, train, test, settings, epochs=20, name="ViT", start=start), draw_curves
    )
