"""Decision boundaries and weight distributions on blobs, circles and swirls (LFP, figure 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..demo.data import Arrays
from .common.data import blobs, circles, swirls
from .common.harness import Case, Report, Settings, Way, fit
from .common.models import mlp, seeded
from .common.rates import chosen_rates

__all__ = ["run"]

SETS = {"blobs": blobs, "circles": circles, "swirls": swirls}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_GRID = 80


def run(settings: Settings) -> Report:
    """A ReLU MLP of two hidden layers for each set; the first seed's boundary and weights are kept for the figure."""
    ways = [Way("LFP", "lfp", cross_entropy), Way("backprop", None, cross_entropy)]
    cases: list[Case] = []
    for name, make in SETS.items():
        train, test = make()
        start = seeded(lambda: mlp([2, 64, 64, 3]))

        def keep(seed: int, model: nn.Module, train: Arrays = train) -> dict[str, Any]:
            weights = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if n.endswith("weight")])
            kept = {"near_zero": (weights.abs() < 1e-2).float().mean().item(), "kurtosis": _kurtosis(weights)}
            if seed:
                return kept
            points = [train[0][:300].tolist(), train[1][:300].tolist()]
            return {**kept, "grid": _grid(model, train[0]), "weights": _histogram(weights), "points": points}

        chosen = chosen_rates(start(0), ways, RATES, train, settings, epochs=60, name=name, start=start)
        at_best = [replace(way, lr=case.more["lr"]) for way, case in zip(ways, chosen)]
        found = fit(start(0), at_best, train, test, settings, epochs=60, name=name, after=keep, start=start)
        for case, way in zip(found, at_best):
            case.more["lr"] = way.lr
        cases += found
    notes = [
        f"{c.model}, {c.way}: weights below 0.01: {_mean(c, 'near_zero'):.1%}, kurtosis {_mean(c, 'kurtosis'):.1f}"
        for c in cases
    ]
    return Report("boundaries", "accuracy", cases, _draw, (9, 8), notes)


def _mean(case: Case, key: str) -> float:
    return sum(case.more[key]) / len(case.more[key])


def _kurtosis(weights: Tensor) -> float:
    """3 for a Gaussian; larger where few weights hold most of the size."""
    centred = weights - weights.mean()
    return (centred.pow(4).mean() / centred.var(correction=0).square()).item()


def _histogram(weights: Tensor) -> dict[str, list[float]]:
    limit = weights.abs().max().item()
    counts = torch.histc(weights, 61, -limit, limit)
    return {"edges": torch.linspace(-limit, limit, 62).tolist(), "counts": counts.tolist()}


@torch.no_grad()
def _grid(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """The class at every point of a grid around the data."""
    low, high = x.amin(0) - 0.3, x.amax(0) + 0.3
    axes = [torch.linspace(float(a), float(b), _GRID) for a, b in zip(low, high)]
    points = torch.cartesian_prod(*axes)
    return {
        "classes": model(points).argmax(-1).view(_GRID, _GRID).T.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }


def _draw(figure: Any, report: Report) -> None:
    rows = list(dict.fromkeys(case.model for case in report.cases))
    panels = figure.subplots(len(rows), 3, squeeze=False)
    for row, name in zip(panels, rows):
        for axes, case in zip(row, [c for c in report.cases if c.model == name]):
            grid, (points, labels), weights = (case.more[key][0] for key in ("grid", "points", "weights"))
            extent = (grid["low"][0], grid["high"][0], grid["low"][1], grid["high"][1])
            axes.imshow(
                grid["classes"], origin="lower", extent=extent, alpha=0.4, cmap="viridis", aspect="auto", vmin=0, vmax=2
            )
            axes.scatter(*zip(*points), c=labels, s=4, cmap="viridis", vmin=0, vmax=2)
            axes.set_title(f"{name}, {case.way}: {100 * case.values[0]:.1f} %")
            axes.set_xticks([])
            axes.set_yticks([])
            row[2].stairs(weights["counts"], weights["edges"], label=case.way)
        row[2].set_yscale("log")
        row[2].set_title("weights")
        row[2].legend()
