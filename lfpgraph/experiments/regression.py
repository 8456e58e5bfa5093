"""Regression by reward: an MLP on diabetes, and on California housing where scikit-learn has it cached."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss

from ..rewards import SquaredError
from .common.data import california, diabetes
from .common.drawing import draw_curves
from .common.harness import Case, Report, Settings, Way, fit, rewarded
from .common.models import mlp, seeded

__all__ = ["run"]


def run(settings: Settings) -> Report:
    """Mean squared error on held-out samples, targets of variance 1; the mean of the training set scores about 1."""
    sets = {"diabetes": diabetes(), "California housing": california()}
    cases: list[Case] = []
    for name, data in sets.items():
        if data is None:
            continue
        ways = [
            Way("LFP", "lfp-epsilon", rewarded(SquaredError()), lr=1e-3),
            Way("backprop", None, lambda o, t: 0.5 * mse_loss(o, t), lr=1e-3),
        ]
        start = seeded(lambda n=data[0][0].shape[1]: mlp([n, 64, 64, 1]))  # type: ignore[misc]
        cases += fit(start(0), ways, *data, settings, epochs=20, name=name, batch_size=32, score=_error, start=start)
    notes = [] if sets["California housing"] else ["California housing is not cached here, so it was left out"]
    return Report("regression", "mean squared error", cases, draw_curves, notes=notes)


def _error(outputs: Tensor, targets: Tensor) -> float:
    return mse_loss(outputs, targets).item()
