"""Six activations, one of them without a gradient: an MLP on digits (LFP, section on non-differentiable activations)."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from ..composites.composite import get_composite
from .common.data import flat_digits
from .common.drawing import draw_bars
from .common.harness import Case, Report, Settings, Way, fit
from .common.models import ACTIVATIONS, mlp, seeded

__all__ = ["run"]


def run(settings: Settings) -> Report:
    """The same MLP with each activation. Steps get a wide epsilon, as they hand all reward to an input, however small.

    `lfp-centred` treats the constant of an activation that is not zero at zero as a bias (see `composites.centred`).
    """
    train, test = flat_digits()
    wide = get_composite("lfp-epsilon").with_options(epsilon=0.1)
    cases: list[Case] = []
    for name, activation in ACTIVATIONS.items():
        composite = wide if name == "Heaviside" else "lfp-epsilon"
        ways = [
            Way("LFP", composite, cross_entropy, lr=1e-2),
            Way("backprop", None, cross_entropy, lr=1e-2),
            Way("LFP centred", "lfp-centred", cross_entropy, lr=1e-2),
        ]
        start = seeded(lambda activation=activation: mlp([64, 128, 64, 10], activation))  # type: ignore[misc]
        cases += fit(start(0), ways, train, test, settings, epochs=20, name=name, start=start)
    return Report("activations", "accuracy", cases, draw_bars)
