"""Forecasts of seasonal series by exponential smoothing with an LSTM (Smyl 2020), on series that are generated."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from ...demo.data import Arrays
from ...models_zoo.forecasting import ESRNN
from ..common.drawing import draw_curves
from ..common.harness import Report, Settings, Way
from ..common.models import seeded
from ..common.rates import tuned

__all__ = ["run", "seasonal", "smape"]

RATES = (3e-3, 1e-2, 3e-2, 1e-1)
SERIES, SEASON, YEARS, SEEN = 60, 12, 8, 24


def seasonal() -> tuple[Arrays, Arrays]:
    """Windows of two years of each series, [n, 1 + 24] with the series' number first, and the logarithms of the year after.

    Series grow or shrink by a random walk, have a season of their own, and noise of 5 %. The last year is held out.
    """
    generator = torch.Generator().manual_seed(0)
    steps = SEASON * YEARS
    drift = 0.01 * torch.randn(SERIES, 1, generator=generator) + 0.02 * torch.randn(SERIES, steps, generator=generator)
    peak = torch.rand(SERIES, 1, generator=generator) * SEASON
    turn = torch.cos((torch.arange(steps) - peak) * 2 * math.pi / SEASON)
    size = 0.2 + 0.3 * torch.rand(SERIES, 1, generator=generator)
    log = drift.cumsum(1) + size * turn + 0.05 * torch.randn(SERIES, steps, generator=generator)
    numbers = torch.arange(SERIES)[:, None].float()

    def window(start: int) -> tuple[Tensor, Tensor]:
        ends = start + SEEN
        return torch.cat([numbers, log[:, start:ends].exp()], 1), log[:, ends : ends + SEASON]

    *train, test = [window(start) for start in range(0, steps - SEEN - SEASON + 1, SEASON)]
    return (torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])), test


def smape(outputs: Tensor, targets: Tensor) -> float:
    """Mean of `2 abs(f - y) / (f + y)` of forecasts and values given by their logarithms."""
    f, y = outputs.exp(), targets.exp()
    return float(2 * ((f - y).abs() / (f + y)).mean())


def run(settings: Settings) -> Report:
    """The error of the last year's forecast, beside that of the year before taken for it."""
    train, test = seasonal()
    ways = [Way("LFP", "lfp", mse_loss), Way("backprop", None, mse_loss)]
    start = seeded(lambda: ESRNN(SERIES, SEASON, SEASON, 24))
    cases, notes = tuned(
        start(0), ways, RATES, train, test, settings, epochs=10, name="ES-RNN", batch_size=32, start=start, choosing=1,
        score=smape, lower_is_better=True,
    )  # fmt: skip
    naive = smape(test[0][:, -SEASON:].log(), test[1])
    return Report(
        "forecasting", "sMAPE", cases, draw_curves, notes=[*notes, f"the year before taken for it: {naive:.3f}"]
    )
