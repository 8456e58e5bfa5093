"""Which learning rate each way of training gets: the best of one grid, on a part of the training set that is held back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ...demo.data import Arrays
from .harness import Case, Settings, Way, fit

__all__ = ["chosen_rates", "held_back", "tuned"]


def held_back(data: Arrays, share: float = 0.25) -> tuple[Arrays, Arrays]:
    """A training set in two: what is still trained on, and the validation part. The split is the same at every call."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(1))
    validation, rest = order[: round(len(order) * share)], order[round(len(order) * share) :]
    return (data[0][rest], data[1][rest]), (data[0][validation], data[1][validation])


def chosen_rates(
    model: nn.Module, ways: Sequence[Way], rates: Sequence[float], train: Arrays, settings: Settings, *,
    name: str = "", lower_is_better: bool = False, **how: Any,
) -> list[Case]:  # fmt: skip
    """Each way at its best rate, trained on a part of the training set; the figures are those of the validation part.

    Every rate is tried with the first seed, the two best with all seeds, and the better mean wins.

    Args:
        how: what `fit` takes besides.

    Returns:
        A case for each way: `more["lr"]` is the rate, `more["tried"]` the values of every rate.
    """
    parts = held_back(train)

    def runs(tries: Sequence[Way], settings: Settings) -> list[Case]:
        return fit(model, tries, *parts, settings, name=name, **how)

    def worth(case: Case) -> float:
        mean = case.mean if math.isfinite(case.mean) else math.inf * (1 if lower_is_better else -1)
        return -mean if lower_is_better else mean

    found = []
    for way in ways:
        tries = [replace(way, lr=rate) for rate in rates]
        by_rate = dict(zip(rates, runs(tries, replace(settings, seeds=1))))
        best = sorted(by_rate, key=lambda rate: worth(by_rate[rate]), reverse=True)[:2]
        if settings.seeds > 1:
            again = runs([replace(way, lr=rate) for rate in best], replace(settings, seeds=settings.seeds - 1, first=1))
            for rate, more in zip(best, again):
                by_rate[rate].values += more.values
                by_rate[rate].curves += more.curves
                by_rate[rate].step_seconds += more.step_seconds
        rate = max(best, key=lambda rate: worth(by_rate[rate]))
        by_rate[rate].more |= {"lr": rate, "tried": {f"{r:g}": case.values for r, case in by_rate.items()}}
        found.append(by_rate[rate])
    return found


def tuned(
    model: nn.Module, ways: Sequence[Way], rates: Sequence[float], train: Arrays, test: Arrays, settings: Settings, *,
    name: str = "", lower_is_better: bool = False, choosing: int | None = None, **how: Any,
) -> tuple[list[Case], list[str]]:  # fmt: skip
    """Each way at its own best rate; if those differ, also all of them at the rate of the last one, backprop.

    Args:
        choosing: with how many seeds the rates are chosen; as many as all else by default.
        how: what `fit` takes besides.

    Returns:
        The cases, on held-out data, and notes that say which rates were chosen.
    """
    few = replace(settings, seeds=min(choosing or settings.seeds, settings.seeds))
    chosen = chosen_rates(model, ways, rates, train, few, name=name, lower_is_better=lower_is_better, **how)
    at_best = [replace(way, lr=case.more["lr"]) for way, case in zip(ways, chosen)]
    cases = fit(model, at_best, train, test, settings, name=name, **how)
    common = at_best[-1].lr
    others = [replace(way, lr=common) for way in at_best if way.lr != common]
    label = f"{name}, all at {common:g}"
    again = {case.way: case for case in fit(model, others, train, test, settings, name=label, **how)}
    for case, before in zip(list(cases), chosen):
        case.more |= before.more
        if others:
            cases.append(again.get(case.way, replace(case, model=label)))
            cases[-1].more = {"lr": common}
    notes = [f"{name}, {way.name}: rate {way.lr:g}, chosen on a validation part" for way in at_best]
    return cases, notes
