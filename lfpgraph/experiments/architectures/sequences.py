"""A recurrent network with latent causes (PV-RNN, Ahmadi and Tani 2019): it goes on with curves of which it has seen one half."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ...composites.composite import Composite, get_composite
from ...models_zoo.forecasting import PVRNN
from ...wrapping.wrapper import wrap
from ..common.drawing import draw_bars
from ..common.harness import Case, Report, Settings, Way, fit
from ..common.models import seeded

__all__ = ["continued", "curves_in_time", "run"]

RATES = (3e-2, 1e-1, 3e-1)
TRAINED, LENGTH, KNOWN, DIVERGENCE = 32, 12, 6, 1e-3


def curves_in_time(count: int, seed: int) -> Tensor:
    """Figures of eight and circles, at two speeds, from any point on, [n, t, 2]."""
    generator = torch.Generator().manual_seed(seed)
    speed = 0.4 + 0.3 * torch.randint(2, (count, 1), generator=generator)
    twice = 1 + torch.randint(2, (count, 1), generator=generator)
    angle = torch.arange(LENGTH) * speed + 6.28 * torch.rand(count, 1, generator=generator)
    return 0.8 * torch.stack([angle.sin(), (twice * angle).cos()], 2)


def _loss(outputs: Tensor, curves: Tensor) -> Tensor:
    return mse_loss(outputs[..., :2], curves) + DIVERGENCE * outputs[..., 2].mean()


def _apart(outputs: Tensor, curves: Tensor) -> float:
    return mse_loss(outputs[..., :2], curves).item()


def continued(model: nn.Module, curves: Tensor, steps: int = 60) -> float:
    """Error regression: causes of new curves are found on their first half, by the way of credit that the model is wrapped with.

    Returns the mean squared error of the second half, which goes on by the prior.
    """
    model.eval()
    numbers, causes = torch.arange(len(curves)), model.get_parameter("causes.weight")
    kept = causes.detach().clone()
    with torch.no_grad():
        causes.zero_()
    others = [p for p in model.parameters() if p is not causes]
    for p in others:
        p.requires_grad_(False)
    optimizer = torch.optim.Adam([causes], 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        found = model(numbers, known=KNOWN)[:, :KNOWN]
        _loss(found, curves[:, :KNOWN]).backward()
        optimizer.step()
    with torch.no_grad():
        error = _apart(model(numbers, known=KNOWN)[:, KNOWN:], curves[:, KNOWN:])
        causes.copy_(kept)
    for p in others:
        p.requires_grad_(True)
    model.train()
    return error


def run(settings: Settings) -> Report:
    """The error of how new curves go on; rates are chosen by curves of a third set."""
    train, chosen_by, test = (curves_in_time(n, seed) for n, seed in ((TRAINED, 0), (TRAINED, 1), (TRAINED, 2)))
    data = torch.arange(TRAINED).float(), train
    start = seeded(lambda: PVRNN(TRAINED, LENGTH, 32, 4, 2))
    how: dict[str, Any] = {"epochs": 80, "batch_size": 16, "score": _apart, "start": start}

    def measured(way: Way, curves: Tensor, settings: Settings, name: str, finds: Composite | None = None) -> Case:
        """Trained by a way; its values are the errors of curves that go on, and `more["seen"]` those of the ones trained on.

        `finds` finds the causes of new curves; by default the way that the model was trained by.
        """

        def go_on(seed: int, model: nn.Module) -> dict[str, float]:
            finder = model
            if finds is not None:
                finder = start(0)
                finder.load_state_dict(model.state_dict())
                wrap(finder, finds)
            return {"error": continued(finder, curves, settings.epochs(60))}

        (case,) = fit(start(0), [way], data, data, settings, name=name, after=go_on, **how)
        case.more["seen"], case.values = case.values, case.more.pop("error")
        return case

    cases, notes, once = list[Case](), list[str](), replace(settings, seeds=1)
    plain = get_composite("lfp").override("causes", scale="signal")  # causes are states of a sequence, not weights
    for make, finds in (
        (partial(Way, "LFP", "lfp", _loss), None),
        (partial(Way, "LFP, new causes by their signal", "lfp", _loss), plain),
        (partial(Way, "LFP, all causes by their signal", plain, _loss), None),
        (partial(Way, "backprop", None, _loss), None),
    ):
        tried = {rate: measured(make(lr=rate), chosen_by, once, "choosing", finds).mean for rate in RATES}
        rate = min(tried, key=lambda rate: tried[rate] if math.isfinite(tried[rate]) else math.inf)
        case = measured(make(lr=rate), test, settings, "PV-RNN", finds)
        case.more["lr"] = rate
        cases.append(case)
        seen = sum(case.more["seen"]) / len(case.more["seen"])
        notes.append(
            f"{case.way}: rate {rate:g}, chosen on a validation part; curves trained on, wholly seen: {seen:.4f}"
        )
    still = mse_loss(test[:, KNOWN - 1 : KNOWN].expand(-1, LENGTH - KNOWN, -1), test[:, KNOWN:]).item()
    notes.append(
        f"staying where the first half ends: {still:.3f}; the mean of all: {float(test[:, KNOWN:].square().mean()):.3f}"
    )
    return Report("sequences", "mean squared error", cases, draw_bars, notes=notes)
